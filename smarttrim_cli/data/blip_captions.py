"""Reader of the caption files that BLIP offers for download: Karpathy's splits of COCO and Flickr30k.

A data folder holds a JSON list per split, and the images::

    coco_karpathy_train.json    [{"image": "val2014/COCO_val2014_000000522418.jpg", "caption": "..."}, ...]
    coco_karpathy_test.json     [{"image": "...", "caption": ["...", ...]}, ...]
    flickr30k_train.json        the same, with "flickr30k-images/1000092795.jpg"

In train an entry is a caption, in val and test an image.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from smarttrim_cli.data.files import field, objects, read_json, texts
from smarttrim_cli.data.samples import CaptionedImage, SampleId
from smarttrim_cli.data.splits import Log, file_names, image_folder, joins_splits, unknown_split
from smarttrim_cli.errors import UserError

TASKS = ("retrieval", "captioning")


class Options(BaseModel):
    """Where the files are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data_dir: str = Field(description="folder with coco_karpathy_train.json, ...")
    dataset: Literal["coco_karpathy", "flickr30k"] = Field(description="first part of the files' names")
    images_dir: str | None = Field(
        None, description="folder that the names of the images start from; null: data_dir"
    )


@joins_splits
def read(
    options: Options, task: str, split: str, *, labelled: bool, log: Log = print
) -> list[CaptionedImage]:
    """Images of a split with their captions, in the order in which they first occur.

    Args:
        options: Where the files are.
        task: ``retrieval`` or ``captioning``.
        split: ``train``, ``val`` or ``test``.
        labelled: Every image has captions anyway.
        log: Unused.

    Raises:
        UserError: The file or an image folder is missing or damaged, or the split is unknown.
    """
    folder = Path(options.data_dir)
    if split not in splits(options):
        raise unknown_split(split, "images", splits(options), folder, f"{options.dataset}_*.json")
    path = folder / f"{options.dataset}_{split}.json"
    captions: dict[str, list[str]] = {}
    for number, entry in enumerate(objects({"images": read_json(path)}, "images", path)):
        where = f"{path}, entry {number}"
        caption = entry.get("caption")
        several = texts(entry, "caption", where) if isinstance(caption, list) else None
        captions.setdefault(field(entry, "image", str, where), []).extend(
            one for one in several or (field(entry, "caption", str, where),) if one.strip()
        )
    if bare := next((image for image, found in captions.items() if not found), None):
        raise UserError(f"no caption for image {bare}, or blank ones alone", where=str(path))
    root = Path(options.images_dir or options.data_dir)
    for part in {str(Path(image).parent) for image in captions}:
        image_folder([root / part])
    return [
        CaptionedImage(id=image_id(image), images=(root / image,), captions=tuple(found))
        for image, found in captions.items()
    ]


def splits(options: Options, task: str = "retrieval") -> list[str]:
    """Splits that have a file."""
    name = re.compile(re.escape(options.dataset) + r"_(train|val|test)\.json")
    return [found[1] for found in map(name.fullmatch, file_names(Path(options.data_dir))) if found]


def image_id(image: str) -> SampleId:
    """The number at the end of a file's name, as BLIP's evaluation takes it; else the name."""
    last = Path(image).stem.split("_")[-1]
    return int(last) if last.isdecimal() else image

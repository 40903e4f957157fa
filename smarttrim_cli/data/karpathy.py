"""Reader of captions in the splits of Karpathy and Fei-Fei (``caption_datasets.zip``), as METER uses them.

A data folder holds the file of splits and captions, and the images::

    dataset_coco.json           train2014/COCO_train2014_000000000009.jpg, val2014/COCO_val2014_...
    dataset_flickr30k.json      flickr30k-images/1000092795.jpg

The JSON files may lie in a folder ``karpathy``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from smarttrim_cli.data.files import field, objects, read_json, refuse_half_characters
from smarttrim_cli.data.samples import CaptionedImage
from smarttrim_cli.data.splits import FLICKR_FOLDERS, Log, image_folder, joins_splits, unknown_split
from smarttrim_cli.errors import UserError

TASKS = ("retrieval", "captioning")
_RESTVAL = "restval"


class Options(BaseModel):
    """Where the official files are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data_dir: str = Field(description="folder with dataset_coco.json, ... (or karpathy/dataset_coco.json)")
    dataset: Literal["coco", "flickr30k", "flickr8k"] = Field(description="which of the data sets")
    images_dir: str | None = Field(
        None,
        description="folder of the images (flickr) or of train2014 and val2014 (coco); null: in data_dir",
    )
    restval_is_train: bool = Field(
        True, description="images of split restval (coco) count as train, as METER and BLIP have it"
    )


@joins_splits
def read(
    options: Options, task: str, split: str, *, labelled: bool, log: Log = print
) -> list[CaptionedImage]:
    """Images of a split with their captions; the id is that of COCO, or the number of the image.

    Args:
        options: Where the files are.
        task: ``retrieval`` or ``captioning``.
        split: ``train``, ``val``, ``test``; ``restval`` where that does not count as train.
        labelled: Every image has captions anyway.
        log: Unused.

    Raises:
        UserError: The file or an image folder is missing or damaged, or the split is unknown.
    """
    path = _file(options)
    entries = objects(read_json(path), "images", path)
    folders: dict[str, Path] = {}
    samples = []
    for number, entry in enumerate(entries):
        where = f"{path}, image {number}"
        if _split_of(entry, options, where) != split:
            continue
        part = field(entry, "filepath", str, where) if "filepath" in entry else ""
        if part not in folders:
            folders[part] = _image_folder(options, part)
        samples.append(
            CaptionedImage(
                id=field(entry, "cocoid" if "cocoid" in entry else "imgid", int, where),
                images=(folders[part] / field(entry, "filename", str, where),),
                captions=_captions(entry, where),
            )
        )
    if not samples:
        raise unknown_split(split, "images", _present(entries, options, path), path, "images")
    return samples


def splits(options: Options, task: str = "retrieval") -> list[str]:
    """Splits that the file names."""
    path = _file(options)
    return _present(objects(read_json(path), "images", path), options, path)


def _present(entries: list[dict[str, Any]], options: Options, path: Path) -> list[str]:
    names = {_split_of(entry, options, f"{path}, image {n}") for n, entry in enumerate(entries)}
    return sorted(names)


def _file(options: Options) -> Path:
    name = f"dataset_{options.dataset}.json"
    nested = Path(options.data_dir) / "karpathy" / name
    return nested if nested.exists() else Path(options.data_dir) / name


def _split_of(entry: dict[str, Any], options: Options, where: str) -> str:
    split = str(field(entry, "split", str, where))
    return "train" if split == _RESTVAL and options.restval_is_train else split


def _image_folder(options: Options, part: str) -> Path:
    if options.images_dir:
        return image_folder([Path(options.images_dir) / part])
    folder = Path(options.data_dir)
    return image_folder([folder / part] if part else [folder / name for name in FLICKR_FOLDERS])


def _captions(entry: dict[str, Any], where: str) -> tuple[str, ...]:
    try:
        captions = tuple(sentence["raw"].strip() for sentence in entry["sentences"])
    except (KeyError, TypeError, AttributeError):
        captions = ()
    captions = tuple(caption for caption in captions if caption)  # a blank one is no description
    if not captions:
        raise UserError("no list of sentences, each with its raw text", where=where)
    for caption in captions:
        refuse_half_characters(caption, "raw", where)
    return captions

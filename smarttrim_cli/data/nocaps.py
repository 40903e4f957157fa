"""Reader of NoCaps in its official layout (https://nocaps.org).

A data folder holds files in the format of COCO, and the images from Open Images, named by ``file_name``::

    nocaps_val_4500_captions.json    (or nocaps_val_image_info.json, without captions)
    nocaps_test_image_info.json
    val/0013ea2087020901.jpg         (or images/val, images)
"""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from smarttrim_cli.data.files import field, objects, read_json
from smarttrim_cli.data.samples import CaptionedImage
from smarttrim_cli.data.splits import Log, file_names, image_folder, joins_splits, unknown_split, unlabelled
from smarttrim_cli.errors import UserError

TASKS = ("captioning",)
_FILE = re.compile(r"nocaps_([a-z]+)_(\d+_captions|image_info)\.json")


class Options(BaseModel):
    """Where the official files are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data_dir: str = Field(description="folder with nocaps_val_4500_captions.json, ...")
    images_dir: str | None = Field(
        None, description="folder of the images; null: val, images/val or images in data_dir"
    )


@joins_splits
def read(
    options: Options, task: str, split: str, *, labelled: bool, log: Log = print
) -> list[CaptionedImage]:
    """Images of a split; ``type`` is the domain (in-domain, near-domain, out-domain), where the file says it.

    Args:
        options: Where the files are.
        task: ``captioning``.
        split: ``val`` or ``test``.
        labelled: Whether a split without captions is an error.
        log: Unused.

    Raises:
        UserError: A file or the image folder is missing or damaged, or the split is unknown.
    """
    files = _files(options)
    if split not in files:
        raise unknown_split(split, "images", files, Path(options.data_dir), "nocaps_*_captions.json")
    path = files[split]
    content = read_json(path)
    captions = _captions(content, path)
    if labelled and captions is None:
        raise unlabelled(split, "images", "captions", path)
    folder = Path(options.data_dir)
    names = (split, f"images/{split}", "images")
    images = image_folder([Path(options.images_dir)] if options.images_dir else [folder / n for n in names])
    samples = []
    for number, entry in enumerate(objects(content, "images", path)):
        where = f"{path}, image {number}"
        image_id = field(entry, "id", int, where)
        if captions is not None and image_id not in captions:
            raise UserError(f"no caption for image {image_id}", where=str(path))
        samples.append(
            CaptionedImage(
                id=image_id,
                images=(images / field(entry, "file_name", str, where),),
                captions=tuple(captions[image_id]) if captions else (),
                type=field(entry, "domain", str, where) if "domain" in entry else None,
            )
        )
    return samples


def splits(options: Options, task: str = "captioning") -> list[str]:
    """Splits that have a file."""
    return list(_files(options))


def _files(options: Options) -> dict[str, Path]:
    """Files by split; one with captions before one without."""
    folder = Path(options.data_dir)
    found = [name for name in map(_FILE.fullmatch, file_names(folder)) if name]
    return {name[1]: folder / name[0] for name in sorted(found, key=lambda name: name[2] != "image_info")}


def _captions(content: object, path: Path) -> dict[int, list[str]] | None:
    """Captions by image; None in a file without annotations."""
    if not isinstance(content, dict) or not content.get("annotations"):
        return None
    captions: dict[int, list[str]] = {}
    for number, entry in enumerate(objects(content, "annotations", path)):
        where = f"{path}, annotation {number}"
        image_id = field(entry, "image_id", int, where)
        caption = field(entry, "caption", str, where).strip()
        if caption:  # a blank one is no description
            captions.setdefault(image_id, []).append(caption)
    return captions

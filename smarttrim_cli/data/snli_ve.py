"""Reader of SNLI-VE in its official layout (https://github.com/necla-ml/SNLI-VE).

A data folder holds JSON lines and the images of Flickr30k::

    snli_ve_train.jsonl, snli_ve_dev.jsonl, snli_ve_test.jsonl
    flickr30k_images/2407091303.jpg
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from smarttrim_cli.data.files import field, read_json_lines
from smarttrim_cli.data.samples import ENTAILMENT, EntailmentSample
from smarttrim_cli.data.splits import (
    FLICKR_FOLDERS,
    Log,
    file_names,
    image_folder,
    image_suffix,
    joins_splits,
    unknown_split,
    unlabelled,
)
from smarttrim_cli.errors import UserError

TASKS = ("snli_ve",)
_FILE = re.compile(r"snli_ve_(.+)\.jsonl")
_UNDECIDED = "-"
"""The label of SNLI where annotators did not agree."""


class Options(BaseModel):
    """Where the official files are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data_dir: str = Field(description="folder with snli_ve_train.jsonl, ...")
    images_dir: str | None = Field(
        None, description="folder with the images of Flickr30k; null: flickr30k_images in data_dir"
    )


@joins_splits
def read(
    options: Options, task: str, split: str, *, labelled: bool, log: Log = print
) -> list[EntailmentSample]:
    """Hypotheses of a split; those on which annotators did not agree are left out, with a line that says so.

    Args:
        options: Where the files are.
        task: ``snli_ve``.
        split: ``train``, ``dev`` or ``test``.
        labelled: Whether a hypothesis without label is an error.
        log: Takes a line for the user.

    Raises:
        UserError: A file or the image folder is missing or damaged, or the split is unknown.
    """
    folder = Path(options.data_dir)
    if split not in splits(options):
        raise unknown_split(split, "hypotheses", splits(options), folder, "snli_ve_*.jsonl")
    path = folder / f"snli_ve_{split}.jsonl"
    candidates = [folder / name for name in FLICKR_FOLDERS]
    images = image_folder([Path(options.images_dir)] if options.images_dir else candidates)
    suffix = image_suffix(images)
    samples, undecided = [], 0
    for where, entry in read_json_lines(path):
        label = _label(entry, split, labelled, where)
        if label == _UNDECIDED:
            undecided += 1
            continue
        samples.append(
            EntailmentSample(
                id=field(entry, "pairID", str, where),
                images=(images / f"{_image_id(entry, where)}{suffix}",),
                text=field(entry, "sentence2", str, where),
                label=label,
            )
        )
    if not samples:
        raise UserError(
            f"annotators agree on none of the {undecided} hypotheses (gold_label -)",
            where=str(path),
            hint="hypotheses without agreement are left out, as in the official data",
        )
    if undecided:
        log(f"{path.name}: {undecided} hypotheses without agreement (gold_label -) are left out")
    return samples


def splits(options: Options, task: str = "snli_ve") -> list[str]:
    """Splits that have a file."""
    return [found[1] for found in map(_FILE.fullmatch, file_names(Path(options.data_dir))) if found]


def _image_id(entry: dict[str, Any], where: str) -> str:
    return str(field(entry, "Flickr30K_ID", str, where)).removesuffix(".jpg")


def _label(entry: dict[str, Any], split: str, labelled: bool, where: str) -> str | None:
    label = entry.get("gold_label")
    if label is None:
        if labelled:
            raise unlabelled(split, "hypotheses", "label", where)
        return None
    if label not in (*ENTAILMENT, _UNDECIDED):
        raise UserError(f"gold_label is {label!r}, not one of {', '.join(ENTAILMENT)}", where=where)
    return str(label)

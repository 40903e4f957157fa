"""One's own data for any task: JSON lines, one file ``<split>.jsonl`` per split.

A line is an object; images are paths that start from ``images_dir``, or absolute::

    vqa          {"image": "img/1.jpg", "question": "...", "answer": "red"}   or "answers": ["red", ...]
    nlvr2        {"images": ["l.jpg", "r.jpg"], "statement": "...", "label": true}
    snli_ve      {"image": "img/1.jpg", "hypothesis": "...", "label": "entailment"}
    retrieval    {"image": "img/1.jpg", "captions": ["...", ...]}
    captioning   {"image": "img/1.jpg", "captions": ["...", ...]}

Lines of ``retrieval`` and ``captioning`` with the same image are one sample, with the captions of all.
Any line can have ``id`` (number or text; else ``<split>:<line>``); vqa and captioning can have ``type``, by
which scores are broken down.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from smarttrim_cli.data.entries import KEYS, Entry, gathered, images_per_sample, to_sample
from smarttrim_cli.data.files import field, read_json_lines
from smarttrim_cli.data.samples import Sample
from smarttrim_cli.data.splits import Log, file_names, joins_splits, unknown_split
from smarttrim_cli.errors import UserError

TASKS = tuple(KEYS)


class Options(BaseModel):
    """Where the data are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data_dir: str = Field(description="folder with train.jsonl, val.jsonl, ...")
    images_dir: str | None = Field(None, description="folder that image paths start from; null: data_dir")


@partial(joins_splits, join=gathered)
def read(options: Options, task: str, split: str, *, labelled: bool, log: Log = print) -> list[Sample]:
    """Samples of a split.

    Args:
        options: Where the files are.
        task: One of ``TASKS``.
        split: Name of a file, without ``.jsonl``.
        labelled: Whether a line without answer, label or captions is an error.
        log: Takes a line for the user.

    Raises:
        UserError: The split is unknown, or a line is not as it has to be.
    """
    folder = Path(options.data_dir)
    if split not in splits(options, task):
        raise unknown_split(split, "samples", splits(options, task), folder, "file *.jsonl")
    root = Path(options.images_dir or options.data_dir)
    samples, unused = [], set()
    for where, values in read_json_lines(folder / f"{split}.jsonl"):
        unused |= _unused_keys(values, task)
        images = tuple(root / name for name in _images(values, task, where))
        line = f"{split}:{where.rpartition(':')[2]}"
        samples.append(to_sample(task, Entry(values, images, line, where, split, labelled)))
    if unused:
        log(f"{split}.jsonl: keys that {task} does not use: {', '.join(sorted(unused))}")
    return samples


def splits(options: Options, task: str) -> list[str]:
    """Names of the files, without ``.jsonl``."""
    names = map(Path, file_names(Path(options.data_dir)))
    return [name.stem for name in names if name.suffix == ".jsonl"]


def _images(values: dict[str, Any], task: str, where: str) -> list[str]:
    number = images_per_sample(task)
    if number == 1:
        return [field(values, "image", str, where)]
    names = field(values, "images", list, where)
    if len(names) != number or not all(isinstance(name, str) for name in names):
        raise UserError(f"images is {names!r}, not a list of {number} paths", where=where)
    return list(names)


def _unused_keys(values: dict[str, Any], task: str) -> set[str]:
    known = (*KEYS[task], "images" if images_per_sample(task) > 1 else "image")
    return values.keys() - set(known)

"""Reader of NLVR2 in its official layout (https://github.com/lil-lab/nlvr, folder nlvr2).

A data folder holds JSON lines and the images, as the repository and the image archives give them::

    nlvr2/data/train.json, dev.json, test1.json    (or in the data folder itself)
    images/train/50/train-10171-0-img0.png         (50: the key directory; or train/50/...)
    dev/dev-850-0-img0.png                         (or images/dev/...)
    test1/test1-0-1-img0.png                       (or images/test1/...)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from smarttrim_cli.data.files import field, read_json_lines, shown
from smarttrim_cli.data.samples import StatementSample
from smarttrim_cli.data.splits import Log, file_names, image_folder, joins_splits, unknown_split, unlabelled
from smarttrim_cli.errors import UserError

TASKS = ("nlvr2",)
_ANNOTATIONS = ("", "data", "nlvr2/data", "nlvr/nlvr2/data")


class Options(BaseModel):
    """Where the official files are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data_dir: str = Field(description="folder with train.json, ... or with nlvr2/data/train.json, ...")
    images_dir: str | None = Field(
        None, description="folder with the image folders (images/train, dev, ...); null: data_dir"
    )


@joins_splits
def read(
    options: Options, task: str, split: str, *, labelled: bool, log: Log = print
) -> list[StatementSample]:
    """Statements of a split.

    Args:
        options: Where the files are.
        task: ``nlvr2``.
        split: Name of a JSON-lines file: ``train``, ``dev``, ``test1``.
        labelled: Whether a statement without label is an error.
        log: Unused.

    Raises:
        UserError: A file or image folder is missing or damaged, or the split is unknown.
    """
    files = _files(options)
    path = files.get(split) or _named(options, split)
    if path is None:
        raise unknown_split(
            split, "statements", files, Path(options.data_dir), "JSON-lines file with statements"
        )
    root = Path(options.images_dir or options.data_dir)
    folders: dict[str, Path] = {}
    samples = []
    for where, entry in read_json_lines(path):
        identifier = field(entry, "identifier", str, where)
        parts = identifier.split("-")
        if len(parts) < 4:
            raise UserError(f"identifier {identifier!r} is not split-set-pair-sentence", where=where)
        if parts[0] not in folders:
            folders[parts[0]] = image_folder([root / "images" / parts[0], root / parts[0]])
        folder = folders[parts[0]] / _directory(entry, where)
        pair = "-".join(parts[:-1])
        samples.append(
            StatementSample(
                id=identifier,
                images=tuple(folder / f"{pair}-img{side}.png" for side in (0, 1)),
                text=field(entry, "sentence", str, where),
                label=_label(entry, split, labelled, where),
                statement=sentence_of(identifier),
            )
        )
    return samples


def splits(options: Options, task: str = "nlvr2") -> list[str]:
    """Names of the JSON-lines files with statements."""
    return list(_files(options))


def sentence_of(identifier: str) -> str:
    """The sentence of an identifier: without the number of the pair, as the official ``eval/metrics.py``."""
    parts = identifier.split("-")
    return "-".join([*parts[:2], "", *parts[3:]])


def _files(options: Options) -> dict[str, Path]:
    """Files of statements by split, from the first of the official places that has any."""
    root = Path(options.data_dir)
    file_names(root)
    for place in _ANNOTATIONS:
        paths = sorted((root / place).glob("*.json"))
        found = {path.stem: path for path in paths if _has_statements(path)}
        if found:
            return found
    return {}


def _named(options: Options, split: str) -> Path | None:
    """A file with the name of a split but, at first sight, no statements: reading it says what is wrong."""
    paths = [Path(options.data_dir) / place / f"{split}.json" for place in _ANNOTATIONS]
    return next((path for path in paths if path.is_file()), None)


def _has_statements(path: Path) -> bool:
    """Whether the first line that is not blank is an object with a sentence; others may lie beside."""
    try:
        with path.open("rb") as file:
            first = json.loads(next(filter(bytes.strip, file), b""))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(first, dict) and "sentence" in first


def _directory(entry: dict[str, Any], where: str) -> str:
    """The folder of a pair within its split; the official files have numbers."""
    directory = entry.get("directory", "")
    if not isinstance(directory, str | int) or isinstance(directory, bool):
        raise UserError(f"directory is {shown(directory)}, not a number or a text", where=where)
    return str(directory)


def _label(entry: dict[str, Any], split: str, labelled: bool, where: str) -> bool | None:
    label = entry.get("label")
    if label is None:
        if labelled:
            raise unlabelled(split, "statements", "label", where)
        return None
    if str(label).lower() not in ("true", "false"):
        raise UserError(f"label is {label!r}, not True or False", where=where)
    return str(label).lower() == "true"

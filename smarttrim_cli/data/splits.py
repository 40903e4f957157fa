"""What readers share about splits and folders: joined splits, unknown ones, where the images are."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from smarttrim_cli.data.samples import Sample
from smarttrim_cli.errors import UserError

Log = Callable[[str], None]
_IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp"})
FLICKR_FOLDERS = ("flickr30k_images", "flickr30k-images", "Flickr30K/images", "images")
"""Names under which the images of Flickr30k are found: SNLI-VE's, ViLT's and METER's."""


class Read(Protocol):
    """The function ``read`` of a data plug-in."""

    def __call__(
        self, options: Any, task: str, split: str, *, labelled: bool, log: Log = print
    ) -> list[Sample]:
        """Samples of a split."""
        ...


def _as_they_are(samples: list[Any], split: str, log: Log) -> list[Any]:
    return samples


def joins_splits(
    read: Callable[..., list[Any]], join: Callable[[list[Any], str, Log], list[Any]] = _as_they_are
) -> Read:
    """Makes a plug-in's ``read`` take several splits, ``train+val``, and refuse ids that occur twice.

    METER and BLIP train their VQA models on train and val together. ``join`` gets the samples of all of them,
    the joined name and the log, and gives those of the whole.
    """

    @functools.wraps(read)
    def read_all(options: Any, task: str, split: str, *, labelled: bool, log: Log = print) -> list[Sample]:
        samples: list[Sample] = []
        for part in split.split("+"):
            samples += read(options, task, part.strip(), labelled=labelled, log=log)
        samples = join(samples, split, log)
        _refuse_repeated_ids(samples, split)
        return samples

    return read_all


def _refuse_repeated_ids(samples: Sequence[Sample], split: str) -> None:
    seen = set()
    for sample in samples:
        if sample.id in seen:
            raise UserError(
                f"two samples have the id {sample.id}",
                where=f"split {split}",
                hint="ids have to differ; of your own data they can be left out",
            )
        seen.add(sample.id)


def unknown_split(split: str, what: str, present: Iterable[str], where: Path, files: str) -> UserError:
    """The error for a split that is not there; it names those that are.

    Args:
        split: The name that was asked for.
        what: What the data set consists of, such as questions.
        present: Names of the splits that exist.
        where: The data folder or file.
        files: What a split's file is called, for a folder with none.
    """
    names = ", ".join(present)
    hint = f"Splits there: {names}." if names else f"It has no {files}."
    return UserError(f"no {what} for split {split}", where=str(where), hint=hint)


def unlabelled(split: str, what: str, lacking: str, where: Path | str) -> UserError:
    """The error for a split without annotations where they are needed."""
    return UserError(
        f"split {split} has {what} but no {lacking}",
        where=str(where),
        hint="Training and scoring need the annotations; a submission file can be written without.",
    )


def file_names(folder: Path) -> list[str]:
    """Sorted names of what a data folder holds.

    Raises:
        UserError: It cannot be read.
    """
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        hint = None if folder.is_absolute() else f"it is relative to {Path.cwd()}; or task.data.data_dir=..."
        message = f"cannot read the data folder: {error.strerror}"
        raise UserError(message, where=str(folder), hint=hint) from error


def image_folder(candidates: Sequence[Path]) -> Path:
    """The first of the folders that exists.

    Raises:
        UserError: None does.
    """
    for folder in candidates:
        if folder.is_dir():
            return folder
    looked = ", ".join(map(str, candidates[1:]))
    hint = f"Nor is there any of: {looked}." if looked else "Unpack the images there."
    raise UserError("no such folder of images", where=str(candidates[0]), hint=f"{hint} See images_dir.")


def image_suffix(folder: Path, prefix: str = "") -> str:
    """The suffix of the image files of a folder whose name starts with ``prefix``: JPEG if there is any.

    Raises:
        UserError: The folder cannot be read, or has none.
    """
    try:
        found = ""
        for entry in os.scandir(folder):
            suffix = Path(entry.name).suffix
            if entry.name.startswith(prefix) and suffix.lower() in _IMAGE_SUFFIXES:
                found = suffix
                if suffix == ".jpg":  # what official archives have; a stray file of the user's is not asked
                    break
        if found:
            return found
    except OSError as error:
        raise UserError(f"cannot read the folder of images: {error.strerror}", where=str(folder)) from error
    raise UserError(f"no image named {prefix}*" if prefix else "no image in this folder", where=str(folder))

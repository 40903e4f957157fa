"""What the readers of data sets return, one class per kind of task.

All have ``id`` (unique in its split), ``images`` and ``text``; what comes from annotations is None (or empty)
where a split has none. An image is a path, or anything with ``open() -> PIL.Image`` and a readable ``str``.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

SampleId = int | str
ENTAILMENT = ("contradiction", "neutral", "entailment")
"""Classes of visual entailment in the order of their indices (``label2id`` of METER's ``write_snli.py``)."""


class NoImage(Exception):
    """A cell of a table that should have an image has none."""


class EmbeddedImage:
    """An image inside a table (a Hugging Face data set), decoded when it is opened.

    A cell is a picture, the bytes of an image file, ``{bytes, path}`` (how such tables store images), or a
    list of these, in which ``position`` counts. Paths start from ``folder``.
    """

    def __init__(
        self,
        table: Any,
        row: int,
        column: str,
        where: str,
        position: int | None = None,
        folder: Path = Path(),
    ) -> None:
        self.table, self.row, self.column, self.where = table, row, column, where
        self.position, self.folder = position, folder

    def open(self) -> Image.Image:
        """Decode it.

        Raises:
            NoImage: The cell is empty.
        """
        cell = self._cell()
        if isinstance(cell, Image.Image):
            return cell
        if cell is None:
            raise NoImage
        return Image.open(io.BytesIO(cell) if isinstance(cell, bytes) else cell)

    def key(self) -> Hashable:
        """The same for the same image in other rows: its path, or a hash of its bytes; None for no image."""
        cell = self._cell()
        if isinstance(cell, Image.Image):
            return cell.mode, cell.size, hashlib.blake2b(cell.tobytes(), digest_size=16).digest()
        return hashlib.blake2b(cell, digest_size=16).digest() if isinstance(cell, bytes) else cell

    def _cell(self) -> Any:
        """A picture, the bytes or the path of an image file, or None."""
        cell = self.table[self.row][self.column]
        if self.position is not None:
            cell = cell[self.position]
        if isinstance(cell, Mapping):
            cell = cell["path"] if cell.get("bytes") is None else cell["bytes"]
        return str(self.folder / cell) if isinstance(cell, str) else cell

    def __str__(self) -> str:
        """Where it is."""
        return f"{self.where}, row {self.row}, column {self.column}"


ImageSource = Path | EmbeddedImage


@dataclass(frozen=True)
class VqaSample:
    """A question about an image, with the answers of its annotators.

    ``normalized`` says that these are normalised, as a prediction then has to be before they are compared.
    """

    id: SampleId
    images: tuple[ImageSource, ...]
    text: str
    image_id: SampleId
    answers: tuple[str, ...] | None = None
    question_type: str | None = None
    answer_type: str | None = None
    major_answer: str | None = None
    normalized: bool = False


@dataclass(frozen=True)
class StatementSample:
    """A statement about two images (left, right) that is true or false.

    ``statement`` identifies the sentence among several pairs of images, for consistency.
    """

    id: SampleId
    images: tuple[ImageSource, ...]
    text: str
    label: bool | None = None
    statement: str | None = None


@dataclass(frozen=True)
class EntailmentSample:
    """A hypothesis about an image; ``label`` is one of ``ENTAILMENT``."""

    id: SampleId
    images: tuple[ImageSource, ...]
    text: str
    label: str | None = None


@dataclass(frozen=True)
class CaptionedImage:
    """An image with its captions; ``text`` is empty. ``type`` is a domain to report by (NoCaps), or None."""

    id: SampleId
    images: tuple[ImageSource, ...]
    captions: tuple[str, ...] = ()
    text: str = ""
    type: str | None = None


Sample = VqaSample | StatementSample | EntailmentSample | CaptionedImage


def is_labelled(sample: Any) -> bool:
    """Whether a sample has its annotation: answers, a label or captions. Other kinds count as having one."""
    named = [getattr(sample, name) for name in ("answers", "label", "captions") if hasattr(sample, name)]
    return not named or any(annotation not in (None, ()) for annotation in named)

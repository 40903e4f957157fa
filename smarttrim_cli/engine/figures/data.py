"""What the pictures are drawn from: plain data, without torch.

The CLS token is left out everywhere: it is never dropped, so it says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
"""An RGB image, (H, W, 3)."""

Mask = npt.NDArray[np.bool_]
"""1 keep, 0 drop: (g, g) for patches, (L,) for words."""


@dataclass(frozen=True)
class LayerMask:
    """What is kept at one layer of a stream.

    Attributes:
        part: ``vision``, ``text`` or ``cross``.
        number: Layer within the part, from 1.
        keep: Cumulative keep mask in original positions.
    """

    part: str
    number: int
    keep: Mask

    @property
    def label(self) -> str:
        """``vision 1``, ``cross 2``, ..."""
        return f"{self.part} {self.number}"

    @property
    def share(self) -> float:
        """Kept fraction."""
        return float(self.keep.mean()) if self.keep.size else 1.0


@dataclass(frozen=True)
class Answer:
    """A model's answer; ``score`` is None without a reference."""

    text: str
    score: float | None = None


@dataclass(frozen=True)
class Box:
    """An object that the question is about, in pixels of the original image."""

    role: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Instance:
    """One image and question as the model dealt with them.

    Attributes:
        name: Identifies it in file names and captions.
        kind: Question type; empty if unknown.
        image: The original image.
        view: What the model sees of it: square, resized or cropped.
        patches: Layers of the vision stream.
        words: Tokens of the question; of several texts those of the first.
        word_layers: Layers of the text stream.
        reference: The right answer, if known.
        macs: MACs of this instance, trimmed.
        full_macs: MACs of this instance in the full model.
        boxes: Objects that the question is about.
        texts: How many texts the image was read with.
        cut: Whether the text goes on behind ``words``, where the model does not read it.
        image_number: Which of several images this is, from 1; 0 for the only one.
    """

    name: str
    question: str
    kind: str
    image: Pixels
    view: Pixels
    patches: list[LayerMask]
    words: list[str]
    word_layers: list[LayerMask]
    trimmed: Answer
    full: Answer
    reference: str | None
    macs: float
    full_macs: float
    boxes: tuple[Box, ...] = ()
    texts: int = 1
    cut: bool = False
    image_number: int = 0

    @property
    def reduction(self) -> float:
        """How many times fewer MACs than the full model."""
        return self.full_macs / self.macs

    @property
    def image_label(self) -> str:
        """``image``, or where there are several ``image 1``, ..."""
        return f"image {self.image_number}" if self.image_number else "image"


@dataclass(frozen=True)
class HeadTable:
    """Mean kept fraction of attention heads: ``kept`` is (layers, heads)."""

    title: str
    layers: list[str]
    kept: npt.NDArray[np.float64]


@dataclass(frozen=True)
class LayerSimilarity:
    """How alike the tokens behind a layer are, or the heads of one of its attentions; over instances.

    Attributes:
        stream: Name of the stream.
        layer: Position along the stream, from 0.
        part: ``vision``, ``text`` or ``cross``.
        number: Layer within the part, from 1.
        kind: ``token``, or of which attention the heads are: ``self_head``, ``cross_head``, ``cross_head1``.
        mean: Mean cosine similarity.
        std: Standard deviation over instances.
        p10: Percentiles over instances: this, the median ``p50``, and ``p90``.
        count: Number of instances.
    """

    stream: str
    layer: int
    part: str
    number: int
    kind: str
    mean: float
    std: float
    p10: float
    p50: float
    p90: float
    count: int


History = list[dict[str, Any]]
"""Lines of a run's metrics."""


def format_reduction(reduction: float) -> str:
    """``1.93× fewer MACs``; trimmers that drop next to nothing cost more than they save."""
    if reduction >= 1:
        return f"{reduction:.2f}× fewer MACs"
    return f"{1 / reduction:.2f}× more MACs"


def format_macs(macs: float) -> str:
    """``3.73 M``, ``11.2 G``."""
    rounded = float(f"{macs:.3g}")  # first, or 999.6 M would be 1e+03 M
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if rounded >= size:
            return f"{rounded / size:.3g} {unit}"
    return f"{rounded / 1e3:.3g} k"

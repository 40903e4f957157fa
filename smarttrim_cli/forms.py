"""What a task asks of a backbone: the form of the model, and how it decodes.

A backbone says which forms it has (``FORMS``), and in which way it answers there: it ``classifies`` (one row
of logits per instance), ``matches`` (one score per pair of image and text), ``contrasts`` (compares features
of images and texts first, then matches) or ``generates`` text.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

CLASSIFIES, MATCHES, GENERATES = "classifies", "matches", "generates"
CONTRASTS = "contrasts"


class Ranking(NamedTuple):
    """Training output of a backbone that matches, where a batch has other images.

    Attributes:
        scores: Of every image with its texts, (B, K).
        matching: Logits of "no match" and "match" for every other image with the last text, (B, 2).
    """

    scores: Tensor
    matching: Tensor


class Contrast(NamedTuple):
    """Training output of a backbone that contrasts, for B pairs of image and text.

    Attributes:
        image_features: Normalised, (B, E).
        text_features: Normalised, (B, E).
        temperature: What similarities are divided by, ().
        matching: Logits of "no match" and "match", (B, 3, 2): of the pair, of its image with a hard negative
            text, of its text with a hard negative image.
        negative_images: Rows of the hard negative images, (B,).
        negative_texts: Rows of the hard negative texts, (B,).
    """

    image_features: Tensor
    text_features: Tensor
    temperature: Tensor
    matching: Tensor
    negative_images: Tensor
    negative_texts: Tensor


@dataclass(frozen=True)
class Decoding:
    """How text is generated or ranked.

    Attributes:
        num_beams: Beams of the search; 1 is greedy.
        max_length: Most tokens of an output, the prompt's included.
        min_length: Fewest, the prompt's included; the end token is not allowed before.
        num_candidates: Candidates that the first token's probability pre-selects when answers are ranked.
        rank: Whether answers are chosen among given candidates (as published for VQA) or written freely.
    """

    num_beams: int = 3
    max_length: int = 20
    min_length: int = 5
    num_candidates: int = 128
    rank: bool = False


@dataclass(frozen=True)
class Form:
    """The model that a task needs.

    Attributes:
        name: ``vqa``, ``nlvr2``, ``snli_ve``, ``retrieval`` or ``captioning``; it names the head.
        num_labels: Classes, where the model classifies.
        images: Images per instance.
        text_tokens: Typical number of text tokens, special ones included: for predictions without data.
        prompt_tokens: Tokens that a generated text starts with.
        new_tokens: Mean number of decoding steps, where the model generates: for predictions without data.
        decoding: How it decodes; None where it does not.
        candidate_tokens: Tokens that the decoder reads of every candidate, where answers are ranked; 0 if
            that is not known (predictions without data), and costs are those of writing, as published.
    """

    name: str
    num_labels: int = 2
    images: int = 1
    text_tokens: int = 10
    prompt_tokens: int = 1
    new_tokens: float = 0
    decoding: Decoding | None = None
    candidate_tokens: int = 0

    def steps_of(self, index: int) -> int:
        """Decoding steps of the ``index``-th of a row of instances whose mean is ``new_tokens``."""
        return math.floor(self.new_tokens * (index + 1)) - math.floor(self.new_tokens * index)

    def with_steps(self, steps: float) -> Form:
        """This form with another mean number of decoding steps, at most as many as its decoding allows."""
        if self.decoding is not None:
            steps = min(steps, self.decoding.max_length - self.prompt_tokens)
        return replace(self, new_tokens=steps)

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for ``config.json``."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Form:
        """Inverse of :meth:`to_dict`."""
        decoding = content.get("decoding")
        return cls(**{**content, "decoding": None if decoding is None else Decoding(**decoding)})

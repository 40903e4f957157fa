"""METER's heads, with the names and shapes of the official state dict (``heads.py``, ``METERTransformerSS``).

Legend: R rows (passes), L text tokens, D width of the co-attention layers, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smarttrim_cli.errors import UserError
from smarttrim_cli.forms import CLASSIFIES, MATCHES, Form

FORMS = {"vqa": CLASSIFIES, "nlvr2": CLASSIFIES, "snli_ve": CLASSIFIES, "retrieval": MATCHES}
PRETRAINING = "pretraining"
"""The model with the heads of pre-training (masked words, matching); no task of the toolkit asks for it."""

ANSWERING = {
    "vqa": "vqa_classifier",
    "nlvr2": "nlvr2_classifier",
    "snli_ve": "snli_classifier",
    "retrieval": "rank_output",
    PRETRAINING: "itm_score",
}
"""Form to the head that its forward ends with."""

HEADS = frozenset({*ANSWERING.values(), "mlm_score"})


class MatchingHead(nn.Module):
    """Do image and text belong together? Logits of no and yes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, 2)

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, 2D) to (R, 2)."""
        return self.fc(pooled)


class _WordTransform(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.LayerNorm(F.gelu(self.dense(hidden)))


class WordHead(nn.Module):
    """Which word stands here? The decoder is not tied to the word embeddings."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.transform = _WordTransform(width)
        self.decoder = nn.Linear(width, vocabulary, bias=False)
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, hidden: Tensor) -> Tensor:
        """(R, L, D) to (R, L, V)."""
        return self.decoder(self.transform(hidden)) + self.bias


def build_heads(form: Form, width: int, vocabulary: int) -> dict[str, nn.Module]:
    """The heads of a form by their official names.

    Args:
        form: Of the model.
        width: D.
        vocabulary: V.

    Raises:
        UserError: METER has no such form.
    """
    if form.name not in ANSWERING:
        raise UserError(f"METER has no form {form.name!r}", where="task", hint=f"it has: {', '.join(FORMS)}")
    heads: dict[str, nn.Module] = {}
    if form.name in (PRETRAINING, "retrieval"):
        heads["itm_score"] = MatchingHead(2 * width)
    if form.name == PRETRAINING:
        heads["mlm_score"] = WordHead(width, vocabulary)
    elif form.name == "retrieval":
        heads["rank_output"] = nn.Linear(2 * width, 1)
    else:
        heads[ANSWERING[form.name]] = _classifier(form.images * 2 * width, 2 * width, form.num_labels)
    return heads


def _classifier(inputs: int, inner: int, labels: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, inner), nn.LayerNorm(inner), nn.GELU(), nn.Linear(inner, labels))


def rank_as_matching(heads: dict[str, nn.Module]) -> None:
    """Ranking starts as the matching logit of yes; the matching head itself is not trained further."""
    ranking: Any = heads["rank_output"]
    matching: Any = heads["itm_score"]
    ranking.weight.data.copy_(matching.fc.weight.data[1:])
    ranking.bias.data.copy_(matching.fc.bias.data[1:])
    matching.requires_grad_(False)


def head_macs(head: nn.Module) -> int:
    """MACs of a head on one row: its linear layers and norms."""
    return sum(
        module.weight.numel() for module in head.modules() if isinstance(module, nn.Linear | nn.LayerNorm)
    )

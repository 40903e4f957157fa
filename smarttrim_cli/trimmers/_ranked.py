"""Baselines that keep a fixed share of an instance's tokens: the best by rank, whatever their scores are.

A token of rank r (0 is the best) among n removable ones has the quantile q = (r + 1/2) / n and the score
logit(share) - logit(q). So n * share of them, rounded, lie above threshold 0, and
n * sigmoid(logit(share) - threshold) above another: budgets are calibrated as for any trimmer.

Legend: R rows of a batch, N columns, see :mod:`smarttrim_cli.trimmers._per_instance`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from smarttrim_cli.trimmers.base import TokenView, Trimmer

KEEP = 1e6
"""Score of what no threshold in use drops."""


class RankedTrimmer(Trimmer):
    """A trimmer that follows the target by ranks; it has no scale that could be learned."""

    draws = True
    relative = True
    keep_fraction: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("keep_fraction", torch.ones(()))

    def set_target(self, keep_fraction: float) -> None:
        """Mean share of tokens kept over the layers of the stream."""
        self.keep_fraction.fill_(keep_fraction)


class KeepsAll(RankedTrimmer):
    """Stands at the layers that were not chosen: all that is left stays, at no cost."""

    def forward(self, view: TokenView) -> Tensor:
        """Scores with the leading shape of ``view.tokens``."""
        return torch.full(view.tokens.shape[:2], KEEP, device=view.tokens.device)


def share_logit(share: float) -> float:
    """logit(share), within what keeps or drops everything at threshold 0."""
    inside = min(max(share, 1e-4), 1 - 1e-4)
    return math.log(inside / (1 - inside)) + (20.0 if share >= 1.0 else 0.0)


def share_above(share: float, threshold: float) -> float:
    """The share that lies above a threshold: sigmoid(logit(share) - threshold)."""
    return 0.5 * (1 + math.tanh((share_logit(share) - threshold) / 2))


def rank_scores(priority_RN: Tensor, removable_RN: Tensor, share: float, spared: int = 0) -> Tensor:
    """Scores (R, N) by which the share of highest priority is kept; the CLS always is.

    Args:
        priority_RN: Any finite numbers; equal ones rank by position.
        removable_RN: Boolean, the tokens to rank.
        share: Share kept at threshold 0.
        spared: How many of the best are always kept, beside the share.
    """
    count_R1 = removable_RN.sum(1, keepdim=True)
    order_RN = priority_RN.masked_fill(~removable_RN, -torch.inf).argsort(dim=1, descending=True, stable=True)
    ranks_N = torch.arange(priority_RN.shape[1], device=priority_RN.device) - spared
    quantile_RN = ((ranks_N + 0.5) / count_R1).clamp(max=1 - 1e-6)
    by_rank_RN = share_logit(share) - torch.logit(quantile_RN)
    by_rank_RN[:, :spared] = KEEP
    scores_RN = torch.empty_like(by_rank_RN).scatter(1, order_RN, by_rank_RN)
    scores_RN[:, 0] = KEEP
    return scores_RN


def ranks(priority_RN: Tensor, removable_RN: Tensor) -> Tensor:
    """Rank (R, N) of every removable token, 0 for the highest priority; the others come last."""
    order_RN = priority_RN.masked_fill(~removable_RN, -torch.inf).argsort(dim=1, descending=True, stable=True)
    ranks_RN = torch.arange(order_RN.shape[1], device=order_RN.device).expand_as(order_RN)
    return torch.empty_like(order_RN).scatter(1, order_RN, ranks_RN)

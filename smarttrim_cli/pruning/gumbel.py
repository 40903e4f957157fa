"""From scores to decisions: Gumbel-sigmoid relaxation (Eq. 8) with a straight-through hard mask.

Feasibility runs showed that soft masks leak (training accuracy above evaluation): the forward pass uses the
hard mask, the backward pass the relaxation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from smarttrim_cli.pruning.sites import TOKEN


@dataclass(frozen=True)
class Sampling:
    """How scores become decisions while training.

    Attributes:
        temperature: tau of Eq. 8.
        noise: Share of the Gumbel noise, 0 (none) to 1 (Eq. 8).
        noisy: Whose scores get it: all, or ``heads``.
        straight_through: Whether scores get the gradient of what was decided; ``heads``: those of heads
            alone.
        gradient_scale: What the loss will be multiplied by before the backward pass (float16, accumulation).
    """

    temperature: float = 1.0
    noise: float = 1.0
    straight_through: bool | str = True
    noisy: str = "all"
    gradient_scale: float = 1.0

    def noise_of(self, kind: str) -> float:
        """Share of the noise that scores of sites of a kind get."""
        return 0.0 if self.noisy == "heads" and kind == TOKEN else self.noise

    def learns(self, kind: str) -> bool:
        """Whether scores of sites of a kind get that gradient."""
        return kind != TOKEN if self.straight_through == "heads" else bool(self.straight_through)


def logistic_noise(like: Tensor) -> Tensor:
    """G' - G'' for independent Gumbel(0, 1) variables: logistic noise of the same shape as ``like``."""
    uniform = torch.rand_like(like, dtype=torch.float32).clamp_(1e-6, 1 - 1e-6)
    return (torch.log(uniform) - torch.log1p(-uniform)).to(like.dtype)


def gumbel_sigmoid(noisy_scores: Tensor, temperature: float) -> Tensor:
    """M = sigmoid((pi + G' - G'') / tau), Eq. 8.

    Args:
        noisy_scores: pi + G' - G'', any shape; pi alone for the deterministic relaxation.
        temperature: tau > 0.
    """
    return torch.sigmoid(noisy_scores / temperature)


def hard_mask(scores: Tensor, threshold: float | Tensor = 0.0) -> Tensor:
    """M = 1[sigmoid(pi) > 0.5] for threshold 0, Eq. 6: a boolean keep mask."""
    return scores > threshold


def straight_through(hard: Tensor, relaxed: Tensor) -> Tensor:
    """Forward the hard mask as a float, backward the identity on ``relaxed``."""
    return hard.to(relaxed.dtype) + (relaxed - relaxed.detach())


def noisy(scores: Tensor, kind: str, sampling: Sampling | None, drawn: bool = False) -> Tensor:
    """Scores as the threshold meets them: with noise in training (Eq. 8), but for what was drawn."""
    noise = 0.0 if sampling is None or drawn else sampling.noise_of(kind)
    return scores if noise == 0 else scores + noise * logistic_noise(scores)


def keep_mask(scores: Tensor, kind: str, sampling: Sampling | None, threshold: float) -> Tensor:
    """Float keep mask of (noisy) scores at sites of a kind."""
    hard = hard_mask(scores, threshold)  # not the relaxation's, which bfloat16 rounds to a half
    if sampling is None or not sampling.learns(kind):
        return hard.to(scores.dtype)
    return straight_through(hard, gumbel_sigmoid(scores - threshold, sampling.temperature))

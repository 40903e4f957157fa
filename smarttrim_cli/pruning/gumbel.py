"""From scores to decisions: Gumbel-sigmoid relaxation (Eq. 8) with a straight-through hard mask.

Feasibility runs showed that soft masks leak (training accuracy above evaluation): the forward pass uses the
hard mask, the backward pass the relaxation.
"""

from __future__ import annotations

import torch
from torch import Tensor


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


def straight_through(relaxed: Tensor) -> Tensor:
    """Forward 1[relaxed > 0.5], backward the identity on ``relaxed``."""
    hard = (relaxed > 0.5).to(relaxed.dtype)
    return hard + (relaxed - relaxed.detach())

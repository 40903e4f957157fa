"""Learning to write text: targets of a decoder, and its loss as in the official BLIP (``models/med.py``).

Position t of a decoder predicts token t + 1. The loss of a token is cross-entropy with label smoothing 0.1.

Legend: B instances, A texts per instance, T tokens, V vocabulary, n real targets.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LABEL_SMOOTHING = 0.1
_IGNORED = -100


def next_tokens(ids_BAT: Tensor, mask_BAT: Tensor, given: int = 1) -> Tensor:
    """Targets (B, A, T - 1): the tokens after the first; negative where there is nothing to learn.

    Args:
        ids_BAT: Texts, right-padded.
        mask_BAT: 1 for tokens, 0 for padding.
        given: How many tokens at the start are given, not learned: the start token, or the whole prompt.
    """
    learned_BAT = mask_BAT.bool() & (torch.arange(ids_BAT.shape[-1]) >= given)
    return ids_BAT.masked_fill(~learned_BAT, _IGNORED)[..., 1:]


def token_losses(logits_BATV: Tensor, targets_BAT: Tensor) -> Tensor:
    """Loss of every target (B, A, T - 1); 0 where there is none."""
    logits = logits_BATV[..., :-1, :].float().flatten(0, -2)
    losses = F.cross_entropy(
        logits,
        targets_BAT.flatten(),
        ignore_index=_IGNORED,
        reduction="none",
        label_smoothing=LABEL_SMOOTHING,
    )
    return losses.view_as(targets_BAT)


def target_rows(logits_BATV: Tensor, targets_BAT: Tensor) -> Tensor:
    """The logits at real targets, (n, V)."""
    return logits_BATV[..., :-1, :][targets_BAT >= 0]

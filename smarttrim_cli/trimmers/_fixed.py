"""A trimmer whose decisions stand while the threshold of its model moves for the sake of others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from smarttrim_cli.trimmers._ranked import KEEP
from smarttrim_cli.trimmers.base import TokenView, Trimmer


class FixedTrimmer(Trimmer):
    """Decides as another trimmer does at a threshold of its own.

    Args:
        real: The trimmer.
        threshold: Its threshold.
    """

    draws = True
    real: Trimmer

    def __init__(self, real: Trimmer, threshold: float) -> None:
        super().__init__()
        self.real, self.threshold = real, threshold
        self.rewrites, self.relative = real.rewrites, real.relative

    def forward(self, *view: Any) -> Tensor:
        """Scores that no threshold in use turns around."""
        if isinstance(view[0], TokenView):
            view = (self._own(view[0]),)
        scores: Tensor = self.real(*view)
        return torch.where(scores > self.threshold, KEEP, -KEEP)

    def rewrite(self, view: TokenView, keep: Tensor) -> Tensor:
        """Of the real trimmer."""
        return self.real.rewrite(self._own(view), keep)

    def _own(self, view: TokenView) -> TokenView:
        return replace(view, threshold=self.threshold)

    def fixed_macs(self) -> int:
        """Of the real trimmer."""
        return self.real.fixed_macs()

    def token_macs(self) -> int:
        """Of the real trimmer."""
        return self.real.token_macs()

    def pair_macs(self) -> float:
        """Of the real trimmer."""
        return self.real.pair_macs()

"""Random decisions at the cost of real trimmers: for measuring models whose weights mean nothing."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from smarttrim_cli.trimmers.base import TokenView, Trimmer


class SimulatedTrimmer(Trimmer):
    """Runs a trimmer for its cost and returns the scores of a random one.

    Args:
        real: The trimmer whose work is done.
        random: The trimmer whose scores are returned.
    """

    draws = True
    real: Trimmer
    random: Trimmer

    def __init__(self, real: Trimmer, random: Trimmer) -> None:
        super().__init__()
        self.real, self.random = real, random
        self.rewrites, self.relative = real.rewrites, real.relative

    def forward(self, *view: Any) -> Tensor:
        """Scores of the random trimmer; the real one's are computed and cancelled."""
        scores: Tensor = self.real(*view)
        drawn: Tensor = self.random(*view)
        return drawn + (scores - scores)

    def rewrite(self, view: TokenView, keep: Tensor) -> Tensor:
        """Of the real trimmer, given what was kept at random."""
        return self.real.rewrite(view, keep)

    def set_target(self, keep_fraction: float) -> None:
        """Passed on to both."""
        self.real.set_target(keep_fraction)
        self.random.set_target(keep_fraction)

    def fixed_macs(self) -> int:
        """Of the real trimmer."""
        return self.real.fixed_macs()

    def token_macs(self) -> int:
        """Of the real trimmer."""
        return self.real.token_macs()

    def pair_macs(self) -> float:
        """Of the real trimmer."""
        return self.real.pair_macs()

"""Where a training is, and the losses that were not yet logged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Progress:
    """Where training is."""

    step: int = 0
    warmup_step: int = 0
    best_score: float | None = None
    best_step: int | None = None
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    """Losses since they were last logged."""
    counts: dict[str, int] = field(default_factory=dict)
    """Of how many steps; what trimming brings begins amid them."""

    def __post_init__(self) -> None:
        """Checkpoints of older versions have no counts: their sums are left."""
        self.sums = {name: value for name, value in self.sums.items() if name in self.counts}

    def add(self, terms: Mapping[str, float]) -> None:
        """The losses of a step."""
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def take_means(self) -> dict[str, float]:
        """Means since they were last taken."""
        means = {name: value / self.counts[name] for name, value in self.sums.items()}
        self.sums, self.counts = {}, {}
        return means

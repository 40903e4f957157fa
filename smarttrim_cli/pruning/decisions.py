"""What was kept where: the log of a forward pass, in original positions, independent of the mode."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from smarttrim_cli.pruning.stream import PackedStream, Stream


@dataclass
class Decisions:
    """Decisions of one forward pass.

    Attributes:
        keep: Site name to keep mask: (B, N) in original positions for tokens (cumulative), (B, H) for heads;
            boolean.
        scores: Site name to scores, with the shape of the mask; NaN where a token was dropped before
            (``packed``).
        valid: Stream name to the mask of real tokens, (B, N).
        counts: Site name to kept tokens or heads per instance, (B,); float and differentiable in ``masked``
            mode.
    """

    keep: dict[str, Tensor] = field(default_factory=dict)
    scores: dict[str, Tensor] = field(default_factory=dict)
    valid: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)

    def detach(self) -> Decisions:
        """A copy without gradients."""
        parts = (self.keep, self.scores, self.valid, self.counts)
        return Decisions(*({k: v.detach() for k, v in part.items()} for part in parts))

    def removable_B(self, stream: str) -> Tensor:
        """Real tokens per instance that may be dropped: all but the CLS."""
        return self.valid[stream].sum(1) - 1

    def instance(self, index: int) -> Decisions:
        """The decisions of one instance, as a batch of one."""
        parts = (self.keep, self.scores, self.valid, self.counts)
        return Decisions(*({k: v[index : index + 1] for k, v in part.items()} for part in parts))


def unpack(stream: PackedStream, values_T: Tensor, fill: float | bool) -> Tensor:
    """Values of packed tokens at their original positions, (B, N); ``fill`` elsewhere."""
    batch = len(stream.lengths)
    grid = torch.full((batch * stream.size,), fill, dtype=values_T.dtype, device=values_T.device)
    grid[stream.segment_T * stream.size + stream.positions_T] = values_T
    return grid.view(batch, stream.size)


def keep_grid(stream: Stream) -> Tensor:
    """Boolean keep mask (B, N) in original positions."""
    if isinstance(stream, PackedStream):
        return unpack(stream, torch.ones_like(stream.positions_T, dtype=torch.bool), False)
    return stream.keep_BN.detach() > 0.5

"""What was kept where: the log of a forward pass, in original positions, independent of the mode."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from smarttrim_cli.pruning.sites import Site
from smarttrim_cli.pruning.stream import PackedStream, Stream


@dataclass
class Decisions:
    """Decisions of one forward pass over B instances.

    A stream has R rows, ``copies`` of it per instance, instance after instance (R = B but for two images, or
    several texts, of an instance).

    Attributes:
        keep: Site name to keep mask: (R, N) in original positions for tokens (cumulative), (R, H) for heads;
            boolean.
        scores: Site name to scores, with the shape of the mask; NaN where a token was dropped before
            (``packed``).
        valid: Stream name to the mask of real tokens, (R, N).
        counts: Site name to kept tokens or heads per row, (R,); float and differentiable in ``masked``
            mode.
        copies: Stream name to rows per instance; absent means 1.
        work: What decoders did, per instance, (B,): see :mod:`smarttrim_cli.pruning.cost`.
    """

    keep: dict[str, Tensor] = field(default_factory=dict)
    scores: dict[str, Tensor] = field(default_factory=dict)
    valid: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)
    copies: dict[str, int] = field(default_factory=dict)
    work: dict[str, Tensor] = field(default_factory=dict)

    def removable_B(self, stream: str) -> Tensor:
        """Real tokens per row that may be dropped: all but the CLS."""
        return self.valid[stream].sum(1) - 1

    def by_instance(self, stream: str, rows_R: Tensor) -> Tensor:
        """Values per row, (R,), as (B,), or (B, copies) where instances have several rows."""
        copies = self.copies.get(stream, 1)
        return rows_R if copies == 1 else rows_R.view(-1, copies)

    def instance(self, index: int) -> Decisions:
        """The decisions of one instance, as a batch of one."""

        def of_site(values: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: value[self._rows(Site.parse(name).stream, index)] for name, value in values.items()}

        valid = {name: value[self._rows(name, index)] for name, value in self.valid.items()}
        work = {name: value[index : index + 1] for name, value in self.work.items()}
        return Decisions(
            of_site(self.keep), of_site(self.scores), valid, of_site(self.counts), dict(self.copies), work
        )

    def _rows(self, stream: str, index: int) -> slice:
        copies = self.copies.get(stream, 1)
        return slice(index * copies, (index + 1) * copies)


def unpack(stream: PackedStream, values_T: Tensor, fill: float | bool) -> Tensor:
    """Values of packed tokens at their original positions, (R, N); ``fill`` elsewhere."""
    batch = len(stream.lengths)
    grid = torch.full((batch * stream.size,), fill, dtype=values_T.dtype, device=values_T.device)
    grid[stream.segment_T * stream.size + stream.positions_T] = values_T
    return grid.view(batch, stream.size)


def keep_grid(stream: Stream) -> Tensor:
    """Boolean keep mask (R, N) in original positions."""
    if isinstance(stream, PackedStream):
        return unpack(stream, torch.ones_like(stream.positions_T, dtype=torch.bool), False)
    return stream.keep_BN.detach() > 0.5

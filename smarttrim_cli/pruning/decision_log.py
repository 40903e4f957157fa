"""What a forward pass notes of its decisions while it runs, and laying it out afterwards.

A forward whose decisions nobody reads pays nothing for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from smarttrim_cli.pruning.decisions import Decisions, keep_grid, unpack
from smarttrim_cli.pruning.sites import Architecture, Site
from smarttrim_cli.pruning.stream import PackedStream, Stream


@dataclass
class DecisionLog:
    """Decisions in the order in which they were taken.

    Attributes:
        tokens: Token site to the stream as it went on from there.
        heads: Head site to its keep mask (R, H); None where all are kept.
        scores: Site to its scores and, for tokens, the stream that was scored.
    """

    tokens: dict[str, Stream] = field(default_factory=dict)
    heads: dict[str, Tensor | None] = field(default_factory=dict)
    scores: dict[str, tuple[Stream | None, Tensor]] = field(default_factory=dict)

    def laid_out(self, architecture: Architecture, cls: Mapping[str, Tensor]) -> Decisions:
        """What was kept, how many, and the scores, in original positions.

        Args:
            architecture: Says how many heads there are.
            cls: Stream to the CLS of its rows, (R, D).
        """
        out = Decisions()
        for name, stream in self.tokens.items():
            out.keep[name] = keep_grid(stream)
            out.counts[name] = stream.counts_B()
        for name, mask_RH in self.heads.items():
            if mask_RH is None:
                site = Site.parse(name)
                heads = architecture.layer(site.stream, site.layer).attention(site.kind).heads
                mask_RH = cls[site.stream].new_ones(cls[site.stream].shape[0], heads)
            out.keep[name] = mask_RH.detach() > 0.5
            out.counts[name] = mask_RH.sum(1)
        for name, (scored, scores) in self.scores.items():
            if isinstance(scored, PackedStream):
                scores = unpack(scored, scores[0], float("nan"))
            out.scores[name] = scores
        return out

"""Baseline of the paper: drop a random share of the tokens, at training and at inference.

Every token draws one number for the whole forward; the share kept falls linearly with depth, so that its
mean over layers is the target. The threshold shifts the share, so budgets are calibrated as for any other
trimmer.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from smarttrim_cli.trimmers._hashing import site_seed, uniform
from smarttrim_cli.trimmers._layers import EveryFewLayers
from smarttrim_cli.trimmers._profile import kept_by_layer
from smarttrim_cli.trimmers.base import SiteInfo, TokenView, Trimmer

SCORES = "token"


class Options(EveryFewLayers):
    """Recipe section of this trimmer."""

    seed: int = Field(default=0, description="another seed, another draw")


class RandomTokenTrimmer(Trimmer):
    """Scores: logit(share kept at this depth) - logit(the token's own number)."""

    draws = True
    keep_fraction: Tensor

    def __init__(self, site: SiteInfo, layers: tuple[int, ...], seed: int) -> None:
        super().__init__()
        self.index, self.depth, self.layers = site.index, site.depth, layers
        self.seed = site_seed(f"{site.name.split('.')[0]}/{seed}")
        self.register_buffer("keep_fraction", torch.ones(()))

    def set_target(self, keep_fraction: float) -> None:
        """Mean share of tokens kept over the layers of the stream."""
        self.keep_fraction.fill_(keep_fraction)

    def forward(self, view: TokenView) -> Tensor:
        """Scores with the leading shape of ``view.tokens``."""
        share = kept_by_layer(float(self.keep_fraction), self.depth, self.layers)[self.index]
        positions = view.stream.positions
        draw = uniform(self.seed, view.instance_ids, positions)
        limit = torch.tensor(min(max(share, 1e-4), 1 - 1e-4))
        return torch.logit(limit) - torch.logit(draw) + (20.0 if share >= 1.0 else 0.0)


def build(options: Options, site: SiteInfo) -> RandomTokenTrimmer | None:
    """A trimmer for one token site; None where tokens just pass."""
    if not options.act_at(site):
        return None
    return RandomTokenTrimmer(site, options.layers(site.depth), options.seed)

"""Baseline of the paper: drop a random share of the heads of every module, anew for every instance."""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from smarttrim_cli.trimmers._hashing import site_seed, uniform
from smarttrim_cli.trimmers.base import SiteInfo, Trimmer

SCORES = "head"


class Options(BaseModel):
    """Recipe section of this trimmer."""

    model_config = ConfigDict(extra="forbid")
    seed: int = Field(default=0, description="another seed, another draw")


class RandomHeadTrimmer(Trimmer):
    """Scores: logit(share kept) - logit(the head's own number)."""

    draws = True
    keep_fraction: Tensor

    def __init__(self, name: str, heads: int, seed: int) -> None:
        super().__init__()
        self.heads, self.seed = heads, site_seed(f"{name}/{seed}")
        self.register_buffer("keep_fraction", torch.ones(()))

    def set_target(self, keep_fraction: float) -> None:
        """Mean share of heads kept."""
        self.keep_fraction.fill_(keep_fraction)

    def forward(self, own_cls_BD: Tensor, guide_cls_BD: Tensor | None, instance_ids_B: Tensor) -> Tensor:
        """Scores (B, H)."""
        ids_BH = instance_ids_B[:, None].expand(-1, self.heads)
        heads_BH = torch.arange(self.heads, device=ids_BH.device).expand_as(ids_BH)
        draw = uniform(self.seed, ids_BH, heads_BH)
        share = self.keep_fraction.clamp(1e-4, 1 - 1e-4)
        return torch.logit(share) - torch.logit(draw) + (self.keep_fraction >= 1.0) * 20.0


def build(options: Options, site: SiteInfo) -> RandomHeadTrimmer:
    """A trimmer for one head site."""
    return RandomHeadTrimmer(site.name, site.heads, options.seed)

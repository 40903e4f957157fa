"""Baseline of the paper: grad-layer, the most important heads of each attention, the same for every instance.

Every attention keeps the share of its heads, rounded. Attentions of one size would all lose a head at the
same threshold; they take turns within a narrow band of it instead, the head of least importance first, so
that a budget can be met to one head of the model.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from smarttrim_cli.trimmers._importance import (
    ImportanceTrimmer,
    normalised,
    places_among,
    places_in_model,
)
from smarttrim_cli.trimmers.base import SiteInfo

SCORES = "head"
_BAND = 0.05
"""Width of the band in which attentions take turns, in ranks."""


class Options(BaseModel):
    """Recipe section of this trimmer."""

    model_config = ConfigDict(extra="forbid")


class GradLayerTrimmer(ImportanceTrimmer):
    """An order of heads in every attention."""

    def places(self, name: str, importance: Mapping[str, Tensor]) -> Tensor:
        """Places (H) among the heads of the site."""
        turns_H = places_in_model(name, normalised(importance)) - 0.5
        own_H = importance[name]
        return places_among(own_H) + _BAND / len(own_H) * turns_H


def build(options: Options, site: SiteInfo) -> GradLayerTrimmer:
    """A trimmer for one head site."""
    return GradLayerTrimmer(site.heads)

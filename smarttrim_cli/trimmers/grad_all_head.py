"""Baseline of the paper: grad-all, the most important heads of the whole model, the same for every instance.

A module may lose all its heads. "The whole model" are the attentions that the recipe trims. They share one
share: where ``target_sparsity`` names several, it is their mean.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from smarttrim_cli.trimmers._importance import ImportanceTrimmer, normalised, places_in_model
from smarttrim_cli.trimmers.base import SiteInfo

SCORES = "head"


class Options(BaseModel):
    """Recipe section of this trimmer."""

    model_config = ConfigDict(extra="forbid")
    normalise: bool = Field(
        default=True,
        description="whether importances are divided by their l2 norm in each attention (Michel et al. 2019)",
    )


class GradAllTrimmer(ImportanceTrimmer):
    """One order of all heads."""

    one_target = True

    def __init__(self, heads: int, normalise: bool) -> None:
        super().__init__(heads)
        self.normalise = normalise

    def places(self, name: str, importance: Mapping[str, Tensor]) -> Tensor:
        """Places (H) among the heads of all sites."""
        return places_in_model(name, normalised(importance) if self.normalise else importance)


def build(options: Options, site: SiteInfo) -> GradAllTrimmer:
    """A trimmer for one head site."""
    return GradAllTrimmer(site.heads, options.normalise)

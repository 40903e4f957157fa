"""Static head pruning by the full model's own saliency (ours): the same heads go for every instance.

The importance of a head is E_x |d answer / d m|, with m a mask on its context and the answer what the model
itself says (:func:`smarttrim_cli.pruning.saliency.own_answer`); the engine measures it when trimming begins.
It differs from grad-all in what is differentiated: the loss on pseudo-labels of a model that is sure of its
answers is flat, so that a few unsure instances decide. Magnitudes are compared over the whole model as they
are.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from smarttrim_cli.trimmers._importance import ImportanceTrimmer, places_in_model
from smarttrim_cli.trimmers.base import SiteInfo

SCORES = "head"


class Options(BaseModel):
    """Recipe section of this trimmer: there is nothing to choose."""

    model_config = ConfigDict(extra="forbid")


class SaliencyHeadTrimmer(ImportanceTrimmer):
    """Keeps the heads of highest saliency in the whole model."""

    one_target = True
    importance_of = "answer"

    def places(self, name: str, importance: Mapping[str, Tensor]) -> Tensor:
        """Places (H) among the heads of all sites."""
        return places_in_model(name, importance)


def build(options: Options, site: SiteInfo) -> SaliencyHeadTrimmer:
    """A trimmer for one head site."""
    return SaliencyHeadTrimmer(site.heads)

"""Static head pruning by importance: the same heads go for every instance.

The importance of a head is that of Michel et al. (2019), |A^T dL/dA| with its context A, mean over instances
(the paper, Appendix C); the engine measures it on pseudo-labels. A head at place q of an order (q rises from
0 to 1 as importance falls) has the score logit(share) - logit(q): the share of highest importance lies above
threshold 0, and the share sigmoid(logit(share) - threshold) above another, so that budgets are calibrated as
for any trimmer. Scores may be shifted, so that it is another threshold at which the share is kept.

Legend: B rows of a batch, H heads of one module, A heads of all modules.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from smarttrim_cli.trimmers.base import Trimmer


class ImportanceTrimmer(Trimmer):
    """Keeps the heads of highest importance; a subclass says in which order they go."""

    draws = True
    static = True
    by_importance = True
    keep_fraction: Tensor
    importance_H: Tensor
    place_H: Tensor
    shift: Tensor

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.register_buffer("keep_fraction", torch.ones(()))
        self.register_buffer("shift", torch.zeros(()))
        self.register_buffer("importance_H", torch.zeros(heads))
        self.register_buffer("place_H", (torch.arange(heads) + 0.5) / heads)

    @abstractmethod
    def places(self, name: str, importance: Mapping[str, Tensor]) -> Tensor:
        """Places (H) in the order, within 0 and 1, of the heads of a site."""

    def set_importance(self, name: str, importance: Mapping[str, Tensor]) -> None:
        """Rank the heads; until then they rank by number."""
        self.importance_H.copy_(importance[name])
        self.place_H.copy_(self.places(name, importance))

    def set_target(self, keep_fraction: float) -> None:
        """Share of heads kept."""
        self.keep_fraction.fill_(keep_fraction)

    def shift_scores(self, amount: float) -> None:
        """Move the threshold at which the target is met."""
        self.shift.add_(amount)

    def level(self) -> float:
        """The threshold at which the target is met."""
        return float(self.shift)

    def forward(self, own_cls_BD: Tensor, guide_cls_BD: Tensor | None, instance_ids_B: Tensor) -> Tensor:
        """Scores (B, H), the same in every row."""
        share = self.keep_fraction.clamp(1e-4, 1 - 1e-4)
        scores_H = torch.logit(share) - torch.logit(self.place_H) + (self.keep_fraction >= 1.0) * 20.0
        return (scores_H + self.shift).expand(len(own_cls_BD), -1)


def normalised(importance: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Importances divided by their l2 norm in each module, as Michel et al. do by layer."""
    return {name: values_H / values_H.norm().clamp(min=1e-30) for name, values_H in importance.items()}


def places_among(values: Tensor) -> Tensor:
    """Place of every value among all, (rank + 1/2) / count, the highest first; equal ones by position."""
    order = values.argsort(descending=True, stable=True)
    ranks = torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=order.device))
    return (ranks + 0.5) / len(values)


def places_in_model(name: str, importance: Mapping[str, Tensor]) -> Tensor:
    """Places (H) of the heads of a site among all heads, A of them."""
    places_A = places_among(torch.cat(list(importance.values())))
    own = list(importance).index(name)
    return places_A.split([len(values_H) for values_H in importance.values()])[own]

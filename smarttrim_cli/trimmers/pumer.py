"""Baseline: PuMer (Cao et al. 2023), tokens that the text has no use for go, then similar ones are merged.

This happens at a few layers. Image tokens are pruned by the attention logits of the guiding CLS. PuMer reads
the cross-attention of the host; here query and key are projections of the trimmer's own, trained straight
through the decision, whose gradient ends there: in PuMer it does not reach the host either. Of what is left,
similar tokens are merged as in ToMe, by the layer's input (in PuMer by the keys of its attention). The two
sets alternate over the tokens before pruning, so that what is computed depends on no decision. Text is only
merged.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from smarttrim_cli.trimmers._layers import chosen_layers
from smarttrim_cli.trimmers._matching import matched, merge, partners, similarity
from smarttrim_cli.trimmers._per_instance import Rows, rows_of
from smarttrim_cli.trimmers._profile import step_ratio
from smarttrim_cli.trimmers._ranked import (
    KeepsAll,
    RankedTrimmer,
    rank_scores,
    ranks,
    share_above,
)
from smarttrim_cli.trimmers.base import SiteInfo, TokenView, Trimmer

SCORES = "token"
_DEFAULT_LAYERS = (1 / 6, 5 / 12, 2 / 3)


class Options(BaseModel):
    """Recipe section of this trimmer."""

    model_config = ConfigDict(extra="forbid")
    layers: list[int] | None = Field(
        default=None,
        min_length=1,
        description="layers of a stream, from 0, at whose input tokens are pruned and merged; default: after "
        "a sixth, five twelfths and two thirds of its layers",
    )
    merged: float = Field(
        default=0.7, ge=0, le=1, description="share of the removed image tokens that is merged, not pruned"
    )
    hidden_dim: int = Field(default=96, ge=1, le=100_000, description="width of query and key")


@dataclass(frozen=True)
class _Plan:
    """What is done to the rows of a view; the similarity of the sets A and B of the matching."""

    rows: Rows
    logits_RN: Tensor
    ranks_RN: Tensor
    pruned_RN: Tensor
    similarity_RAB: Tensor


class PumerTrimmer(RankedTrimmer):
    """Prunes what has the lowest logits, then merges the most similar of what is left."""

    rewrites = True

    def __init__(self, site: SiteInfo, layers: tuple[int, ...], options: Options) -> None:
        super().__init__()
        self.layers, self.depth = layers, site.depth
        self.merged = 1.0 if site.name.startswith("text.") else options.merged
        self.query = nn.Linear(site.guide_width or site.width, options.hidden_dim)
        self.key = nn.Linear(site.width, options.hidden_dim, bias=False)

    @property
    def _share(self) -> float:
        return step_ratio(float(self.keep_fraction), self.depth, self.layers)

    def forward(self, view: TokenView) -> Tensor:
        """Scores with the leading shape of ``view.tokens``; gradients reach the logits straight through."""
        plan = view.notes["plan"] = self._plan(view)
        rows, logits_RN = plan.rows, plan.logits_RN.float()
        open_RN = rows.removable_RN & ~plan.pruned_RN
        best_RA, _ = partners(plan.similarity_RAB, open_RN[:, 1::2])
        use_RN = -plan.ranks_RN / plan.ranks_RN.shape[1]  # from 0 down to -1
        priority_RN = use_RN + 3.0  # set B; kept before any of set A
        priority_RN[:, ::2] = -best_RA.float()
        priority_RN = torch.where(plan.pruned_RN, use_RN - 3.0, priority_RN)
        scores_RN = rank_scores(priority_RN, rows.removable_RN, self._share)
        return rows.back(scores_RN + (logits_RN - logits_RN.detach()))

    def rewrite(self, view: TokenView, keep: Tensor) -> Tensor:
        """Dropped tokens that were not pruned, averaged into their most similar kept one."""
        plan = view.notes.get("plan") or self._plan(view)
        rows = plan.rows
        kept_RN = rows.lay(keep)
        merged_RN = rows.removable_RN & ~plan.pruned_RN & ~kept_RN
        merged_RA, partner_RA = matched(plan.similarity_RAB, merged_RN[:, ::2], kept_RN[:, 1::2])
        return rows.back(merge(rows.lay(view.tokens), merged_RA, partner_RA))

    def _plan(self, view: TokenView) -> _Plan:
        rows = rows_of(view)
        guide_RD = view.own_cls_BD if view.guide_cls_BD is None else view.guide_cls_BD
        tokens = view.tokens.detach()
        key_RND = rows.lay(self.key(tokens))
        query_RD1 = self.query(guide_RD.detach()).unsqueeze(-1)
        logits_RN = (key_RND @ query_RD1).squeeze(-1) / key_RND.shape[-1] ** 0.5
        ranks_RN = ranks(logits_RN.detach(), rows.removable_RN)
        pruned_RN = rows.removable_RN & self._pruned(ranks_RN, rows.removable_RN, view.threshold)
        return _Plan(rows, logits_RN, ranks_RN, pruned_RN, similarity(rows.lay(tokens)))

    def _pruned(self, ranks_RN: Tensor, removable_RN: Tensor, threshold: float) -> Tensor:
        """Whether a rank is pruned; more than their share where half of the rest cannot be merged."""
        count_R1 = removable_RN.sum(1, keepdim=True)
        kept_R1 = torch.ceil(count_R1 * share_above(self._share, threshold) - 0.5)
        removed_R1 = count_R1 - kept_R1
        pruned_R1 = torch.maximum(torch.round(removed_R1 * (1 - self.merged)), 2 * removed_R1 - count_R1)
        return ranks_RN >= count_R1 - pruned_R1

    def fixed_macs(self) -> int:
        """The query."""
        return self.query.weight.numel()

    def token_macs(self) -> int:
        """The key and its product with the query."""
        return self.key.weight.numel() + self.key.out_features

    def pair_macs(self) -> float:
        """Half of the tokens are compared with the other half."""
        return self.key.in_features / 4


def build(options: Options, site: SiteInfo) -> Trimmer:
    """A trimmer for one token site."""
    layers = chosen_layers(options.layers, site.depth, _DEFAULT_LAYERS)
    return PumerTrimmer(site, layers, options) if site.index in layers else KeepsAll()

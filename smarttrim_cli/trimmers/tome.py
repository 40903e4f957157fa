"""Baseline: ToMe (Bolya et al. 2023), similar tokens are merged at every layer. Nothing is learned.

The tokens of an instance alternate between two sets; those of the first that are most similar to one of the
second are merged into it. Differences to the published method: similarity is taken of the layer's input,
not of its keys; merged tokens are plain means at every layer and attention is not proportional to their
size, since trimmers keep no state between layers.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from smarttrim_cli.trimmers._matching import matched, merge, partners, similarity
from smarttrim_cli.trimmers._per_instance import Rows, rows_of
from smarttrim_cli.trimmers._profile import ratio_at
from smarttrim_cli.trimmers._ranked import KEEP, RankedTrimmer, rank_scores
from smarttrim_cli.trimmers.base import SiteInfo, TokenView

SCORES = "token"


class Options(BaseModel):
    """Recipe section of this trimmer."""

    model_config = ConfigDict(extra="forbid")


class TomeTrimmer(RankedTrimmer):
    """Keeps the second set, and of the first what is least similar to it; at most half is merged."""

    rewrites = True

    def __init__(self, index: int, depth: int, width: int) -> None:
        super().__init__()
        self.index, self.depth, self.width = index, depth, width

    def forward(self, view: TokenView) -> Tensor:
        """Scores with the leading shape of ``view.tokens``."""
        rows, similarity_RAB = view.notes["similarity"] = self._compare(view)
        best_RA, _ = partners(similarity_RAB, rows.removable_RN[:, 1::2])
        priority_RN = best_RA.new_full(rows.removable_RN.shape, 2.0)
        priority_RN[:, ::2] = -best_RA
        share = ratio_at(float(self.keep_fraction), self.depth, self.index)
        scores_RN = rank_scores(priority_RN.detach(), rows.removable_RN, share)
        scores_RN[:, 1::2] = KEEP
        return rows.back(scores_RN)

    def rewrite(self, view: TokenView, keep: Tensor) -> Tensor:
        """Dropped tokens of the first set, averaged into their most similar kept one of the second."""
        rows, similarity_RAB = view.notes.get("similarity") or self._compare(view)
        tokens_RND, kept_RN = rows.lay(view.tokens), rows.lay(keep)
        dropped_RN = rows.removable_RN & ~kept_RN
        merged_RA, partner_RA = matched(similarity_RAB, dropped_RN[:, ::2], kept_RN[:, 1::2])
        return rows.back(merge(tokens_RND, merged_RA, partner_RA))

    def _compare(self, view: TokenView) -> tuple[Rows, Tensor]:
        rows = rows_of(view)
        return rows, similarity(rows.lay(view.tokens.detach()))

    def pair_macs(self) -> float:
        """Half of the tokens are compared with the other half."""
        return self.width / 4


def build(options: Options, site: SiteInfo) -> TomeTrimmer:
    """A trimmer for one token site."""
    return TomeTrimmer(site.index, site.depth, site.width)

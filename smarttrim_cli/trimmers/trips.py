"""Baseline of the paper: TRIPS (Jiang et al. 2022), top-k of what the text attends to, the rest fused.

At a few layers the CLS of the text attends to the tokens of an instance. The share with the most attention
flows on, and one token that stands for all others: their mean, weighted by attention. TRIPS takes queries and
keys from the host's own layer; here they are projections of the trimmer's own, since it sees tokens only.
As in TRIPS the choice itself has no gradient; the projections learn through the weights of the fused token.
"""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from smarttrim_cli.trimmers._layers import chosen_layers
from smarttrim_cli.trimmers._per_instance import Rows, rows_of
from smarttrim_cli.trimmers._profile import step_ratio
from smarttrim_cli.trimmers._ranked import KeepsAll, RankedTrimmer, rank_scores
from smarttrim_cli.trimmers.base import SiteInfo, TokenView, Trimmer

SCORES = "token"
_DEFAULT_LAYERS = (1 / 6, 1 / 2)


class Options(BaseModel):
    """Recipe section of this trimmer."""

    model_config = ConfigDict(extra="forbid")
    layers: list[int] | None = Field(
        default=None,
        min_length=1,
        description="layers of a stream, from 0, at whose input tokens are chosen; default: after a sixth "
        "and after half of its layers",
    )
    fuse: bool = Field(default=True, description="fuse the dropped tokens into one; false: a plain top-k")
    hidden_dim: int = Field(
        default=96, ge=1, le=100_000, description="width of query and key, all heads together"
    )
    heads: int = Field(
        default=4, ge=1, le=1000, description="heads of the attention; the mean over them counts"
    )

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Options:
        if self.hidden_dim % self.heads:
            raise ValueError("hidden_dim must be a multiple of heads")
        return self


def log_attention(query_RD: Tensor, key_RND: Tensor, removable_RN: Tensor, heads: int) -> Tensor:
    """Log of a query's attention to the removable tokens of its row, summed over heads, (R, N)."""
    query_RHD1 = query_RD.unflatten(-1, (heads, -1)).unsqueeze(-1)
    key_RHND = key_RND.unflatten(-1, (heads, -1)).transpose(1, 2)
    logits_RHN = (key_RHND @ query_RHD1).squeeze(-1) / key_RHND.shape[-1] ** 0.5
    masked_RHN = logits_RHN.masked_fill(~removable_RN.unsqueeze(1), torch.finfo(logits_RHN.dtype).min)
    wide = torch.promote_types(masked_RHN.dtype, torch.float32)
    return masked_RHN.log_softmax(-1, dtype=wide).logsumexp(1)


def fuse_dropped(
    tokens_RND: Tensor, log_attention_RN: Tensor, removable_RN: Tensor, kept_RN: Tensor
) -> Tensor:
    """Tokens (R, N, D) with one that stands for all dropped ones.

    The kept token with the least attention gives its place, and counts among those that are fused. Rows that
    drop nothing, or keep nothing but the CLS, stay as they are. (TRIPS leaves the weights as they are; here
    they sum to 1, so that the fused token is of the size of a token.)
    """
    kept_RN = kept_RN & removable_RN
    dropped_RN = removable_RN & ~kept_RN
    slot_R1 = log_attention_RN.masked_fill(~kept_RN, torch.inf).argmin(1, keepdim=True)
    slot_RN = torch.arange(kept_RN.shape[1], device=kept_RN.device) == slot_R1
    least = torch.finfo(log_attention_RN.dtype).min
    weights_R1N = log_attention_RN.masked_fill(~(dropped_RN | slot_RN), least).softmax(-1).unsqueeze(1)
    fused_R1D = weights_R1N.to(tokens_RND.dtype) @ tokens_RND
    fuses_R1 = (dropped_RN.any(1) & kept_RN.any(1)).unsqueeze(1)
    return torch.where((slot_RN & fuses_R1).unsqueeze(-1), fused_R1D, tokens_RND)


class TripsTrimmer(RankedTrimmer):
    """Top-k by the attention of the guiding CLS: the text's, or the stream's own under ``self`` guidance."""

    def __init__(self, site: SiteInfo, layers: tuple[int, ...], options: Options) -> None:
        super().__init__()
        self.layers, self.depth, self.heads = layers, site.depth, options.heads
        self.rewrites = options.fuse
        self.query = nn.Linear(site.guide_width or site.width, options.hidden_dim)
        self.key = nn.Linear(site.width, options.hidden_dim, bias=False)

    def forward(self, view: TokenView) -> Tensor:
        """Scores with the leading shape of ``view.tokens``."""
        rows, log_attention_RN = view.notes["attention"] = self._attend(view)
        share = step_ratio(float(self.keep_fraction), self.depth, self.layers)
        spared = 1 if self.rewrites else 0  # the place of the fused token
        scores_RN = rank_scores(log_attention_RN.detach(), rows.removable_RN, share, spared)
        if not self.rewrites:  # nothing else would teach the projections anything
            scores_RN = scores_RN + (log_attention_RN - log_attention_RN.detach())
        return rows.back(scores_RN)

    def rewrite(self, view: TokenView, keep: Tensor) -> Tensor:
        """The kept tokens, the last of them replaced by the fused one."""
        rows, log_attention_RN = view.notes.get("attention") or self._attend(view)
        tokens_RND = rows.lay(view.tokens)
        return rows.back(fuse_dropped(tokens_RND, log_attention_RN, rows.removable_RN, rows.lay(keep)))

    def _attend(self, view: TokenView) -> tuple[Rows, Tensor]:
        rows = rows_of(view)
        guide_RD = view.own_cls_BD if view.guide_cls_BD is None else view.guide_cls_BD
        key_RND = rows.lay(self.key(view.tokens))
        return rows, log_attention(self.query(guide_RD), key_RND, rows.removable_RN, self.heads)

    def fixed_macs(self) -> int:
        """The query."""
        return self.query.weight.numel()

    def token_macs(self) -> int:
        """The key, its product with the query, and the token's share of the fused one."""
        return self.key.weight.numel() + self.key.out_features + self.rewrites * self.key.in_features


def build(options: Options, site: SiteInfo) -> Trimmer:
    """A trimmer for one token site."""
    layers = chosen_layers(options.layers, site.depth, _DEFAULT_LAYERS)
    return TripsTrimmer(site, layers, options) if site.index in layers else KeepsAll()

"""The head trimmer of the paper, Eq. 7: scores from the CLS vectors alone.

Self-attention heads are judged by the stream's own CLS, cross-attention heads by both.
"""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from smarttrim_cli.trimmers.base import ClsMlp, SiteInfo, Trimmer, add_to_bias

SCORES = "head"


class Options(BaseModel):
    """Recipe section of this trimmer."""

    model_config = ConfigDict(extra="forbid")
    hidden_dim: int = Field(
        default=64, ge=1, le=100_000, description="hidden width of MLP_s and MLP_c (Eq. 7)"
    )


class GlobalHeadTrimmer(Trimmer):
    """pi_h = MLP_s(c_s) for self-attention, MLP_c([c_s ; c_c]) for cross-attention, Eq. 7."""

    def __init__(self, width: int, guide_width: int, hidden_dim: int, heads: int) -> None:
        super().__init__()
        self.guided = guide_width > 0
        self.mlp = nn.Sequential(
            nn.Linear(width + guide_width, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, heads)
        )

    def forward(self, own_cls_BD: Tensor, guide_cls_BD: Tensor | None, instance_ids_B: Tensor) -> Tensor:
        """Scores (B, H)."""
        if self.guided and guide_cls_BD is not None:
            own_cls_BD = torch.cat((own_cls_BD, guide_cls_BD), -1)
        return self.mlp(own_cls_BD)

    def cls_mlp(self) -> ClsMlp:
        """All of it."""
        first, second = self.mlp[0], self.mlp[2]
        assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
        return ClsMlp(first, second.weight, second.bias)

    def start_keeping(self, keep_logit: float) -> None:
        """The final bias starts at ``keep_logit``, the final weights small."""
        last = self.mlp[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            last.weight.mul_(0.1)
            last.bias.fill_(keep_logit)

    def shift_scores(self, amount: float) -> None:
        """Add to the final bias."""
        add_to_bias(self.mlp, amount)

    def fixed_macs(self) -> int:
        """Both linear layers, once per instance."""
        return sum(layer.weight.numel() for layer in self.mlp if isinstance(layer, nn.Linear))


def build(options: Options, site: SiteInfo) -> GlobalHeadTrimmer:
    """A trimmer for one head site."""
    kind = site.name.rpartition(".")[2]  # the second cross-attention to a pair of images is cross_head1
    guide = site.guide_width if kind.startswith("cross_head") else 0
    return GlobalHeadTrimmer(site.width, guide, options.hidden_dim, site.heads)

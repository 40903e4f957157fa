"""Ablation of the paper: tokens are judged by their own features alone, pi = pi_loc (Eq. 3)."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from smarttrim_cli.trimmers._layers import EveryFewLayers
from smarttrim_cli.trimmers.base import SiteInfo, TokenMlp, TokenView, Trimmer, add_to_bias
from smarttrim_cli.trimmers.cross_modal import local_score, token_mlp

SCORES = "token"


class Options(EveryFewLayers):
    """Recipe section of this trimmer."""

    hidden_dim: int = Field(
        default=96, ge=1, le=100_000, description="D', the width that tokens are projected to (Eq. 3)"
    )
    local_dim: int | None = Field(
        default=None, ge=1, le=100_000, description="hidden width of the local MLP; default D' / 2"
    )


class LocalTrimmer(Trimmer):
    """The cross-modal trimmer without its guide."""

    def __init__(self, width: int, hidden_dim: int, local_dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, hidden_dim)
        self.local = nn.Sequential(nn.Linear(hidden_dim, local_dim), nn.GELU(), nn.Linear(local_dim, 1))

    def forward(self, view: TokenView) -> Tensor:
        """Scores with the leading shape of ``view.tokens``."""
        return local_score(self.local, self.project(view.tokens))

    def token_mlp(self) -> TokenMlp:
        """All of it."""
        return token_mlp(self.project, self.local)

    def start_keeping(self, keep_logit: float) -> None:
        """The final bias starts at ``keep_logit``, the final weights small."""
        last = self.local[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            last.weight.mul_(0.1)
            last.bias.fill_(keep_logit)

    def shift_scores(self, amount: float) -> None:
        """Add to the final bias."""
        add_to_bias(self.local, amount)

    def token_macs(self) -> int:
        """Projection and local MLP."""
        layers = (self.project, *self.local)
        return sum(layer.weight.numel() for layer in layers if isinstance(layer, nn.Linear))


def build(options: Options, site: SiteInfo) -> LocalTrimmer | None:
    """A trimmer for one token site; None where tokens just pass."""
    if not options.act_at(site):
        return None
    local = options.local_dim or max(options.hidden_dim // 2, 1)
    return LocalTrimmer(site.width, options.hidden_dim, local)

"""The cross-modal-aware token trimmer of the paper, Eq. 3-6: a local score plus a global, guided one."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from smarttrim_cli.trimmers._layers import EveryFewLayers
from smarttrim_cli.trimmers.base import ClsMlp, SiteInfo, TokenMlp, TokenView, Trimmer, add_to_bias

SCORES = "token"


class Options(EveryFewLayers):
    """Recipe section of this trimmer."""

    hidden_dim: int = Field(
        default=96, ge=1, le=100_000, description="D', the width that tokens are projected to (Eq. 3)"
    )
    local_dim: int | None = Field(
        default=None, ge=1, le=100_000, description="hidden width of the local MLP; default D' / 2"
    )


def local_score(mlp: nn.Module, projected: Tensor) -> Tensor:
    """pi_loc = MLP_loc(H'), Eq. 3: (..., D') to (...)."""
    return mlp(projected).squeeze(-1)


def token_mlp(project: nn.Linear, local: nn.Sequential) -> TokenMlp:
    """Projection and local MLP as what :mod:`smarttrim_cli.pruning.joint_mlps` joins."""
    first, last = local[0], local[2]
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
    return TokenMlp(project, first, last)


def global_guide(mlp: nn.Module, own_cls_BD: Tensor, guide_cls_BD: Tensor | None) -> Tensor:
    """The guide g = MLP_g([c_s ; c_c]), Eq. 4: (B, D'); under ``self`` guidance c_s alone."""
    both = own_cls_BD if guide_cls_BD is None else torch.cat((own_cls_BD, guide_cls_BD), -1)
    return mlp(both)


def global_score(keyed_guide: Tensor, projected: Tensor) -> Tensor:
    """pi_glob = (g W_k) H'^T, Eq. 5: the keyed guide, spread over its tokens, against (..., D')."""
    return (keyed_guide * projected).sum(-1)


class CrossModalTrimmer(Trimmer):
    """Scores tokens as pi = pi_loc + pi_glob (what Eq. 6 makes a mask of)."""

    def __init__(self, width: int, guide_width: int, hidden_dim: int, local_dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, hidden_dim)
        self.local = nn.Sequential(nn.Linear(hidden_dim, local_dim), nn.GELU(), nn.Linear(local_dim, 1))
        self.guide = nn.Sequential(
            nn.Linear(width + guide_width, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, hidden_dim)
        )
        self.key = nn.Linear(hidden_dim, hidden_dim, bias=False)

    def forward(self, view: TokenView) -> Tensor:
        """Scores with the leading shape of ``view.tokens``."""
        keyed_BD = self.key(global_guide(self.guide, view.own_cls_BD, view.guide_cls_BD))
        projected = self.project(view.tokens)
        return local_score(self.local, projected) + global_score(view.stream.spread(keyed_BD), projected)

    def cls_mlp(self) -> ClsMlp:
        """The keyed guide: MLP_g, its second layer joined with W_k."""
        first, second = self.guide[0], self.guide[2]
        assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
        return ClsMlp(first, self.key.weight @ second.weight, self.key.weight @ second.bias)

    def token_mlp(self) -> TokenMlp:
        """Projection and local MLP; the keyed guide is multiplied with the projection."""
        return token_mlp(self.project, self.local)

    def start_keeping(self, keep_logit: float) -> None:
        """The final bias starts at ``keep_logit``, the local weights small, the bilinear form at 0.

        The bilinear form grows with the square of the activations, so no small value would be safe.
        """
        last = self.local[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            last.weight.mul_(0.1)
            last.bias.fill_(keep_logit)
            self.key.weight.zero_()

    def start_guided(self, std: float) -> None:
        """W_k, normally distributed: at 0 it hides the guide and the projection from the global score."""
        nn.init.normal_(self.key.weight, std=std)

    def shift_scores(self, amount: float) -> None:
        """Add to the final bias."""
        add_to_bias(self.local, amount)

    def fixed_macs(self) -> int:
        """MLP_g on the CLS vectors and g W_k."""
        return _weights(self.guide) + _weights(self.key)

    def token_macs(self) -> int:
        """Projection, local MLP and the bilinear form, per token."""
        bilinear = self.project.out_features
        return _weights(self.project) + _weights(self.local) + bilinear


def _weights(module: nn.Module) -> int:
    """MACs of the linear layers in a module, per row."""
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))


def build(options: Options, site: SiteInfo) -> CrossModalTrimmer | None:
    """A trimmer for one token site; None where tokens just pass."""
    if not options.act_at(site):
        return None
    local = options.local_dim or max(options.hidden_dim // 2, 1)
    return CrossModalTrimmer(site.width, site.guide_width, options.hidden_dim, local)

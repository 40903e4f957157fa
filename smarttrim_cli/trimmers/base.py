"""What a trimmer is given and what it must offer.

A trimmer file has ``Options`` (its recipe section), ``SCORES`` (``"token"`` or ``"head"``) and
``build(options, site) -> nn.Module``. The module returns raw scores; what lies above the threshold is kept.

Legend: B batch, N tokens, T packed tokens, D width, D' trimmer width, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class _Stream(Protocol):
    """The part of a stream's state that a trimmer may use."""

    def spread(self, per_instance: Tensor) -> Tensor: ...

    @property
    def positions(self) -> Tensor: ...


@dataclass(frozen=True)
class TokenView:
    """The tokens of one stream at the input of a layer, in either mode.

    Attributes:
        tokens: (B, N, D) in ``masked`` mode, (1, T, D) in ``packed`` mode.
        own_cls_BD: CLS of this stream.
        guide_cls_BD: CLS of the other stream, None under ``self`` guidance.
        stream: ``stream.spread(x)`` turns per-instance rows (B, ...) into per-token rows;
            ``stream.positions``; in ``masked`` mode ``stream.keep_BN``, what was kept before, in ``packed``
            mode ``stream.lengths``, tokens per instance.
        instance_ids: Identity of every token's instance, (B, N) or (1, T); integers.
        threshold: What a score must be above for its token to be kept.
        notes: What a trimmer's ``forward`` leaves for its ``rewrite`` of the same view; empty where decisions
            are replayed.
    """

    tokens: Tensor
    own_cls_BD: Tensor
    guide_cls_BD: Tensor | None
    stream: _Stream
    instance_ids: Tensor
    threshold: float = 0.0
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SiteInfo:
    """Where a trimmer will sit.

    Attributes:
        name: Site name.
        index: Layer along the stream.
        depth: Number of layers of the stream.
        width: Token width D.
        guide_width: Width of the other stream's CLS; 0 under ``self`` guidance.
        heads: Number of heads (head trimmers).
    """

    name: str
    index: int
    depth: int
    width: int
    guide_width: int
    heads: int = 0


@dataclass(frozen=True)
class ClsMlp:
    """What a trimmer computes from CLS vectors alone: W2 gelu(W1 x + b1) + b2, with x one CLS or both.

    Attributes:
        first: W1 and b1; reads the own CLS, or own and guiding CLS, by its width.
        weight: W2, (outputs, hidden).
        bias: b2, (outputs,).
    """

    first: nn.Linear
    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class TokenMlp:
    """How a trimmer scores tokens: w gelu(L P x + ..) + b, and, with a CLS MLP that says g, P x . g too.

    Attributes:
        project: P with its bias, (D', D).
        local: L with its bias, (hidden, D').
        last: w and b, one output.
    """

    project: nn.Linear
    local: nn.Linear
    last: nn.Linear


class Trimmer(nn.Module):
    """Base of all trimmers: initial state, target and cost.

    Attributes:
        draws: Whether the scores are decisions of their own (random draws, ranks), to which training adds
            no noise.
        relative: Whether a token's score depends on which other tokens of its instance are left (ranks among
            them).
        static: Whether heads are the same for all instances: what is left of the weights is taken out once.
        rewrites: Whether kept tokens take something over from dropped ones: :meth:`rewrite` is called.
        by_importance: Whether heads are ranked by their importance to the full model: it is measured when
            trimming begins, and :meth:`set_importance` is called.
        importance_of: What is differentiated for it: ``loss``, on pseudo-labels, or ``answer``.
        one_target: Whether a model's trimmers share one target, the mean of their groups' targets over heads.
    """

    draws = False
    relative = False
    static = False
    rewrites = False
    by_importance = False
    importance_of = "loss"
    one_target = False

    def start_keeping(self, keep_logit: float) -> None:
        """Stable initialisation: every score starts near ``keep_logit``. Nothing to do without parameters."""

    def start_guided(self, std: float) -> None:
        """Before a warm start: bilinear forms, which ``start_keeping`` puts to 0, begin at this spread."""

    def shift_scores(self, amount: float) -> None:
        """Add an amount to every score, for good; a trimmer without this cannot be warm-started."""
        raise TypeError(f"{type(self).__name__} cannot shift its scores")

    def level(self) -> float | None:
        """The threshold at which it meets its target, where that is known without a look at its scores."""
        return None

    @property
    def shifts(self) -> bool:
        """Whether :meth:`shift_scores` is to be had."""
        return type(self).shift_scores is not Trimmer.shift_scores

    def set_target(self, keep_fraction: float) -> None:
        """Told the current target (after the curriculum); only trimmers that follow a schedule use it."""

    def set_importance(self, name: str, importance: Mapping[str, Tensor]) -> None:
        """Told, once, the importance (H) of the heads at its own site ``name``, and at all others like it."""

    def cls_mlp(self) -> ClsMlp | None:
        """The part that depends on CLS vectors alone, if it is such an MLP: those of a layer run as one."""
        return None

    def token_mlp(self) -> TokenMlp | None:
        """How it scores tokens given what :meth:`cls_mlp` says, if it is done so: in fewer operators then."""
        return None

    def rewrite(self, view: TokenView, keep: Tensor) -> Tensor:
        """Tokens that flow on, shaped like ``view.tokens``; only those of kept positions matter.

        Args:
            view: What was scored.
            keep: Boolean, the leading shape of ``view.tokens``: which tokens are kept now, CLS included;
                False on padding and on tokens dropped before.
        """
        return view.tokens

    def fixed_macs(self) -> int:
        """MACs per instance, whatever its size."""
        return 0

    def token_macs(self) -> int:
        """MACs per token that is scored."""
        return 0

    def pair_macs(self) -> float:
        """MACs per pair of tokens, N^2 of them, where tokens are compared with each other."""
        return 0.0


def add_to_bias(mlp: nn.Sequential, amount: float) -> None:
    """Shift what an MLP gives by an amount."""
    last = mlp[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.bias.add_(amount)

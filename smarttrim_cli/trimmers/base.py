"""What a trimmer is given and what it must offer.

A trimmer file has ``Options`` (its recipe section), ``SCORES`` (``"token"`` or ``"head"``) and
``build(options, site) -> nn.Module``. The module returns raw scores; what lies above the threshold is kept.

Legend: B batch, N tokens, T packed tokens, D width, D' trimmer width, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

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


class Trimmer(nn.Module):
    """Base of all trimmers: initial state, target and cost.

    Attributes:
        draws: Whether the scores are decisions of their own (random draws, ranks), to which training adds
            no noise.
        relative: Whether a token's score depends on which other tokens of its instance are left (ranks among
            them).
        rewrites: Whether kept tokens take something over from dropped ones: :meth:`rewrite` is called.
    """

    draws = False
    relative = False
    rewrites = False

    def start_keeping(self, keep_logit: float) -> None:
        """Stable initialisation: every score starts near ``keep_logit``. Nothing to do without parameters."""

    def set_target(self, keep_fraction: float) -> None:
        """Told the current target (after the curriculum); only trimmers that follow a schedule use it."""

    def cls_mlp(self) -> ClsMlp | None:
        """The part that depends on CLS vectors alone, if it is such an MLP: those of a layer run as one."""
        return None

    def scores_given(self, view: TokenView, from_cls: Tensor) -> Tensor:
        """Scores of tokens, given what :meth:`cls_mlp` says of their CLS vectors, (B, outputs)."""
        raise TypeError(f"{type(self).__name__} has no CLS MLP")

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

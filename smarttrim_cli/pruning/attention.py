"""The one attention function; what is packed goes on to :mod:`.packed_attention`.

In ``masked`` mode the weights are exp(a) m / sum(exp(a) m) with the straight-through keep mask m. The exact
gradient for m needs the weight that a dropped key *would* have; it is had from
scaled_dot_product_attention itself by a bias column on the keys: -50 for a dropped key leaves it e^-50 of
its weight in the forward (nothing in float32, unless its logit is tens above the kept ones), and multiplying
its gradient by e^50 restores the exact value. So there is no matrix of attention weights where the kernel
keeps none. Where no gradient goes to the mask, dropped keys are masked like padding, at no cost.

Legend: B batch, N query tokens, M key tokens, T packed tokens, H heads, E head width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from smarttrim_cli.pruning.packed_attention import packed_attention
from smarttrim_cli.pruning.projections import Projections
from smarttrim_cli.pruning.static_heads import StaticHeads
from smarttrim_cli.pruning.stream import MaskedStream, PackedStream, Stream

DROPPED_BIAS = -50.0
PADDING_BIAS = -1e4
_PAD_HEAD = 8  # the bias takes one column; fused kernels want head widths that are multiples of 8


@dataclass(frozen=True)
class AttentionState:
    """What one attention module may know of the forward pass it is in.

    Attributes:
        query: Stream of the queries.
        memory: Stream of keys and values (the same object for self-attention).
        heads_BH: Keep mask of the heads, float straight-through in ``masked`` mode; None keeps all.
        keep_heads: The same on the host, per instance, in ``packed`` mode; None where an instance keeps all,
            and as a whole where it was not fetched.
        static: In ``packed`` mode, heads that are the same for all instances at any time.
    """

    query: Stream
    memory: Stream
    heads_BH: Tensor | None = None
    keep_heads: tuple[tuple[int, ...] | None, ...] | None = None
    static: StaticHeads | None = None


class _KeyBias(torch.autograd.Function):
    """Bias of every key from its keep mask; the backward gives the exact gradient of exp(a) m / sum."""

    @staticmethod
    def forward(ctx: Any, keep_BM: Tensor, valid_BM: Tensor, limit: float, dropped: float) -> Tensor:
        """Bias of every key."""
        ctx.save_for_backward(keep_BM, valid_BM)
        ctx.limit, ctx.dropped = limit, dropped
        bias_BM = torch.where(keep_BM > 0.5, 0.0, dropped).to(keep_BM.dtype)
        return bias_BM.masked_fill(~valid_BM, PADDING_BIAS)

    @staticmethod
    def backward(ctx: Any, grad_BM: Tensor) -> tuple[Tensor, None, None, None]:
        """Gradient of the mask."""
        keep_BM, valid_BM = ctx.saved_tensors
        grad_BM = torch.where(keep_BM > 0.5, grad_BM, grad_BM * math.exp(-ctx.dropped))
        return grad_BM.masked_fill(~valid_BM, 0.0).clamp(-ctx.limit, ctx.limit), None, None, None


def key_bias(keep_BM: Tensor, valid_BM: Tensor, limit: float = 1.0, dropped: float = DROPPED_BIAS) -> Tensor:
    """Additive attention bias (B, M) of a straight-through keep mask.

    Args:
        keep_BM: 1 keep, 0 drop.
        valid_BM: False on padding.
        limit: Gradients of the mask are clipped to this: a dropped key with a large logit has an unbounded
            one.
        dropped: Bias of a dropped key.
    """
    return _KeyBias.apply(keep_BM, valid_BM, limit, dropped)


def _dropped_bias(dtype: torch.dtype, scale: float) -> float:
    """The bias of a dropped key as it is once the column that it takes has been rounded to a type."""
    return float(torch.tensor(DROPPED_BIAS / scale, dtype=dtype)) * scale


def masked_sdpa(
    p: Projections, q: Tensor, k: Tensor, v: Tensor, memory: MaskedStream, training: bool
) -> Tensor:
    """Attention of queries (B, H, N, E) to the kept keys of a stream, with the exact gradient of its mask."""
    dropout = p.dropout if training else 0.0
    if not (memory.keep_BN.requires_grad and torch.is_grad_enabled()):
        seen_B11M = ((memory.keep_BN > 0.5) & memory.valid_BN)[:, None, None, :]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen_B11M, scale=p.scale, dropout_p=dropout)
    dtype = v.dtype  # under autocast, norms of queries and keys may leave these in float32
    working = torch.float32 if dtype == torch.float16 else dtype  # in float16 e^-50 would underflow
    q, k, v = (x.to(working) for x in (q, k, v))
    dropped = _dropped_bias(k.dtype, p.scale)
    bias_BM = key_bias(memory.keep_BN, memory.valid_BN, memory.gradient_limit, dropped) / p.scale
    q = _widened(q, q.new_ones(()), q.new_zeros(()))
    k = _widened(k, bias_BM.to(k.dtype)[:, None, :, None], k.new_zeros(()))
    v = _widened(v, v.new_zeros(()), v.new_zeros(()))
    with torch.autocast(q.device.type, enabled=False):  # which would round to float16 again
        out = F.scaled_dot_product_attention(q, k, v, scale=p.scale, dropout_p=dropout)
    return out[..., : p.head_dim].to(dtype)


def _widened(x_BHNE: Tensor, column: Tensor, rest: Tensor) -> Tensor:
    """A column and a rest of the same in the others, behind a head: one copy."""
    shape = x_BHNE.shape[:-1]
    return torch.cat((x_BHNE, column.expand(*shape, 1), rest.expand(*shape, _PAD_HEAD - 1)), -1)


def _masked_attention(
    p: Projections, query: Tensor, memory: Tensor, state: AttentionState, training: bool
) -> Tensor:
    assert isinstance(state.memory, MaskedStream)
    q, k, v = (x.transpose(-2, -3) for x in p.project(query, memory, None))  # (B, H, N|M, E)
    out = masked_sdpa(p, q, k, v, state.memory, training)
    if state.heads_BH is not None:
        out = out * state.heads_BH[:, :, None, None].to(out.dtype)
    return p.merge(out.transpose(-2, -3), None)


def plain_attention(
    p: Projections, query: Tensor, memory: Tensor, mask: Tensor | None, training: bool
) -> Tensor:
    """The host's attention as it is, on fused kernels; ``mask`` is boolean, True where a key may be seen."""
    q, k, v = (x.transpose(-2, -3) for x in p.project(query, memory, None))
    dropout = p.dropout if training else 0.0
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=p.scale, dropout_p=dropout)
    return p.merge(out.transpose(-2, -3), None)


def attend(p: Projections, query: Tensor, memory: Tensor, state: AttentionState, training: bool) -> Tensor:
    """Attention of one module under a context, output projection included, residual not.

    Args:
        p: The host's projections.
        query: (B, N, D) in ``masked``, (1, T, D) in ``packed`` mode.
        memory: Where keys and values come from; ``query`` itself for self-attention.
        state: Streams and head decisions.
        training: Whether attention dropout is active.

    Returns:
        A tensor shaped like ``query``.
    """
    if isinstance(state.query, MaskedStream):
        return _masked_attention(p, query, memory, state, training)
    assert isinstance(state.memory, PackedStream)
    heads = state.heads_BH, state.keep_heads, state.static
    return packed_attention(p, query, memory, state.query, state.memory, *heads)

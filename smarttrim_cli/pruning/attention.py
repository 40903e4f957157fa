"""The one attention function: masked keys, packed segments and skipped heads are known only here.

In ``masked`` mode the weights are exp(a) m / sum(exp(a) m) with the straight-through keep mask m. The exact
gradient for m needs the weight that a dropped key *would* have; it is had from
scaled_dot_product_attention itself by a bias column on the keys: -50 for a dropped key leaves it e^-50 of
its weight in the forward (nothing in float32, unless its logit is tens above the kept ones), and multiplying
its gradient by e^50 restores the exact value. Without gradients a dropped key gets the bias of padding and
is gone in any case.

Legend: B batch, N query tokens, M key tokens, T packed tokens, H heads, E head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from smarttrim_cli.pruning.stream import MaskedStream, PackedStream, Stream

DROPPED_BIAS = -50.0
PADDING_BIAS = -1e4
_PAD_HEAD = 8  # the bias takes one column; fused kernels want head widths that are multiples of 8


class Projections(Protocol):
    """The projections of a host attention, whole or for some heads only."""

    num_heads: int
    head_dim: int
    scale: float
    dropout: float

    def project(self, query: Tensor, memory: Tensor, heads: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (..., N, h, E), keys and values (..., M, h, E) for the named heads (None: all)."""
        ...

    def merge(self, context: Tensor, heads: Tensor | None) -> Tensor:
        """Output projection of contexts (..., N, h, E) of the named heads, bias included."""
        ...

    def empty(self, query: Tensor) -> Tensor:
        """What the module returns when all heads are dropped: its output bias for every query token."""
        ...


@dataclass(frozen=True)
class AttentionState:
    """What one attention module may know of the forward pass it is in.

    Attributes:
        query: Stream of the queries.
        memory: Stream of keys and values (the same object for self-attention).
        heads_BH: Keep mask of the heads, float straight-through in ``masked`` mode; None keeps all.
        keep_heads: The same on the host, per instance, in ``packed`` mode; None where an instance keeps all.
    """

    query: Stream
    memory: Stream
    heads_BH: Tensor | None = None
    keep_heads: tuple[tuple[int, ...] | None, ...] | None = None


class _KeyBias(torch.autograd.Function):
    """Bias of every key from its keep mask; the backward gives the exact gradient of exp(a) m / sum."""

    @staticmethod
    def forward(ctx: Any, keep_BM: Tensor, valid_BM: Tensor, limit: float) -> Tensor:
        """Bias of every key."""
        ctx.save_for_backward(keep_BM, valid_BM)
        ctx.limit = limit
        dropped = DROPPED_BIAS if keep_BM.requires_grad else PADDING_BIAS
        bias_BM = torch.where(keep_BM > 0.5, 0.0, dropped).to(keep_BM.dtype)
        return bias_BM.masked_fill(~valid_BM, PADDING_BIAS)

    @staticmethod
    def backward(ctx: Any, grad_BM: Tensor) -> tuple[Tensor, None, None]:
        """Gradient of the mask."""
        keep_BM, valid_BM = ctx.saved_tensors
        dropped = torch.exp(torch.tensor(-DROPPED_BIAS, dtype=torch.float64)).item()
        grad_BM = torch.where(keep_BM > 0.5, grad_BM, grad_BM * dropped)
        return grad_BM.masked_fill(~valid_BM, 0.0).clamp(-ctx.limit, ctx.limit), None, None


def key_bias(keep_BM: Tensor, valid_BM: Tensor, limit: float = 1.0) -> Tensor:
    """Additive attention bias (B, M) of a straight-through keep mask.

    Args:
        keep_BM: 1 keep, 0 drop.
        valid_BM: False on padding.
        limit: Gradients of the mask are clipped to this: a dropped key with a large logit has an unbounded
            one.
    """
    return _KeyBias.apply(keep_BM, valid_BM, limit)


def masked_sdpa(
    p: Projections, q: Tensor, k: Tensor, v: Tensor, memory: MaskedStream, training: bool
) -> Tensor:
    """Attention of queries (B, H, N, E) to the kept keys of a stream, with the exact gradient of its mask."""
    bias_BM = key_bias(memory.keep_BN, memory.valid_BN).to(k.dtype) / p.scale
    dtype = q.dtype
    if dtype == torch.float16:  # e^-50 would underflow
        q, k, v = q.float(), k.float(), v.float()
    batch, heads = q.shape[:2]
    k = torch.cat((k, bias_BM[:, None, :, None].expand(batch, heads, -1, 1)), -1)
    k = F.pad(k, (0, _PAD_HEAD - 1))
    q = F.pad(F.pad(q, (0, 1), value=1.0), (0, _PAD_HEAD - 1))
    v = F.pad(v, (0, _PAD_HEAD))
    dropout = p.dropout if training else 0.0
    out = F.scaled_dot_product_attention(q, k, v, scale=p.scale, dropout_p=dropout)
    return out[..., : p.head_dim].to(dtype)


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


def _segment(p: Projections, query_ND: Tensor, memory_MD: Tensor, heads: Tensor | None) -> Tensor:
    q, k, v = (x.transpose(-2, -3).unsqueeze(0) for x in p.project(query_ND, memory_MD, heads))
    out = F.scaled_dot_product_attention(q, k, v, scale=p.scale)
    return p.merge(out.squeeze(0).transpose(-2, -3), heads)


def _packed_attention(p: Projections, query: Tensor, memory: Tensor, state: AttentionState) -> Tensor:
    """Each instance attends within its own segment, with the projections of its own kept heads only."""
    assert isinstance(state.query, PackedStream) and isinstance(state.memory, PackedStream)
    if state.keep_heads is None:
        return _packed_all_heads(p, query, memory, state.query.lengths, state.memory.lengths)
    query_segments = query[0].split(state.query.lengths)
    memory_segments = query_segments if memory is query else memory[0].split(state.memory.lengths)
    outputs = []
    for rows_ND, keys_MD, kept in zip(query_segments, memory_segments, state.keep_heads, strict=True):
        if kept is not None and not kept:
            outputs.append(p.empty(rows_ND))
            continue
        heads = None if kept is None else torch.tensor(kept, device=query.device)
        outputs.append(_segment(p, rows_ND, keys_MD, heads))
    return torch.cat(outputs).unsqueeze(0)


def _packed_all_heads(
    p: Projections,
    query: Tensor,
    memory: Tensor,
    query_lengths: tuple[int, ...],
    memory_lengths: tuple[int, ...],
) -> Tensor:
    """All heads kept by all: one projection for the whole batch, attention per segment."""
    q, k, v = (x.transpose(-2, -3) for x in p.project(query, memory, None))  # (1, H, T, E)
    if len(query_lengths) == 1:
        return p.merge(F.scaled_dot_product_attention(q, k, v, scale=p.scale).transpose(-2, -3), None)
    parts = zip(
        q.split(query_lengths, 2), k.split(memory_lengths, 2), v.split(memory_lengths, 2), strict=True
    )
    out = torch.cat([F.scaled_dot_product_attention(a, b, c, scale=p.scale) for a, b, c in parts], 2)
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
    return _packed_attention(p, query, memory, state)

"""Attention within the segments of a packed batch, for segments of different lengths.

On a CPU a loop over the segments is best. On a GPU that would be one launch per segment: there, bfloat16 and
float16 go to torch's attention for sequences of variable length (FlashAttention), float32 to jagged nested
tensors.

Legend: T packed queries, S packed keys, H heads, E head width.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from smarttrim_cli.pruning.stream import PackedStream


def ragged_attention(
    q_THE: Tensor, k_SHE: Tensor, v_SHE: Tensor, queries: PackedStream, keys: PackedStream, scale: float
) -> Tensor:
    """Attention of every segment's queries to its own keys, (T, H, E)."""
    if len(queries.lengths) == 1:
        return _one_segment(q_THE, k_SHE[: keys.total], v_SHE[: keys.total], scale)
    if q_THE.device.type != "cuda":
        return by_loop(q_THE, k_SHE, v_SHE, queries, keys, scale)
    if q_THE.dtype in (torch.bfloat16, torch.float16) and _has_variable_length(q_THE):
        return by_variable_length(q_THE, k_SHE, v_SHE, queries, keys, scale)
    return by_jagged(q_THE, k_SHE, v_SHE, queries, keys, scale)


def _has_variable_length(q_THE: Tensor) -> bool:
    """Whether FlashAttention has a kernel for this GPU and width of heads."""
    width = q_THE.shape[-1]
    return width % 8 == 0 and width <= 256 and torch.cuda.get_device_capability(q_THE.device) >= (8, 0)


def _one_segment(q_THE: Tensor, k_SHE: Tensor, v_SHE: Tensor, scale: float) -> Tensor:
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q_THE, k_SHE, v_SHE))
    return F.scaled_dot_product_attention(q, k, v, scale=scale).squeeze(0).transpose(0, 1)


def by_loop(
    q_THE: Tensor, k_SHE: Tensor, v_SHE: Tensor, queries: PackedStream, keys: PackedStream, scale: float
) -> Tensor:
    """One call per segment; any device and type, and what the others are tested against."""
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q_THE, k_SHE, v_SHE))  # once, not per segment
    parts = zip(q.split(queries.spans, 2), keys.segments(k, 2), keys.segments(v, 2), strict=True)
    contexts = [F.scaled_dot_product_attention(*part, scale=scale).transpose(1, 2) for part in parts]
    return torch.cat(contexts, 1).squeeze(0)


def by_jagged(
    q_THE: Tensor, k_SHE: Tensor, v_SHE: Tensor, queries: PackedStream, keys: PackedStream, scale: float
) -> Tensor:
    """One call for all segments, as jagged nested tensors; streams must not be rounded up."""

    def nested(x: Tensor, stream: PackedStream) -> Tensor:
        # shortest and longest are known on the host; torch would ask the device for them at every call
        shortest, longest = min(stream.lengths), max(stream.lengths)
        jagged = torch.nested.nested_tensor_from_jagged(
            x.contiguous(), stream.offsets, min_seqlen=shortest, max_seqlen=longest
        )
        return jagged.transpose(1, 2)

    out = F.scaled_dot_product_attention(
        nested(q_THE, queries), nested(k_SHE, keys), nested(v_SHE, keys), scale=scale
    )
    return out.transpose(1, 2).values()


@cache
def _same_for_any_batch() -> dict[str, Any]:
    """Options by which an instance's sums are added up in the same order whatever its batch-mates are."""
    from torch.nn.attention.varlen import varlen_attn

    return {"num_splits": 1} if "num_splits" in inspect.signature(varlen_attn).parameters else {}


def by_variable_length(
    q_THE: Tensor, k_SHE: Tensor, v_SHE: Tensor, queries: PackedStream, keys: PackedStream, scale: float
) -> Tensor:
    """One call of FlashAttention for all segments: on a GPU, in bfloat16 or float16; likewise."""
    from torch.nn.attention.varlen import varlen_attn

    out = varlen_attn(
        q_THE,
        k_SHE,
        v_SHE,
        queries.offsets_int32,
        keys.offsets_int32,
        max(queries.lengths),
        max(keys.lengths),
        scale=scale,
        **_same_for_any_batch(),
    )
    assert isinstance(out, Tensor)  # no log-sum-exp was asked for
    return out

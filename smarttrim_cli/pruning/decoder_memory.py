"""What a decoder attends to while it writes: keys and values of the memory, projected once for all steps.

Under a packed context every instance has its own number of tokens and, unless heads are the same for all, its
own heads. There the pairs of instance and kept head lie one after the other, padded to the longest instance.

Legend: B instances, N query tokens of an instance, M memory tokens, T packed memory tokens, H heads, h kept
heads, E head width, G pairs of instance and kept head (instance after instance).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from smarttrim_cli.pruning.packed_attention import OVERHEAD_IN, taking_out_pays
from smarttrim_cli.pruning.static_heads import StaticHeads
from smarttrim_cli.pruning.stream import PackedStream

PackedHeads = StaticHeads | list[Tensor | None] | None
"""Kept heads: the same for all instances, or by number for each (None: all of them); None: all of all."""


@dataclass(frozen=True)
class SharedMemory:
    """Keys and values of the memory, projected once, with what is needed to attend to them.

    Attributes:
        keys: (B, H, M, E); under a packed context (G, 1, M, E), a row for every head that an instance keeps.
        values: Likewise.
        bias: Added to logits, -inf on padding, (G, 1, 1, M); None without padding.
        kept_G: Which of the B H pairs of instance and head the rows are; None where queries have no others.
    """

    keys: Tensor
    values: Tensor
    bias: Tensor | None = None
    kept_G: Tensor | None = None


def pack_memory(p: Any, memory_1TD: Tensor, kept: PackedStream, heads: PackedHeads) -> SharedMemory:
    """Keys and values of kept tokens for kept heads, padded to the longest instance.

    Where heads differ between instances, weights are taken out for each if that is cheaper than projecting
    all heads for all (:func:`.taking_out_pays`).

    Args:
        p: Projections of the attention.
        memory_1TD: Kept tokens of all instances, and perhaps a tail.
        kept: Their stream.
        heads: What the attention keeps.
    """
    if not isinstance(heads, list):
        keys, values = (_by_head(x, kept) for x in p.keys_values(memory_1TD[0], heads))
        per_instance = len(keys) // len(kept.lengths)
        lengths_G = kept.counts_B().repeat_interleave(per_instance)
        return SharedMemory(keys, values, _padding_bias(lengths_G, kept, keys.dtype))
    counts = [p.num_heads if some is None else len(some) for some in heads]
    kept_G = torch.cat(
        [
            number * p.num_heads
            + (torch.arange(p.num_heads, device=memory_1TD.device) if some is None else some)
            for number, some in enumerate(heads)
        ]
    )
    if memory_1TD.device.type != "cuda" and taking_out_pays(p, kept.lengths, counts, OVERHEAD_IN):
        pairs = zip(kept.segments(memory_1TD[0], 0), heads, strict=True)
        every = zip(*(_keys_values(p, rows, some) for rows, some in pairs), strict=True)
        longest = max(kept.lengths)
        keys, values = (
            torch.cat([F.pad(x.transpose(0, 1), (0, 0, 0, longest - len(x))) for x in parts]).unsqueeze(1)
            for parts in every
        )
    else:
        keys, values = (_by_head(x, kept)[kept_G] for x in p.keys_values(memory_1TD[0], None))
    lengths_G = kept.counts_B().repeat_interleave(p.num_heads)[kept_G]
    return SharedMemory(keys, values, _padding_bias(lengths_G, kept, keys.dtype), kept_G)


def to_packed_memory(q_BhNE: Tensor, scale: float, memory: SharedMemory) -> Tensor:
    """Contexts (B, h, N, E): of kept heads by their instance's kept tokens, of others 0."""
    q = q_BhNE.flatten(0, 1)
    if memory.kept_G is not None:
        q = q[memory.kept_G]
    out = F.scaled_dot_product_attention(
        q.unsqueeze(1), memory.keys, memory.values, attn_mask=memory.bias, scale=scale
    ).squeeze(1)
    if memory.kept_G is not None:
        out = out.new_zeros(q_BhNE.flatten(0, 1).shape).index_copy(0, memory.kept_G, out)
    return out.view(q_BhNE.shape)


def _by_head(packed_ThE: Tensor, kept: PackedStream) -> Tensor:
    """(B h, 1, M, E): the rows of an instance, head after head."""
    padded_BMhE = pad_sequence(list(kept.segments(packed_ThE, 0)), batch_first=True)
    return padded_BMhE.transpose(1, 2).flatten(0, 1).unsqueeze(1)


def _keys_values(p: Any, memory_MD: Tensor, heads: Tensor | None) -> tuple[Tensor, Tensor]:
    """Keys and values (M, h, E) of an instance; there may be no heads."""
    if heads is not None and len(heads) == 0:
        none = memory_MD.new_empty(len(memory_MD), 0, p.head_dim)
        return none, none
    return p.keys_values(memory_MD, heads)


def _padding_bias(lengths_G: Tensor, kept: PackedStream, dtype: torch.dtype) -> Tensor | None:
    longest = max(kept.lengths)
    if min(kept.lengths) == longest:
        return None
    padding_GM = torch.arange(longest, device=lengths_G.device) >= lengths_G[:, None]
    bias_GM = torch.zeros(padding_GM.shape, dtype=dtype, device=lengths_G.device)
    return bias_GM.masked_fill(padding_GM, float("-inf"))[:, None, None, :]

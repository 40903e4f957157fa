"""Text that is generated or scored while it attends to the kept tokens of another stream.

A decoder's own tokens are never dropped; its heads are trimmed, by one decision per instance, taken at the
first call and used by all rows (beams, candidates, answers) and steps of the instance. Keys and values of the
memory are projected once per instance and layer, and shared between its rows and steps.

Generated texts start at position 0 with a token that sees only itself and the memory, so it is the same for
all rows and steps: it serves as CLS. Answers may be padded on the right: causality hides that from real
tokens.

Legend: B instances, r rows per instance, R = B r rows (instance after instance), T tokens, M memory tokens,
H heads, h kept heads, E head width, G heads kept in a batch (instance after instance).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from smarttrim_cli.pruning.attention import masked_sdpa
from smarttrim_cli.pruning.context import current, host_heads
from smarttrim_cli.pruning.sites import CROSS_HEAD, SELF_HEAD
from smarttrim_cli.pruning.stream import MaskedStream, PackedStream

KeptHeads = list[Tensor | None] | None


@dataclass(frozen=True)
class _SharedMemory:
    """Keys and values of the memory, projected once, with what is needed to attend to them.

    Attributes:
        keys: (B, H, M, E); under a packed context (G, 1, M, E), a row for every head that an instance keeps.
        values: Likewise.
        bias: Added to logits, -inf on padding, (G, 1, 1, M); None without padding.
        kept_G: Which of the B H pairs of instance and head the rows are; None for all.
    """

    keys: Tensor
    values: Tensor
    bias: Tensor | None = None
    kept_G: Tensor | None = None


class Decoder:
    """One pass of decoding over a batch.

    Args:
        stream: Name of the decoder's stream.
        memory_stream: Name of the stream attended to.
        memory: Its hidden states as they flow: (B, M, D), or (1, T, D) under a packed context.
        instances: B.
        memory_mask: Boolean (B, M), False on padding; without a context only (there, padding is known).

    Attributes:
        caching: Whether keys and values of own tokens are kept for the next step; set before the first.
        length: Tokens in that cache.

    Under a packed context dropped heads are skipped in one of two ways. Where texts are written
    (``caching``) a step has a handful of rows, and a projection costs the reading of its weights, whole or
    not: all heads are projected for the whole batch, and kept ones attend to the memory. Otherwise (ranking:
    many rows) each instance is projected by the weights of its kept heads. This is also what a traced forward
    does, so that the MACs found there are those of kept heads.
    """

    def __init__(
        self,
        stream: str,
        memory_stream: str,
        memory: Tensor,
        instances: int,
        memory_mask: Tensor | None = None,
    ) -> None:
        self.stream, self.memory, self.instances = stream, memory, instances
        self.mask = None if memory_mask is None else memory_mask.bool()[:, None, None, :]
        self.context = current()
        self.kept = None if self.context is None else self.context.streams[memory_stream]
        self.caching, self.length = False, 0
        self._done_B: Tensor | None = None
        self._heads: dict[tuple[int, str], Tensor | None] = {}
        self._kept_heads: dict[tuple[int, str], KeptHeads] = {}
        self._own: dict[int, Any] = {}
        self._memory: dict[int, Any] = {}

    # --- a step: begin_layer, self_attention, cross_attention for every layer, then advance ---

    def begin_layer(self, index: int, hidden_RTD: Tensor) -> None:
        """Decide on the heads of a layer when it is first reached."""
        if self.context is None or (index, SELF_HEAD) in self._heads:
            return
        cls_BD = hidden_RTD[:: len(hidden_RTD) // self.instances, 0]
        for kind, mask_BH in self.context.decoder_heads(self.stream, index, cls_BD).items():
            self._heads[index, kind] = mask_BH

    def _slicing(self) -> bool:
        return isinstance(self.kept, PackedStream) and (not self.caching or torch.jit.is_tracing())

    def _instance_heads(self, index: int, kind: str) -> KeptHeads:
        """Indices of kept heads per instance; None for all, as an item or as a whole."""
        site = index, kind
        if site not in self._kept_heads:
            mask_BH, device = self._heads.get(site), self.memory.device
            rows = None if mask_BH is None else host_heads(mask_BH)
            self._kept_heads[site] = None
            if rows is not None:
                self._kept_heads[site] = [
                    None if row is None else torch.tensor(row, dtype=torch.long, device=device)
                    for row in rows
                ]
        return self._kept_heads[site]

    def self_attention(self, index: int, p: Any, hidden_RTD: Tensor, training: bool = False) -> Tensor:
        """Causal attention among a row's own tokens; output projection included, residual not."""
        mask_BH = self._heads.get((index, SELF_HEAD))
        if mask_BH is not None and self._slicing():
            kept = self._instance_heads(index, SELF_HEAD)
            if kept is not None:
                return self._sliced_self(index, p, hidden_RTD, kept)
            mask_BH = None
        out, self._own[index] = self._among_own(p, hidden_RTD, None, self._own.get(index), training)
        if mask_BH is not None:
            mask_RH = mask_BH.repeat_interleave(len(out) // self.instances, 0)
            out = out * mask_RH[:, :, None, None].to(out.dtype)
        return p.merge(out.transpose(1, 2), None)

    def _sliced_self(self, index: int, p: Any, hidden_RTD: Tensor, kept: list[Tensor | None]) -> Tensor:
        parts, caches = [], self._own.get(index) or [None] * self.instances
        for number, (rows, heads) in enumerate(zip(self._rows(hidden_RTD), kept, strict=True)):
            if heads is not None and len(heads) == 0:
                parts.append(p.empty(rows))
                continue
            out, caches[number] = self._among_own(p, rows, heads, caches[number], False)
            parts.append(p.merge(out.transpose(1, 2), heads))
        self._own[index] = caches
        return torch.cat(parts)

    def _among_own(
        self, p: Any, hidden: Tensor, kept: Tensor | None, cache: Any, training: bool
    ) -> tuple[Tensor, Any]:
        """Contexts (R, h, T, E) and the cache with the new keys and values."""
        q, k, v = (x.transpose(1, 2) for x in p.project(hidden, hidden, kept))
        if cache is not None:
            k, v = torch.cat((cache[0], k), 2), torch.cat((cache[1], v), 2)
        dropout = p.dropout if training else 0.0
        causal = bool(q.shape[2] > 1)  # several tokens come only at the start, when nothing is cached
        out = F.scaled_dot_product_attention(q, k, v, scale=p.scale, is_causal=causal, dropout_p=dropout)
        return out, (k, v) if self.caching else None

    def cross_attention(self, index: int, p: Any, hidden_RTD: Tensor, training: bool = False) -> Tensor:
        """Attention to the memory; output projection included, residual not."""
        if self._slicing():
            return self._sliced_cross(index, p, hidden_RTD)
        mask_BH = self._heads.get((index, CROSS_HEAD))
        packed = isinstance(self.kept, PackedStream)
        if index not in self._memory:
            self._memory[index] = self._pack_memory(index, p) if packed else self._project_memory(p)
        queries_BND = hidden_RTD.reshape(self.instances, -1, hidden_RTD.shape[-1])
        q = p.queries(queries_BND, None).transpose(1, 2)
        if packed:
            out = self._to_packed_memory(q, p, self._memory[index])
        else:
            out = self._to_memory(q, p, self._memory[index], training)
            if mask_BH is not None:
                out = out * mask_BH[:, :, None, None].to(out.dtype)
        return p.merge(out.transpose(1, 2), None).reshape(hidden_RTD.shape)

    def _project_memory(self, p: Any) -> _SharedMemory:
        """Keys and values for all heads, padding included."""
        keys, values = (x.transpose(1, 2) for x in p.keys_values(self.memory, None))
        if self.caching:  # read at every step: head after head, as attention reads them
            keys, values = keys.contiguous(), values.contiguous()
        return _SharedMemory(keys, values)

    def _to_memory(self, q_BHNE: Tensor, p: Any, memory: _SharedMemory, training: bool) -> Tensor:
        """Contexts (B, H, N, E), nothing dropped but what masks say."""
        if isinstance(self.kept, MaskedStream):
            return masked_sdpa(p, q_BHNE, memory.keys, memory.values, self.kept, training)
        return F.scaled_dot_product_attention(
            q_BHNE,
            memory.keys,
            memory.values,
            attn_mask=self.mask,
            scale=p.scale,
            dropout_p=p.dropout if training else 0.0,
        )

    def _pack_memory(self, index: int, p: Any) -> _SharedMemory:
        """Keys and values of kept tokens for kept heads, padded to the longest instance."""
        assert isinstance(self.kept, PackedStream)
        lengths, kept = self.kept.lengths, self._instance_heads(index, CROSS_HEAD)
        if kept is None:
            every = [list(self.kept.segments(x, 0)) for x in p.keys_values(self.memory[0], None)]
        else:
            segments = self.kept.segments(self.memory[0], 0)
            pairs = [_keys_values(p, rows, heads) for rows, heads in zip(segments, kept, strict=True)]
            every = [list(parts) for parts in zip(*pairs, strict=True)]
        longest = max(lengths)
        keys, values = (
            torch.cat([F.pad(x.transpose(0, 1), (0, 0, 0, longest - len(x))) for x in parts]).unsqueeze(1)
            for parts in every
        )
        kept_G = None
        if kept is not None:
            mask_BH = self._heads[index, CROSS_HEAD]
            assert mask_BH is not None
            kept_G = (mask_BH > 0.5).flatten().nonzero().squeeze(1)
        return _SharedMemory(keys, values, self._padding_bias(kept_G, p.num_heads, keys.dtype), kept_G)

    def _padding_bias(self, kept_G: Tensor | None, heads: int, dtype: torch.dtype) -> Tensor | None:
        assert isinstance(self.kept, PackedStream)
        longest = max(self.kept.lengths)
        if min(self.kept.lengths) == longest:
            return None
        lengths_G = self.kept.counts_B().repeat_interleave(heads)
        if kept_G is not None:
            lengths_G = lengths_G[kept_G]
        padding_GM = torch.arange(longest, device=lengths_G.device) >= lengths_G[:, None]
        bias_GM = torch.zeros(padding_GM.shape, dtype=dtype, device=lengths_G.device)
        return bias_GM.masked_fill(padding_GM, float("-inf"))[:, None, None, :]

    @staticmethod
    def _to_packed_memory(q_BHNE: Tensor, p: Any, memory: _SharedMemory) -> Tensor:
        """Contexts (B, H, N, E): of kept heads by their instance's kept tokens, of others 0."""
        q = q_BHNE.flatten(0, 1)
        if memory.kept_G is not None:
            q = q[memory.kept_G]
        out = F.scaled_dot_product_attention(
            q.unsqueeze(1), memory.keys, memory.values, attn_mask=memory.bias, scale=p.scale
        ).squeeze(1)
        if memory.kept_G is not None:
            out = out.new_zeros(q_BHNE.flatten(0, 1).shape).index_copy(0, memory.kept_G, out)
        return out.view(q_BHNE.shape)

    def _sliced_cross(self, index: int, p: Any, hidden_RTD: Tensor) -> Tensor:
        """Every instance's rows attend to its own segment, projected by the weights of its kept heads."""
        assert isinstance(self.kept, PackedStream)
        every = self._instance_heads(index, CROSS_HEAD) or [None] * self.instances
        if index not in self._memory:
            segments = self.kept.segments(self.memory[0], 0)
            self._memory[index] = [
                None
                if heads is not None and len(heads) == 0
                else [x.transpose(0, 1) for x in p.keys_values(rows, heads)]
                for rows, heads in zip(segments, every, strict=True)
            ]
        parts = []
        for rows, heads, pair in zip(self._rows(hidden_RTD), every, self._memory[index], strict=True):
            if pair is None:
                parts.append(p.empty(rows))
                continue
            q = p.queries(rows.flatten(0, 1), heads).transpose(0, 1)
            out = F.scaled_dot_product_attention(q[None], pair[0][None], pair[1][None], scale=p.scale)[0]
            parts.append(p.merge(out.transpose(0, 1), heads).reshape(rows.shape))
        return torch.cat(parts)

    def _rows(self, hidden_RTD: Tensor) -> tuple[Tensor, ...]:
        return hidden_RTD.split(len(hidden_RTD) // self.instances)

    # --- between steps ---

    def advance(self, hidden_RTD: Tensor) -> None:
        """Note a step that has passed all layers; what is done goes on for its batch-mates' sake only."""
        rows, tokens = len(hidden_RTD) // self.instances, int(hidden_RTD.shape[1])
        if self.context is not None:
            ones_B = torch.ones(self.instances, device=hidden_RTD.device)
            if self._done_B is not None:
                ones_B = ones_B * ~self._done_B
            amounts = {
                self.stream: rows * tokens,
                f"{self.stream}.pairs": rows * tokens * (self.length + tokens),
                f"{self.stream}.row_calls": rows,
            }
            self.context.note_work(**{name: amount * ones_B for name, amount in amounts.items()})
        if self.caching:
            self.length += tokens

    def reorder(self, index_R: Tensor, done_B: Tensor | None = None) -> None:
        """Take the cached tokens of other rows of the same instance: row i goes on from ``index_R[i]``.

        Instances of ``done_B`` need no more steps: theirs are not counted.
        """
        self._done_B = done_B
        if len(index_R) > self.instances:  # a single row goes on from itself
            self._select(index_R)

    def expand(self, rows: int) -> None:
        """From one row per instance to several."""
        index_R = torch.arange(self.instances, device=self.memory.device).repeat_interleave(rows)
        self._select(index_R, before=1)

    def _select(self, index_R: Tensor, before: int | None = None) -> None:
        rows = len(index_R) // self.instances
        before = before or rows
        for layer, cache in self._own.items():
            if isinstance(cache, tuple):
                self._own[layer] = tuple(x.index_select(0, index_R) for x in cache)
            elif cache is not None:
                own = (index_R[i * rows : (i + 1) * rows] - i * before for i in range(self.instances))
                self._own[layer] = [
                    None if pair is None else tuple(x.index_select(0, index) for x in pair)
                    for pair, index in zip(cache, own, strict=True)
                ]


def _keys_values(p: Any, memory_MD: Tensor, heads: Tensor | None) -> tuple[Tensor, Tensor]:
    """Keys and values (M, h, E) of an instance; there may be no heads."""
    if heads is not None and len(heads) == 0:
        none = memory_MD.new_empty(len(memory_MD), 0, p.head_dim)
        return none, none
    return p.keys_values(memory_MD, heads)

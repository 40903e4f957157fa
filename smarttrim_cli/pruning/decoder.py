"""Text that is generated or scored while it attends to the kept tokens of another stream.

A decoder's own tokens are never dropped; its heads are trimmed, by one decision per instance, taken at the
first call and used by all rows (beams, candidates, answers) and steps of the instance. Keys and values of the
memory are projected once per instance and layer, and shared between its rows and steps.

Generated texts start at position 0 with a token that sees only itself and the memory, so it is the same for
all rows and steps: it serves as CLS. Answers may be padded on the right: causality hides that from real
tokens.

Legend: B instances, r rows per instance, R = B r rows (instance after instance), T tokens, M memory tokens,
H heads, h kept heads, E head width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from smarttrim_cli.pruning import host
from smarttrim_cli.pruning.attention import masked_sdpa
from smarttrim_cli.pruning.context import current
from smarttrim_cli.pruning.decoder_memory import PackedHeads, SharedMemory, pack_memory, to_packed_memory
from smarttrim_cli.pruning.sites import CROSS_HEAD, SELF_HEAD, Site
from smarttrim_cli.pruning.static_heads import StaticHeads
from smarttrim_cli.pruning.stream import MaskedStream, PackedStream


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

    Under a packed context heads that all instances drop alike (:class:`.StaticHeads`) are not there. Others
    are skipped in one of two ways. Where texts are written (``caching``) a step has a handful of rows,
    and a projection costs the reading of its weights, whole or not: all heads are projected for the whole
    batch, and kept ones attend to the memory. Otherwise (ranking: many rows) each instance is projected by
    the weights of its kept heads. This is also what a traced forward does, so that the MACs found there are
    those of kept heads. On a GPU, where the host would have to wait to learn which are kept, all heads are
    projected and attend.
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
        self._packed: dict[tuple[int, str], PackedHeads] = {}
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
        """Whether instances run one by one, which is one launch for each on a GPU."""
        return torch.jit.is_tracing() or not (self.caching or host.asking_costs(self.memory.device))

    def _packed_heads(self, index: int, kind: str) -> PackedHeads:
        """What a packed context keeps at a site.

        None where all heads are there: those that a mask drops, if there is one, are set to 0 afterwards. So
        it is without such a context, and where the host would have to wait to learn which are kept.
        """
        if not isinstance(self.kept, PackedStream):
            return None
        site = index, kind
        if site not in self._packed:
            assert self.context is not None
            name, device = Site(self.stream, index, kind).name, self.memory.device
            self._heads[site], rows, every = self.context.heads_at(name, self._heads.get(site))
            if rows is None or every is not None:
                self._packed[site] = every
            else:
                self._packed[site] = [
                    None if row is None else torch.tensor(row, dtype=torch.long, device=device)
                    for row in rows
                ]
        return self._packed[site]

    def self_attention(self, index: int, p: Any, hidden_RTD: Tensor, training: bool = False) -> Tensor:
        """Causal attention among a row's own tokens; output projection included, residual not."""
        heads = self._packed_heads(index, SELF_HEAD)
        if isinstance(heads, list) and self._slicing():
            return self._sliced_self(index, p, hidden_RTD, heads)
        every = heads if isinstance(heads, StaticHeads) else None
        if every is not None and not every.kept:
            return p.empty(hidden_RTD)
        out, self._own[index] = self._among_own(p, hidden_RTD, every, self._own.get(index), training)
        out = out.transpose(1, 2)
        return p.merge(self._masked(index, SELF_HEAD, out) if every is None else out, every)

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
        self, p: Any, hidden: Tensor, kept: Tensor | StaticHeads | None, cache: Any, training: bool
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
        heads = self._packed_heads(index, CROSS_HEAD)
        every = heads if isinstance(heads, StaticHeads) else None
        if every is not None and not every.kept:
            return p.empty(hidden_RTD)
        packed = isinstance(self.kept, PackedStream)
        if packed and self._slicing():
            if isinstance(heads, list):
                return self._sliced_cross(index, p, hidden_RTD, heads)
            return self._segmented_cross(index, p, hidden_RTD, every)
        if index not in self._memory:
            if isinstance(self.kept, PackedStream):
                self._memory[index] = pack_memory(p, self.memory, self.kept, heads)
            else:
                self._memory[index] = self._project_memory(p)
        queries_BND = hidden_RTD.reshape(self.instances, -1, hidden_RTD.shape[-1])
        q = p.queries(queries_BND, every).transpose(1, 2)
        if packed:
            out = to_packed_memory(q, p.scale, self._memory[index]).transpose(1, 2)
        else:
            out = self._to_memory(q, p, self._memory[index], training).transpose(1, 2)
        if heads is None:
            out = self._masked(index, CROSS_HEAD, out)
        return p.merge(out, every).reshape(hidden_RTD.shape)

    def _masked(self, index: int, kind: str, out: Tensor) -> Tensor:
        """Contexts (instance after instance, ..., H, E) without those of dropped heads."""
        mask_BH = self._heads.get((index, kind))
        if mask_BH is None:
            return out
        mask_RH = mask_BH.repeat_interleave(len(out) // self.instances, 0)
        return out * mask_RH.view(len(out), *(1,) * (out.dim() - 3), -1, 1).to(out.dtype)

    def _project_memory(self, p: Any) -> SharedMemory:
        """Keys and values for all heads, padding included."""
        keys, values = (x.transpose(1, 2) for x in p.keys_values(self.memory, None))
        if self.caching:  # read at every step: head after head, as attention reads them
            keys, values = keys.contiguous(), values.contiguous()
        return SharedMemory(keys, values)

    def _to_memory(self, q_BHNE: Tensor, p: Any, memory: SharedMemory, training: bool) -> Tensor:
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

    def _sliced_cross(self, index: int, p: Any, hidden_RTD: Tensor, kept: list[Tensor | None]) -> Tensor:
        """Every instance's rows attend to its own segment, projected by the weights of its kept heads."""
        assert isinstance(self.kept, PackedStream)
        if index not in self._memory:
            segments = self.kept.segments(self.memory[0], 0)
            self._memory[index] = [
                None if heads is not None and len(heads) == 0 else p.keys_values(rows, heads)
                for rows, heads in zip(segments, kept, strict=True)
            ]
        parts = []
        for rows, heads, pair in zip(self._rows(hidden_RTD), kept, self._memory[index], strict=True):
            if pair is None:
                parts.append(p.empty(rows))
                continue
            out = _attend(p.queries(rows.flatten(0, 1), heads), pair[0], pair[1], p.scale)
            parts.append(p.merge(out, heads).reshape(rows.shape))
        return torch.cat(parts)

    def _segmented_cross(self, index: int, p: Any, hidden_RTD: Tensor, heads: StaticHeads | None) -> Tensor:
        """The same with the same heads for all: projected together, each attends to its own segment."""
        assert isinstance(self.kept, PackedStream)
        if index not in self._memory:
            keys, values = p.keys_values(self.memory[0], heads)
            self._memory[index] = self.kept.segments(keys, 0), self.kept.segments(values, 0)
        q = p.queries(hidden_RTD.flatten(0, 1), heads)
        keys, values = self._memory[index]
        pieces = zip(q.split(len(q) // self.instances), keys, values, strict=True)
        out = torch.cat([_attend(*piece, scale=p.scale) for piece in pieces])
        return p.merge(out, heads).reshape(hidden_RTD.shape)

    def _rows(self, hidden_RTD: Tensor) -> tuple[Tensor, ...]:
        return hidden_RTD.split(len(hidden_RTD) // self.instances)

    # --- between steps ---

    def advance(self, hidden_RTD: Tensor, logits: int | None = None) -> None:
        """Note a step that has passed all layers; what is done goes on for its batch-mates' sake only.

        Args:
            hidden_RTD: Its tokens.
            logits: Of how many of a row the model predicts what follows; None for all.
        """
        rows, tokens = len(hidden_RTD) // self.instances, int(hidden_RTD.shape[1])
        if self.context is not None:
            ones_B = torch.ones(self.instances, device=hidden_RTD.device)
            if self._done_B is not None:
                ones_B = ones_B * ~self._done_B
            amounts = {
                self.stream: rows * tokens,
                f"{self.stream}.pairs": rows * tokens * (self.length + tokens),
                f"{self.stream}.logits": rows * (tokens if logits is None else logits),
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


def _attend(q_NhE: Tensor, k_MhE: Tensor, v_MhE: Tensor, scale: float) -> Tensor:
    q, k, v = (x.transpose(0, 1)[None] for x in (q_NhE, k_MhE, v_MhE))
    return F.scaled_dot_product_attention(q, k, v, scale=scale)[0].transpose(0, 1)

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

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from smarttrim_cli.pruning.attention import masked_sdpa
from smarttrim_cli.pruning.context import current, host_heads
from smarttrim_cli.pruning.sites import CROSS_HEAD, SELF_HEAD
from smarttrim_cli.pruning.stream import MaskedStream, PackedStream


@dataclass
class _Heads:
    """Kept heads of one attention: a mask (B, H) to multiply with, or indices per instance."""

    mask_BH: Tensor | None = None
    kept: list[Tensor | None] | None = None


class Decoder:
    """One pass of decoding over a batch.

    Args:
        stream: Name of the decoder's stream.
        memory_stream: Name of the stream attended to.
        memory: Its hidden states as they flow: (B, M, D), or (1, T, D) under a packed context.
        instances: B.
        memory_mask: Boolean (B, M), False on padding; without a context only (there, padding is known).

    Attributes:
        caching: Whether keys and values of own tokens are kept for the next step.
        length: Tokens in that cache.
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
        self._heads: dict[tuple[int, str], _Heads] = {}
        self._own: dict[int, Any] = {}
        self._memory: dict[int, Any] = {}

    # --- a step: begin_layer, self_attention, cross_attention for every layer, then advance ---

    def begin_layer(self, index: int, hidden_RTD: Tensor) -> None:
        """Decide on the heads of a layer when it is first reached."""
        if self.context is None or (index, SELF_HEAD) in self._heads:
            return
        cls_BD = hidden_RTD[:: len(hidden_RTD) // self.instances, 0]
        for kind, mask_BH in self.context.decoder_heads(self.stream, index, cls_BD).items():
            self._heads[index, kind] = self._as_heads(mask_BH)

    def _as_heads(self, mask_BH: Tensor | None) -> _Heads:
        if mask_BH is None or isinstance(self.kept, MaskedStream):
            return _Heads(mask_BH)
        rows = host_heads(mask_BH)
        if rows is None:
            return _Heads()
        device = mask_BH.device
        return _Heads(
            kept=[None if row is None else torch.tensor(row, dtype=torch.long, device=device) for row in rows]
        )

    def self_attention(self, index: int, p: Any, hidden_RTD: Tensor, training: bool = False) -> Tensor:
        """Causal attention among a row's own tokens; output projection included, residual not."""
        heads = self._heads.get((index, SELF_HEAD), _Heads())
        if heads.kept is None:
            out, self._own[index] = self._among_own(p, hidden_RTD, None, self._own.get(index), training)
            out = self._multiply(out, heads.mask_BH)
            return p.merge(out.transpose(1, 2), None)
        parts, caches = [], self._own.get(index) or [None] * self.instances
        for number, (rows, kept) in enumerate(zip(self._rows(hidden_RTD), heads.kept, strict=True)):
            if kept is not None and len(kept) == 0:
                parts.append(p.empty(rows))
                continue
            out, caches[number] = self._among_own(p, rows, kept, caches[number], training)
            parts.append(p.merge(out.transpose(1, 2), kept))
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
        heads = self._heads.get((index, CROSS_HEAD), _Heads())
        if isinstance(self.kept, PackedStream):
            return self._packed_cross(index, p, hidden_RTD, heads.kept)
        rows, tokens = len(hidden_RTD) // self.instances, hidden_RTD.shape[1]
        if index not in self._memory:
            self._memory[index] = tuple(x.transpose(1, 2) for x in p.keys_values(self.memory, None))
        k, v = self._memory[index]
        q = p.queries(hidden_RTD.reshape(self.instances, rows * tokens, -1), None).transpose(1, 2)
        if isinstance(self.kept, MaskedStream):
            out = masked_sdpa(p, q, k, v, self.kept, training)
        else:
            dropout = p.dropout if training else 0.0
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask=self.mask, scale=p.scale, dropout_p=dropout
            )
        if heads.mask_BH is not None:
            out = out * heads.mask_BH[:, :, None, None].to(out.dtype)
        return p.merge(out.transpose(1, 2), None).reshape(hidden_RTD.shape)

    def _packed_cross(
        self, index: int, p: Any, hidden_RTD: Tensor, kept: list[Tensor | None] | None
    ) -> Tensor:
        """Every instance's rows attend to its own segment, with its kept heads only."""
        assert isinstance(self.kept, PackedStream)
        every: list[Tensor | None] = [None] * self.instances if kept is None else kept
        if index not in self._memory:
            segments = self.memory[0].split(self.kept.lengths)
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

    def _multiply(self, out_RHTE: Tensor, mask_BH: Tensor | None) -> Tensor:
        if mask_BH is None:
            return out_RHTE
        mask_RH = mask_BH.repeat_interleave(len(out_RHTE) // self.instances, 0)
        return out_RHTE * mask_RH[:, :, None, None].to(out_RHTE.dtype)

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

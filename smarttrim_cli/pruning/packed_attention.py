"""Attention in mode ``packed``: every instance attends within its own segment, with its own kept heads.

Leaving heads out costs something: their rows of the weights have to be taken out per instance, and what is
left is multiplied in smaller pieces. So where tokens or dropped heads are few, all heads are projected and
the dropped ones go unused. The constants below say from where on it is cheaper to leave them out; they were
measured on one CPU (benchmarks/kernels.py). On a GPU all are projected, in one go for the batch. The results
are the same either way, and MACs are counted for the kept heads.

Legend: T packed query tokens, S packed key tokens, n tokens of an instance, H heads, h kept heads, E head
width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from smarttrim_cli.pruning import host
from smarttrim_cli.pruning.projections import CrossProjections, Projections
from smarttrim_cli.pruning.ragged import ragged_attention
from smarttrim_cli.pruning.static_heads import StaticHeads
from smarttrim_cli.pruning.stream import PackedStream

OVERHEAD_IN = 32
"""Tokens' worth of taking a head's rows out of the weights of queries, keys and values."""

OVERHEAD_OUT = 110
"""Tokens' worth of taking its columns out of the output projection's."""

SLOWER_IN_PIECES = 0.6
"""Speed of such pieces where whole weights are prepared: what is taken out is laid out anew."""

WORTH_LEAVING_OUT = 60_000
"""Pairs of query and key, over heads, from which on it is cheaper to leave heads out of the attention."""

Heads = tuple[int, ...] | None
"""Kept heads of an instance; None for all."""


def packed_attention(
    p: Projections,
    query: Tensor,
    memory: Tensor,
    queries: PackedStream,
    keys: PackedStream,
    heads_BH: Tensor | None,
    kept: Sequence[Heads] | None,
    static: StaticHeads | None = None,
) -> Tensor:
    """Attention of one module, output projection included.

    Args:
        p: The host's projections.
        query: (1, T, D).
        memory: (1, S, D); ``query`` itself for self-attention.
        queries: Stream of the queries.
        keys: Stream of the keys and values.
        heads_BH: Keep mask of the heads; None where all instances keep all.
        kept: The same on the host; None where it was not fetched, see :func:`heads_matter`.
        static: The same where it is so for all instances, always.
    """
    if static is not None:
        if not static.kept:
            return p.empty(query)
        q, k, v = (x[0] for x in p.project(query, memory, static))
        return p.merge(ragged_attention(q, k, v, queries, keys, p.scale).unsqueeze(0), static)
    if heads_BH is None:
        q, k, v = (x[0] for x in p.project(query, memory, None))
        return p.merge(ragged_attention(q, k, v, queries, keys, p.scale).unsqueeze(0), None)
    if kept is not None and (_counted() or _worth_leaving_out(p.num_heads, queries, keys, kept)):
        return _by_instance(p, query, memory, queries, keys, kept)
    return _by_mask(p, query, memory, queries, keys, heads_BH)


def heads_matter(device: torch.device) -> bool:
    """Whether the host has to know which heads are kept. On a GPU it does not, and would have to wait."""
    return _counted() or not host.asking_costs(device)


def _counted() -> bool:
    """While a forward is traced, exactly the work that is counted has to be seen."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


def _worth_leaving_out(heads: int, queries: PackedStream, keys: PackedStream, kept: Sequence[Heads]) -> bool:
    pieces = zip(queries.lengths, keys.lengths, kept, strict=True)
    saved = sum((heads - len(some)) * n * m for n, m, some in pieces if some is not None)
    return saved > WORTH_LEAVING_OUT * len(kept)


def _by_mask(
    p: Projections,
    query: Tensor,
    memory: Tensor,
    queries: PackedStream,
    keys: PackedStream,
    heads_BH: Tensor,
) -> Tensor:
    """All heads attend, for the whole batch at once; the contexts of dropped ones are set to zero."""
    q, k, v = (x[0] for x in p.project(query, memory, None))
    out_THE = ragged_attention(q, k, v, queries, keys, p.scale)
    mask_TH = (heads_BH if len(heads_BH) == 1 else heads_BH[queries.segment_T]).to(out_THE.dtype)
    return p.merge((out_THE * mask_TH.unsqueeze(-1)).unsqueeze(0), None)


def _by_instance(
    p: Projections,
    query: Tensor,
    memory: Tensor,
    queries: PackedStream,
    keys: PackedStream,
    kept: Sequence[Heads],
) -> Tensor:
    """Every instance attends with its kept heads only; weights are taken out where that is cheaper."""
    device = query.device
    index = [
        None if heads is None else torch.tensor(heads, dtype=torch.long, device=device) for heads in kept
    ]
    counts = [p.num_heads if heads is None else len(heads) for heads in kept]

    def projected(
        x: Tensor, stream: PackedStream, project: Callable[[Tensor, Tensor | None], tuple[Tensor, ...]]
    ) -> list[tuple[Tensor, ...]]:
        if taking_out_pays(p, stream.lengths, counts, OVERHEAD_IN):
            parts = zip(x.split(stream.spans, 1), index, counts, strict=True)
            return [() if not count else project(rows, heads) for rows, heads, count in parts]
        whole = zip(*(y.split(stream.spans, 1) for y in project(x, None)), strict=True)
        return [
            parts if heads is None else tuple(y.index_select(2, heads) for y in parts)
            for parts, heads in zip(whole, index, strict=True)
        ]

    if memory is query:
        qkv = projected(query, queries, lambda x, heads: p.project(x, x, heads))
    else:
        cross = cast(CrossProjections, p)
        q = projected(query, queries, lambda x, heads: (cross.queries(x, heads),))
        qkv = [a + b for a, b in zip(q, projected(memory, keys, cross.keys_values), strict=True)]
    contexts = [
        None if not count else _attend(parts, length, p.scale)
        for parts, length, count in zip(qkv, keys.lengths, counts, strict=True)
    ]
    return _merged(p, query, queries, contexts, index, counts)


def taking_out_pays(p: Projections, lengths: Sequence[int], counts: Sequence[int], overhead: int) -> bool:
    """Whether projecting every instance's kept heads is cheaper than projecting all heads of the batch."""
    pieces = sum(count * (length + overhead) for length, count in zip(lengths, counts, strict=True))
    limit = SLOWER_IN_PIECES if p.prepared else 1.0
    return _counted() or pieces < limit * p.num_heads * sum(lengths)


def _attend(qkv_1nhE: tuple[Tensor, ...], keys: int, scale: float) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in qkv_1nhE)
    k, v = k[:, :, :keys], v[:, :, :keys]  # without the tail
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)


def _merged(
    p: Projections,
    query: Tensor,
    queries: PackedStream,
    contexts: list[Tensor | None],
    index: list[Tensor | None],
    counts: list[int],
) -> Tensor:
    """Output projection of contexts (1, n, h, E) per instance."""
    if taking_out_pays(p, queries.lengths, counts, OVERHEAD_OUT):
        rows = query.split(queries.spans, 1)
        parts = zip(contexts, index, rows, strict=True)
        return torch.cat(
            [p.empty(row) if part is None else p.merge(part, heads) for part, heads, row in parts], 1
        )
    dtype = next((part.dtype for part in contexts if part is not None), query.dtype)  # under autocast another
    whole_1THE = query.new_zeros(1, query.shape[1], p.num_heads, p.head_dim, dtype=dtype)
    start = 0
    for part, heads, length in zip(contexts, index, queries.spans, strict=True):
        if part is not None:
            rows_1nHE = whole_1THE[:, start : start + length]
            if heads is None:
                rows_1nHE.copy_(part)
            else:
                rows_1nHE.index_copy_(2, heads, part)
        start += length
    return p.merge(whole_1THE, None)

"""Analytic MACs of a trimmed forward pass, counted as torchprofile counts them.

Everything is a polynomial in the numbers of kept tokens and heads, so the same functions serve plain numbers
(predictions before training), tensors with one entry per instance (evaluation) and tensors with gradients (a
cost loss on MACs). torchprofile counts linear, matmul, attention and convolution, and one MAC per element of
mul and layer_norm outputs; GELU, softmax and additions count nothing.

Where an instance has several rows in a stream (two images; several texts), counts are (B, rows) and costs are
summed over the rows; plain numbers then stand for every row.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from smarttrim_cli.pruning.decisions import Decisions
from smarttrim_cli.pruning.sites import TOKEN, Architecture, AttentionSpec, LayerSpec, Site, TokenCost
from smarttrim_cli.trimmers._profile import kept_by_layer

Number = Any
"""A float, or a tensor (B,) or (B, rows)."""

Counts = dict[str, Number]
"""Kept tokens or heads per site name, and what a stream starts with.

- ``<stream>.in``: its tokens; of a decoder all that it processes, over rows and steps;
- ``<stream>.rows``: rows per instance, where not 1;
- ``<decoder>.pairs``: pairs of query and key in its self-attention, over rows and steps;
- ``<decoder>.logits``: tokens of which it predicts what follows; the official code does so of all;
- ``<decoder>.row_calls``: rows, summed over steps: how often the official code projects the memory.
"""


def attention_macs(
    spec: AttentionSpec, width: int, queries: Number, memory: Number, heads: Number, memory_width: int
) -> Number:
    """Projections and attention of one module with some of its heads."""
    inner = heads * spec.head_dim
    projections = queries * width * inner + 2 * memory * memory_width * inner
    return projections + 2 * queries * memory * inner + queries * inner * width


def layer_macs(spec: LayerSpec, counts: Counts, as_published: bool = False) -> Number:
    """One layer after its tokens were trimmed, trimmers excluded; for every row."""
    tokens = counts[_name(spec, TOKEN)]
    macs = tokens * (2 * spec.width * spec.mlp_width + spec.extra_macs)
    for kind, attention in spec.attentions:
        heads = counts[_name(spec, kind)]
        if f"{spec.stream}.pairs" in counts:
            macs = macs + _decoder_attention_macs(spec, attention, counts, heads, as_published)
        elif attention.memory_stream is None:
            macs = macs + attention_macs(attention, spec.width, tokens, tokens, heads, spec.width)
        else:
            memory = _memory_tokens(attention, counts, tokens)
            macs = macs + attention_macs(attention, spec.width, tokens, memory, heads, attention.memory_width)
    return macs


def _decoder_attention_macs(
    spec: LayerSpec, attention: AttentionSpec, counts: Counts, heads: Number, as_published: bool
) -> Number:
    """Own keys and values are cached between steps; the memory's projected once, or per row call."""
    tokens, inner = counts[_name(spec, TOKEN)], heads * attention.head_dim
    if attention.memory_stream is None:
        return 4 * tokens * spec.width * inner + 2 * counts[f"{spec.stream}.pairs"] * inner
    memory = counts[f"{attention.memory_stream}.{attention.memory_layer}.{TOKEN}"]
    times = counts[f"{spec.stream}.row_calls"] if as_published else 1
    keys_values = 2 * memory * attention.memory_width * inner * times
    return 2 * tokens * spec.width * inner + keys_values + 2 * tokens * memory * inner


def _memory_tokens(attention: AttentionSpec, counts: Counts, tokens: Number) -> Number:
    """Kept tokens of the memory, for every row of the stream that attends to it."""
    memory = counts[f"{attention.memory_stream}.{attention.memory_layer}.{TOKEN}"]
    if isinstance(memory, Tensor) and memory.dim() == 2 and attention.memory_copy is not None:
        return memory[:, attention.memory_copy]
    if isinstance(memory, Tensor) and memory.dim() == 1 and isinstance(tokens, Tensor) and tokens.dim() == 2:
        return memory.unsqueeze(-1)
    return memory


def tokens_after(counts: Counts, stream: str, layer: int) -> Number:
    """Tokens of a stream after a layer's trimming; layer -1 is the start."""
    return counts[f"{stream}.in"] if layer < 0 else counts[f"{stream}.{layer}.{TOKEN}"]


def macs_by_part(
    architecture: Architecture,
    counts: Counts,
    trimmers: Mapping[str, Any] | None = None,
    as_published: bool = False,
) -> dict[str, Number]:
    """MACs of every part of the model, trimmers as a part of their own.

    Args:
        architecture: Of the backbone.
        counts: Kept tokens and heads.
        trimmers: Site name to trimmer; None leaves their cost out.
        as_published: Count as the official code of decoders runs, which projects the keys and values of the
            memory anew for every beam and step, and predicts what follows every token of a prompt.
    """
    parts: dict[str, Number] = {}

    def add(part: str, stream: str | None, per_row: Number) -> None:
        macs = per_row if stream is None else _over_rows(per_row, counts.get(f"{stream}.rows", 1))
        parts[part] = parts[part] + macs if part in parts else macs

    for layer in architecture.layers:
        add(layer.part, layer.stream, layer_macs(layer, counts, as_published))
    for fixed in architecture.fixed:
        add(fixed.part, fixed.per_row_of, fixed.macs)
    for cost in architecture.per_token:
        add(cost.part, cost.stream, _tokens_of(cost, counts, as_published) * cost.macs_per_token)
    for name, trimmer in (trimmers or {}).items():
        add("trimmers", None, trimmer_macs(name, trimmer, counts))
    return parts


def _tokens_of(cost: TokenCost, counts: Counts, as_published: bool) -> Number:
    if cost.run_on is None or as_published:
        return tokens_after(counts, cost.stream, cost.after_layer)
    return counts[f"{cost.stream}.{cost.run_on}"]


def trimmer_macs(name: str, trimmer: Any, counts: Counts) -> Number:
    """What a trimmer itself costs an instance, over its rows.

    Args:
        name: Its site.
        trimmer: It.
        counts: Of the whole pass.
    """
    site, per_row = Site.parse(name), trimmer.fixed_macs()
    if trimmer.token_macs() or trimmer.pair_macs():
        seen = tokens_after(counts, site.stream, site.layer - 1)
        per_row = per_row + seen * (trimmer.token_macs() + seen * trimmer.pair_macs())
    return _over_rows(per_row, counts.get(f"{site.stream}.rows", 1))


def _over_rows(per_row: Number, rows: int) -> Number:
    """Sum over an instance's rows."""
    if isinstance(per_row, Tensor) and per_row.dim() == 2:
        return per_row.sum(-1)
    return per_row * rows


def total_macs(
    architecture: Architecture,
    counts: Counts,
    trimmers: Mapping[str, Any] | None = None,
    as_published: bool = False,
) -> Number:
    """MACs of the whole forward pass."""
    return sum(macs_by_part(architecture, counts, trimmers, as_published).values())


def full_counts(architecture: Architecture, start: Mapping[str, Number], *, trimming: bool = False) -> Counts:
    """Counts when everything is kept.

    Args:
        architecture: Of the backbone.
        start: Tokens per stream, and the rows and work of :data:`Counts` under their names there.
        trimming: Whether what only trimming needs (``architecture.overhead``) runs too.
    """
    counts: Counts = {name if "." in name else f"{name}.in": number for name, number in start.items()}
    for stream, rows in architecture.copies.items():
        counts.setdefault(f"{stream}.rows", rows)
    for stream in () if trimming else architecture.overhead:
        counts[f"{stream}.in"] = 0
    for layer in architecture.layers:
        counts[_name(layer, TOKEN)] = counts[f"{layer.stream}.in"]
        for kind, attention in layer.attentions:
            counts[_name(layer, kind)] = attention.heads
    return counts


def saved_by_a_token(architecture: Architecture, start: Mapping[str, Number], name: str) -> float:
    """MACs that one token less from a site on saves, while everything else is there.

    Args:
        architecture: Of the backbone.
        start: Tokens per stream, as :func:`full_counts` takes it.
        name: Of a token site.
    """
    site, counts = Site.parse(name), full_counts(architecture, start)
    fewer = dict(counts)
    for layer in architecture.layers:
        if layer.stream == site.stream and layer.index >= site.layer:
            fewer[_name(layer, TOKEN)] = counts[_name(layer, TOKEN)] - 1
    return float(total_macs(architecture, counts) - total_macs(architecture, fewer))


def planned_counts(
    architecture: Architecture,
    start: Mapping[str, Number],
    kept: Mapping[str, float],
    trimmers: Collection[str] | None = None,
) -> Counts:
    """Counts predicted for target kept fractions per group, spread over the layers by ``kept_by_layer``.

    Args:
        architecture: Of the backbone.
        start: Tokens per stream.
        kept: Group to kept fraction.
        trimmers: Names of the sites that have one; None for all.
    """
    stand = {Site.parse(name) for name in trimmers} if trimmers is not None else None
    counts = full_counts(architecture, start, trimming=True)
    for site in architecture.sites(list(kept)):
        available = counts[site.name]
        if site.kind == TOKEN:
            depth = architecture.depth(site.stream)
            at = None if stand is None else [s.layer for s in stand if s.group == site.group]
            share = kept_by_layer(kept[site.group], depth, at)[site.layer]
            counts[site.name] = 1 + (available - 1) * share
        else:
            counts[site.name] = available * kept[site.group]
    return counts


def measured_counts(decisions: Decisions) -> Counts:
    """Counts of a forward pass, per instance; differentiable in ``masked`` mode."""
    counts: Counts = {
        name: decisions.by_instance(Site.parse(name).stream, value)
        for name, value in decisions.counts.items()
    }
    for stream, valid_RN in decisions.valid.items():
        counts[f"{stream}.in"] = decisions.by_instance(stream, valid_RN.sum(1))
        if decisions.copies.get(stream, 1) > 1:
            counts[f"{stream}.rows"] = decisions.copies[stream]
    for name, amount_B in decisions.work.items():
        counts[name if "." in name else f"{name}.in"] = amount_B
    return counts


def start_of(counts: Counts) -> dict[str, Number]:
    """What the streams of a measured pass started with, as ``full_counts`` takes it."""
    return {
        name.removesuffix(".in"): value
        for name, value in counts.items()
        if name.endswith((".in", ".rows", ".pairs", ".logits", ".row_calls"))
    }


def complete(architecture: Architecture, counts: Counts) -> Counts:
    """Measured counts with the tokens of decoders' layers, which are never dropped and so not logged."""
    for layer in architecture.layers:
        counts.setdefault(_name(layer, TOKEN), counts[f"{layer.stream}.in"])
    return counts


def instance_macs(model: Any, decisions: Decisions, as_published: bool = False) -> tuple[Tensor, Tensor]:
    """MACs (B,) of every instance trimmed, and what the full model would have cost it (at equal output)."""
    counts = double_counts(model.architecture, decisions)
    full = total_macs(
        model.architecture, full_counts(model.architecture, start_of(counts)), None, as_published
    )
    return total_macs(model.architecture, counts, model.sites, as_published), full


def double_counts(architecture: Architecture, decisions: Decisions) -> Counts:
    """Measured counts in double precision, complete."""
    counts = {
        name: value.double() if isinstance(value, Tensor) else value
        for name, value in measured_counts(decisions).items()
    }
    return complete(architecture, counts)


def _name(spec: LayerSpec, kind: str) -> str:
    return f"{spec.stream}.{spec.index}.{kind}"

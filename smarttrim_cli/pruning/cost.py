"""Analytic MACs of a trimmed forward pass, counted as torchprofile counts them.

Everything is a polynomial in the numbers of kept tokens and heads, so the same functions serve plain numbers
(predictions before training), tensors with one entry per instance (evaluation) and tensors with gradients (a
cost loss on MACs). torchprofile counts linear, matmul, attention and convolution, and one MAC per element of
mul and layer_norm outputs; GELU, softmax and additions count nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from smarttrim_cli.pruning.decisions import Decisions
from smarttrim_cli.pruning.sites import (
    CROSS_HEAD,
    SELF_HEAD,
    TOKEN,
    Architecture,
    AttentionSpec,
    LayerSpec,
    Site,
)
from smarttrim_cli.trimmers._profile import kept_by_layer

Number = Any
"""A float, or a tensor (B,)."""

Counts = dict[str, Number]
"""Kept tokens or heads per site name, plus ``<stream>.in``: the tokens a stream starts with."""

PARTS = ("vision_encoder", "text_encoder", "cross_modal", "head", "trimmers")


def attention_macs(
    spec: AttentionSpec, width: int, queries: Number, memory: Number, heads: Number, memory_width: int
) -> Number:
    """Projections and attention of one module with some of its heads."""
    inner = heads * spec.head_dim
    projections = queries * width * inner + 2 * memory * memory_width * inner
    return projections + 2 * queries * memory * inner + queries * inner * width


def layer_macs(spec: LayerSpec, counts: Counts) -> Number:
    """One layer after its tokens were trimmed, trimmers excluded."""
    tokens = counts[_name(spec, TOKEN)]
    heads = counts[_name(spec, SELF_HEAD)]
    macs = attention_macs(spec.self_attention, spec.width, tokens, tokens, heads, spec.width)
    cross = spec.cross_attention
    if cross is not None:
        memory = counts[f"{cross.memory_stream}.{cross.memory_layer}.{TOKEN}"]
        heads = counts[_name(spec, CROSS_HEAD)]
        macs = macs + attention_macs(cross, spec.width, tokens, memory, heads, cross.memory_width)
    return macs + tokens * (2 * spec.width * spec.mlp_width + spec.extra_macs)


def tokens_after(counts: Counts, stream: str, layer: int) -> Number:
    """Tokens of a stream after a layer's trimming; layer -1 is the start."""
    return counts[f"{stream}.in"] if layer < 0 else counts[f"{stream}.{layer}.{TOKEN}"]


def macs_by_part(
    architecture: Architecture, counts: Counts, trimmers: Mapping[str, Any] | None = None
) -> dict[str, Number]:
    """MACs of every part of the model, trimmers as a part of their own."""
    parts: dict[str, Number] = {}

    def add(part: str, macs: Number) -> None:
        parts[part] = parts[part] + macs if part in parts else macs

    for layer in architecture.layers:
        add(layer.part, layer_macs(layer, counts))
    for fixed in architecture.fixed:
        add(fixed.part, fixed.macs)
    for cost in architecture.per_token:
        add(cost.part, tokens_after(counts, cost.stream, cost.after_layer) * cost.macs_per_token)
    for name, trimmer in (trimmers or {}).items():
        site = Site.parse(name)
        seen = tokens_after(counts, site.stream, site.layer - 1)
        add("trimmers", trimmer.fixed_macs() + seen * trimmer.token_macs())
    return parts


def total_macs(
    architecture: Architecture, counts: Counts, trimmers: Mapping[str, Any] | None = None
) -> Number:
    """MACs of the whole forward pass."""
    return sum(macs_by_part(architecture, counts, trimmers).values())


def full_counts(architecture: Architecture, tokens: Mapping[str, Number]) -> Counts:
    """Counts when everything is kept; ``tokens`` is the number per stream."""
    counts: Counts = {f"{stream}.in": number for stream, number in tokens.items()}
    for site in architecture.sites():
        counts[site.name] = _available(architecture, site, tokens)
    return counts


def planned_counts(
    architecture: Architecture, tokens: Mapping[str, Number], kept: Mapping[str, float]
) -> Counts:
    """Counts predicted for target kept fractions per group, spread over the layers by ``kept_by_layer``."""
    counts = full_counts(architecture, tokens)
    for site in architecture.sites(list(kept)):
        available = _available(architecture, site, tokens)
        if site.kind == TOKEN:
            share = kept_by_layer(kept[site.group], architecture.depth(site.stream))[site.layer]
            counts[site.name] = 1 + (available - 1) * share
        else:
            counts[site.name] = available * kept[site.group]
    return counts


def measured_counts(decisions: Decisions) -> Counts:
    """Counts of a forward pass, per instance; differentiable in ``masked`` mode."""
    counts: Counts = dict(decisions.counts)
    for stream, valid_BN in decisions.valid.items():
        counts[f"{stream}.in"] = valid_BN.sum(1)
    return counts


def instance_macs(model: Any, decisions: Decisions) -> tuple[Tensor, Tensor]:
    """MACs (B,) of every instance trimmed, and what the full model would have cost it."""
    counts = measured_counts(decisions)
    counts = {name: value.double() for name, value in counts.items()}
    tokens = {stream: counts[f"{stream}.in"] for stream in decisions.valid}
    full = total_macs(model.architecture, full_counts(model.architecture, tokens))
    return total_macs(model.architecture, counts, model.sites), full


def _available(architecture: Architecture, site: Site, tokens: Mapping[str, Number]) -> Number:
    if site.kind == TOKEN:
        return tokens[site.stream]
    spec = architecture.layer(site.stream, site.layer)
    attention = spec.self_attention if site.kind == SELF_HEAD else spec.cross_attention
    assert attention is not None
    return attention.heads


def _name(spec: LayerSpec, kind: str) -> str:
    return f"{spec.stream}.{spec.index}.{kind}"

"""Costs of any number of instances: counts are noted batch by batch, MACs computed for many at once.

The cost model is a few hundred small operators, whatever the number of instances. Done after every batch it
would take a noticeable share of a forward pass (``benchmarks/costs_of_counting.py``); so a batch only leaves
integers behind, and all that are alike are computed together.

Legend: B instances, R rows of a stream (``copies`` per instance), S sites.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from smarttrim_cli.pruning.context import ForwardContext
from smarttrim_cli.pruning.cost import Counts, complete, full_counts, macs_by_part, start_of
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.pruning.sites import TOKEN, Site
from smarttrim_cli.pruning.stream import PackedStream

if TYPE_CHECKING:
    from smarttrim_cli.engine.inference import Predictions

AT_ONCE = 8192
"""Instances whose costs are computed together."""

_WORK = ""
"""What decoders did, in place of a stream's name."""

Layout = dict[str, tuple[tuple[str, ...], int]]
"""Stream to the names of the rows of its block of counts, and to its rows per instance."""


class CostLog:
    """Costs of the forward passes of one model.

    Args:
        model: The model.
        result: Gets the costs, in the order of the passes, when :meth:`flush` is called.
    """

    def __init__(self, model: TrimmedModel, result: Predictions) -> None:
        self.model, self.result = model, result
        self._layout: Layout = {}
        self._pending: list[dict[str, Tensor]] = []
        self._instances = 0

    def add(self, context: ForwardContext) -> None:
        """Note what a forward pass has kept."""
        layout, blocks = _noted(context)
        if self._pending and (layout != self._layout or self._instances >= AT_ONCE):
            self.flush()
        self._layout = layout
        self._pending.append(blocks)
        stream = next(iter(blocks))
        self._instances += blocks[stream].shape[1] // layout[stream][1]

    def flush(self) -> None:
        """Compute the costs of all that was noted since the last time."""
        if not self._pending:
            return
        counts: Counts = {}
        for stream, (names, copies) in self._layout.items():
            block_SR = torch.cat([blocks[stream] for blocks in self._pending], 1).double()
            values = block_SR if copies == 1 else block_SR.unflatten(1, (-1, copies))
            counts |= zip(names, values, strict=True)
            if copies > 1:
                counts[f"{stream}.rows"] = copies
        self._pending, self._instances = [], 0
        add_counts(self.result, self.model, complete(self.model.architecture, counts))


def _noted(context: ForwardContext) -> tuple[Layout, dict[str, Tensor]]:
    """The numbers of kept tokens and heads of a pass, a block (S, R) per stream, on the CPU."""
    layout: Layout = {}
    blocks: dict[str, Tensor] = {}
    heads, tokens = _by_stream(context.log.heads), _by_stream(context.log.tokens)
    for stream, valid_RN in context.valid.items():
        rows = [valid_RN.sum(1)[None].cpu()]
        streams: list[Any] = [context.log.tokens[name] for name in tokens.get(stream, ())]
        if streams and all(isinstance(one, PackedStream) for one in streams):
            rows.append(torch.tensor([one.lengths for one in streams]))
        elif streams:
            rows.append(torch.stack([one.counts_B() for one in streams]).cpu())
        names = (f"{stream}.in", *tokens.get(stream, ()))
        blocks[stream] = torch.cat(rows)
        layout[stream] = names, context.copies.get(stream, 1)
    for stream, sites in heads.items():
        kept_SR = _kept_heads(context, sites, stream)
        if stream not in blocks:  # of a decoder, which is not entered and has a row per instance
            layout[stream], blocks[stream] = (sites, 1), kept_SR
            continue
        layout[stream] = (*layout[stream][0], *sites), layout[stream][1]
        blocks[stream] = torch.cat((blocks[stream], kept_SR))
    if context.work:
        named = tuple(name if "." in name else f"{name}.in" for name in context.work)
        layout[_WORK] = named, 1
        blocks[_WORK] = torch.stack(list(context.work.values())).double().cpu()
    return layout, blocks


def _by_stream(names: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        stream = name.partition(".")[0]
        found[stream] = (*found.get(stream, ()), name)
    return found


def _kept_heads(context: ForwardContext, names: Sequence[str], stream: str) -> Tensor:
    """Kept heads (S, R) of the sites of one stream; where there is no trimmer all are kept."""
    masks = [context.log.heads[name] for name in names]
    decided = [mask_RH for mask_RH in masks if mask_RH is not None]
    if len(decided) == len(masks) and len({mask.shape for mask in decided}) == 1:
        return torch.stack(decided).sum(-1).cpu()
    rows = len(context.cls[stream])
    counts = []
    for name, mask_RH in zip(names, masks, strict=True):
        site = Site.parse(name)
        spec = context.architecture.layer(site.stream, site.layer).attention(site.kind)
        counts.append(torch.full((rows,), float(spec.heads)) if mask_RH is None else mask_RH.sum(1).cpu())
    return torch.stack(counts)


def add_counts(result: Predictions, model: TrimmedModel, counts: Counts) -> None:
    """Add costs and kept fractions of instances.

    Args:
        result: Gets them.
        model: The model.
        counts: Kept tokens and heads per instance in double precision, complete (``pruning.cost``).
    """
    whole = full_counts(model.architecture, start_of(counts))
    parts = macs_by_part(model.architecture, counts, model.sites)
    full_parts = macs_by_part(model.architecture, whole)
    trimmed_B, full_B = _total(parts), _total(full_parts)
    result.macs += trimmed_B.tolist()
    result.full_macs += full_B.tolist()
    if any(name.endswith(".row_calls") for name in counts):
        pair = (
            _total(macs_by_part(model.architecture, some, sites, as_published=True)).tolist()
            for some, sites in ((counts, model.sites), (whole, None))
        )
        result.published += list(zip(*pair, strict=True))
    _add_parts(result.parts, parts, len(trimmed_B))
    _add_parts(result.full_parts, full_parts, len(trimmed_B))
    for group, fraction_B in kept_by_group(model, counts).items():
        result.kept.setdefault(group, []).extend(fraction_B.tolist())


def _total(parts: Mapping[str, Any]) -> Tensor:
    total: Any = sum(parts.values())
    return total


def _add_parts(sums: dict[str, float], parts: Mapping[str, Any], instances: int) -> None:
    for part, macs in parts.items():
        total = float(macs.sum()) if isinstance(macs, Tensor) else macs * instances
        sums[part] = sums.get(part, 0.0) + total


def kept_by_group(model: TrimmedModel, counts: Counts) -> dict[str, Tensor]:
    """Mean kept fraction of every group, (B,): ``pruning.objective.kept_fractions`` of counts."""
    shares: dict[str, list[Tensor]] = {}
    for site in model.architecture.sites(model.groups):
        kept = counts[site.name]
        if site.kind == TOKEN:
            removable = counts[f"{site.stream}.in"] - 1
            share = torch.where(removable > 0, (kept - 1) / removable.clamp(min=1), 1.0)
        else:
            share = kept / model.architecture.layer(site.stream, site.layer).attention(site.kind).heads
        shares.setdefault(site.group, []).append(share)
    means = {group: torch.stack(sites).mean(0) for group, sites in shares.items()}
    return {group: mean.mean(-1) if mean.dim() == 2 else mean for group, mean in means.items()}

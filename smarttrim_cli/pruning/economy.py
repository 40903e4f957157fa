"""Trimmers that cost more than they save, found on calibration instances and taken out (ours).

Dropped tokens stay dropped, so a layer without a trimmer costs little where its neighbours decide much the
same, and a trimmer that drops next to nothing is paid for by every instance. What a site saves is reckoned
from the scores of a pass: its own decisions are left out, those of later sites are taken again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from smarttrim_cli.pruning.budget import counts_at, effective_scores
from smarttrim_cli.pruning.cost import double_counts, total_macs
from smarttrim_cli.pruning.decisions import Decisions
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.pruning.sites import TOKEN, Site


@torch.no_grad()
def unprofitable(model: TrimmedModel, batches: Iterable[Any], call_macs: float = 0.0) -> list[str]:
    """Sites without whose trimmer the model would cost less, at the same threshold and scores.

    The one that wastes most is left out first, then the others are judged again.

    Args:
        model: In evaluation mode, at its threshold.
        batches: Instances to judge by.
        call_macs: What running a trimmer costs an instance beside its MACs, in MACs that take as long.

    Returns:
        Site names, in that order. Trimmers that rank tokens among those that are left, or rewrite what they
        keep, are never among them.
    """
    passes = [
        model(batch.inputs, "masked", instance_ids=batch.instance_ids, log_scores=True).decisions
        for batch in batches
    ]
    sites, found, instances = model.sites, list[str](), sum(map(_instances, passes))
    candidates = [name for name, trimmer in sites.items() if not (trimmer.relative or trimmer.rewrites)]

    def cost_of(left: Mapping[str, Any]) -> float:
        calls = sum(1 for trimmer in left.values() if trimmer.fixed_macs() or trimmer.token_macs())
        return _macs(model, passes, left) + call_macs * calls * instances

    cost = cost_of(sites)
    while candidates:
        costs = {name: cost_of(_without(sites, name)) for name in candidates}
        worst = min(costs, key=lambda name: costs[name])
        if costs[worst] >= cost:
            break
        cost, sites = costs[worst], _without(sites, worst)
        candidates.remove(worst)
        found.append(worst)
    return found


def _without(sites: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {other: trimmer for other, trimmer in sites.items() if other != name}


def _macs(model: TrimmedModel, passes: Iterable[Decisions], sites: Mapping[str, Any]) -> float:
    """MACs of all instances with some of the trimmers, their own included."""
    total = 0.0
    for decisions in passes:
        scores = {name: own for name, own in decisions.scores.items() if name in sites}
        fewer = replace(decisions, scores=scores)
        kept = counts_at(fewer, effective_scores(fewer), model.threshold[None])
        counts = {name: _all_of(decisions, name) for name in decisions.counts}
        counts |= {name: kept_1R[0] for name, kept_1R in kept.items()}
        measured = double_counts(model.architecture, replace(fewer, counts=counts))
        total += float(total_macs(model.architecture, measured, sites).sum())
    return total


def _all_of(decisions: Decisions, name: str) -> Tensor:
    """How many tokens or heads a site has, per row."""
    site = Site.parse(name)
    if site.kind == TOKEN:
        return decisions.valid[site.stream].sum(1)
    return torch.full_like(decisions.counts[name], decisions.keep[name].shape[1])


def _instances(decisions: Decisions) -> int:
    stream, valid_RN = next(iter(decisions.valid.items()))
    return len(valid_RN) // decisions.copies.get(stream, 1)

"""Trimmers that cost more than they save, found on calibration instances and taken out (ours).

Dropped tokens stay dropped, so a layer without a trimmer costs little where its neighbours decide much the
same, and a trimmer that drops next to nothing is paid for by every instance. What a site saves is reckoned
from the scores of a pass: its own decisions are left out, those of later sites are taken again.

Legend: K ways of leaving one trimmer out, or none; B instances, R rows of a stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from smarttrim_cli.pruning.budget import counts_at, effective_scores
from smarttrim_cli.pruning.cost import double_counts, total_macs, trimmer_macs
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
        Site names, in that order. Trimmers that cost nothing, rank tokens among those that are left, or
        rewrite what they keep, are never among them.
    """
    passes = [
        model(batch.inputs, "masked", instance_ids=batch.instance_ids, log_scores=True).decisions
        for batch in batches
    ]
    sites, found = dict(model.sites), list[str]()
    candidates = [name for name, trimmer in sites.items() if _may_go(trimmer)]
    call = call_macs * sum(map(_instances, passes))
    while candidates:
        costs_K = sum(_costs_K(model, decisions, sites, candidates) for decisions in passes)
        assert isinstance(costs_K, Tensor)
        worst = int(costs_K[:-1].argmin())
        if costs_K[worst] - call >= costs_K[-1]:
            break
        found.append(candidates.pop(worst))
        del sites[found[-1]]
    return found


def _may_go(trimmer: Any) -> bool:
    costs = trimmer.fixed_macs() or trimmer.token_macs()
    return bool(costs) and not (trimmer.relative or trimmer.rewrites)


def _instances(decisions: Decisions) -> int:
    stream, valid_RN = next(iter(decisions.valid.items()))
    return len(valid_RN) // decisions.copies.get(stream, 1)


def _costs_K(
    model: TrimmedModel, decisions: Decisions, sites: Mapping[str, Any], candidates: Sequence[str]
) -> Tensor:
    """MACs of all instances of a pass, trimmers included, with each candidate left out, and with none."""
    ways = len(candidates) + 1
    scores = {name: own for name, own in decisions.scores.items() if name in sites}
    counts_KR = {name: own_R.repeat(ways, 1) for name, own_R in _counts(model, decisions, scores).items()}
    for way, name in enumerate(candidates):
        site = Site.parse(name)
        left = {
            other: own
            for other, own in scores.items()
            if other != name and _same_tokens(Site.parse(other), site)
        }
        changed = _counts(model, decisions, left, lambda other, site=site: _same_tokens(other, site))
        for other, own_R in changed.items():
            counts_KR[other][way] = own_R
    repeated = replace(
        decisions,
        counts={name: own_KR.flatten() for name, own_KR in counts_KR.items()},
        valid={stream: valid_RN.repeat(ways, 1) for stream, valid_RN in decisions.valid.items()},
        work={name: amount_B.repeat(ways) for name, amount_B in decisions.work.items()},
    )
    counts = double_counts(model.architecture, repeated)
    costs_K = total_macs(model.architecture, counts, sites).view(ways, -1).sum(1)
    for way, name in enumerate(candidates):
        own = torch.as_tensor(trimmer_macs(name, sites[name], counts), dtype=torch.float64)
        costs_K[way] -= own.expand(len(costs_K) * _instances(decisions)).view(ways, -1)[way].sum()
    return costs_K


def _same_tokens(other: Site, site: Site) -> bool:
    """Whether a site's kept number depends on a trimmer at another: of tokens of its stream, or its own."""
    return other == site or (other.kind == site.kind == TOKEN and other.stream == site.stream)


def _counts(
    model: TrimmedModel,
    decisions: Decisions,
    scores: Mapping[str, Tensor],
    wanted: Any = lambda site: True,
) -> dict[str, Tensor]:
    """Kept tokens or heads (R,) of the wanted sites, if those with scores have trimmers and no others."""
    some = replace(
        decisions,
        scores=dict(scores),
        counts={name: own for name, own in decisions.counts.items() if wanted(Site.parse(name))},
    )
    kept = counts_at(some, effective_scores(some), model.threshold[None])
    return {name: kept[name][0] if name in kept else _all_of(decisions, name) for name in some.counts}


def _all_of(decisions: Decisions, name: str) -> Tensor:
    """How many tokens or heads a site has, per row."""
    site = Site.parse(name)
    if site.kind == TOKEN:
        return decisions.valid[site.stream].sum(1)
    heads = decisions.keep[name].shape[1]
    return torch.full(decisions.counts[name].shape, heads, device=decisions.counts[name].device)

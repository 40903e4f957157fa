"""The threshold at which a forward pass would have met its budget, from its own scores (ours).

Steering by the distance from the target (:func:`.schedule.steered_threshold`) lags behind: while scores
move, budgets swing. Here the decisions of a step are taken again at many thresholds, on the same scores, and
the one that meets the target is had at once. What a change of the decisions would change in later layers'
scores is left out; the next step sees it.

Legend: K thresholds, B instances, R rows of a stream, N tokens of a row, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from smarttrim_cli.pruning.cost import instance_macs
from smarttrim_cli.pruning.decisions import Decisions
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.pruning.sites import TOKEN, Site

_GRID = 33
_BELOW = 1.0
"""Logits under the lowest score: where everything is kept."""


@torch.no_grad()
def solved_threshold(model: TrimmedModel, decisions: Decisions, target: float) -> Tensor:
    """Threshold at which the decisions' own scores meet a share of the full model's MACs, a scalar.

    Args:
        model: Whose pass it was.
        decisions: Of a ``masked`` pass, with scores.
        target: Trimmed over full MACs. Where nothing is cheap enough, the highest score is returned; where
            everything is kept, a threshold under the lowest.
    """
    scores = effective_scores(decisions)
    pooled_S = torch.cat([_judged(decisions, name, values).flatten() for name, values in scores.items()])
    pooled_S = pooled_S[pooled_S.isfinite()]
    if not len(pooled_S):  # nothing that may be dropped: any threshold will do
        return model.threshold.clone()
    shares_K = torch.linspace(0, 1, _GRID, device=pooled_S.device)
    grid_K = torch.quantile(pooled_S[:: max(len(pooled_S) // 100_000, 1)], shares_K)
    grid_K[0] = pooled_S.min() - _BELOW
    grid_K[-1] = pooled_S.max()
    for _ in range(2):
        ratio_K = _ratios(model, decisions, scores, grid_K)
        first = int((ratio_K > target).sum())  # thresholds that keep too much; ratios fall
        if first in (0, len(grid_K)):
            return grid_K[min(first, len(grid_K) - 1)]
        low, high = grid_K[first - 1], grid_K[first]
        grid_K = low + (high - low) * shares_K
    return high


@torch.no_grad()
def head_levels(decisions: Decisions, kept: Mapping[str, float]) -> dict[str, Tensor]:
    """The threshold at which the heads of every group would have met their own target, from their scores.

    Scores of heads and of tokens mean different things: at one threshold for both, as it is, chance says
    which of them pays.

    Args:
        decisions: Of a ``masked`` pass, with scores.
        kept: Target kept fraction per group; those of tokens are passed over.

    Returns:
        Group to scalar; groups without scores are left out.
    """
    pooled: dict[str, list[Tensor]] = {}
    for name, scores_BH in decisions.scores.items():
        site = Site.parse(name)
        if site.kind != TOKEN and site.group in kept:
            pooled.setdefault(site.group, []).append(scores_BH.float().flatten())
    return {group: _level(torch.cat(own), kept[group]) for group, own in pooled.items()}


def _level(scores_S: Tensor, kept: float) -> Tensor:
    """The threshold above which a share of scores lies; equal scores stay together, all of them for 1."""
    level = torch.quantile(scores_S, 1.0 - kept)
    lower = scores_S.masked_fill(scores_S >= level, -torch.inf).max()
    between = torch.where(lower.isinf(), level - _BELOW, (level + lower) / 2)
    return torch.where((scores_S == level).any(), between, level)  # one at the threshold would be dropped


def effective_scores(decisions: Decisions) -> dict[str, Tensor]:
    """Scores (R, N) with which a token is still there after a site: the lowest so far; of heads their own."""
    lowest: dict[str, Tensor] = {}
    scores: dict[str, Tensor] = {}
    for name in decisions.counts:
        site = Site.parse(name)
        if name not in decisions.scores:
            if site.kind == TOKEN and site.stream in lowest:
                scores[name] = lowest[site.stream]
            continue
        own = decisions.scores[name].float()
        if site.kind == TOKEN:
            before = lowest.get(site.stream)
            own = lowest[site.stream] = own if before is None else torch.minimum(before, own)
        scores[name] = own
    return scores


def counts_at(decisions: Decisions, scores: Mapping[str, Tensor], thresholds_K: Tensor) -> dict[str, Tensor]:
    """Kept tokens (CLS included) or heads of every row at some thresholds, (K, R), of sites with scores.

    Args:
        decisions: Of a pass.
        scores: Of :func:`effective_scores`.
        thresholds_K: Thresholds, (K,).
    """
    return {
        name: (_judged(decisions, name, values) > thresholds_K[:, None, None]).sum(-1)
        + (Site.parse(name).kind == TOKEN)
        for name, values in scores.items()
    }


def _judged(decisions: Decisions, name: str, scores: Tensor) -> Tensor:
    """Scores of what may be dropped; NaN for CLS tokens and padding."""
    site = Site.parse(name)
    if site.kind != TOKEN:
        return scores
    removable_RN = decisions.valid[site.stream].clone()
    removable_RN[:, 0] = False
    return scores.masked_fill(~removable_RN, torch.nan)


def _ratios(model: TrimmedModel, decisions: Decisions, scores: dict[str, Tensor], grid_K: Tensor) -> Tensor:
    """Trimmed over full MACs of the whole batch at every threshold."""
    times = len(grid_K)
    counts = {name: count.detach().repeat(times) for name, count in decisions.counts.items()}
    counts |= {name: kept_KR.flatten() for name, kept_KR in counts_at(decisions, scores, grid_K).items()}
    valid = {stream: valid_RN.repeat(times, 1) for stream, valid_RN in decisions.valid.items()}
    work = {name: amount_B.repeat(times) for name, amount_B in decisions.work.items()}
    trimmed_KB, full_KB = instance_macs(model, replace(decisions, counts=counts, valid=valid, work=work))
    return trimmed_KB.view(times, -1).sum(1) / full_KB.view(times, -1).sum(1)

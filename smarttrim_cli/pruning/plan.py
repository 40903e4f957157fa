"""From what a recipe asks for to kept fractions per group, before any training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from smarttrim_cli.errors import UserError
from smarttrim_cli.pruning.cost import full_counts, macs_by_part, planned_counts, total_macs
from smarttrim_cli.pruning.sites import Architecture

PROPORTIONS = {
    "token.vision": 1.0,
    "token.text": 0.33,
    "head.vision": 0.5,
    "head.text": 0.5,
    "cross_head.vision": 0.5,
    "cross_head.text": 0.5,
    "head.decoder": 0.5,
    "cross_head.decoder": 0.5,
}
"""Relative sparsities when only a speed-up is given, those of the study: image tokens are most redundant."""

_MOST = 0.95


@dataclass(frozen=True)
class Plan:
    """What a run aims at.

    Attributes:
        kept: Target kept fraction per group with trimmers (gamma_p).
        full_macs: Predicted MACs of the full model, by part.
        trimmed_macs: Predicted MACs of the trimmed model, by part, trimmers included.
        tokens: Tokens per stream that the prediction is for.
        published: Where text is generated, MACs of full and trimmed model as the official code of decoders
            counts them.
    """

    kept: dict[str, float]
    full_macs: dict[str, float]
    trimmed_macs: dict[str, float]
    tokens: dict[str, float]
    published: tuple[float, float] | None = None

    @property
    def speedup(self) -> float:
        """Predicted MACs reduction."""
        return sum(self.full_macs.values()) / sum(self.trimmed_macs.values())


def make_plan(
    architecture: Architecture,
    trimmers: Mapping[str, Any],
    groups: list[str],
    tokens: Mapping[str, float],
    sparsity: Mapping[str, float] | None,
    speedup: float | None,
) -> Plan:
    """Kept fractions for a recipe.

    Args:
        architecture: Of the backbone.
        trimmers: Site name to trimmer, for their own cost.
        groups: Groups that have trimmers.
        tokens: Tokens per stream of a typical instance.
        sparsity: Fraction removed per group; with ``speedup``, the proportions.
        speedup: MACs reduction to solve for; None takes ``sparsity`` as it is.

    Raises:
        UserError: No sparsity reaches the speed-up.
    """
    proportions = {group: (sparsity or PROPORTIONS)[group] for group in groups}
    if speedup is None:
        kept = {group: 1.0 - removed for group, removed in proportions.items()}
    else:
        kept = solve(architecture, trimmers, proportions, tokens, speedup)
    full, trimmed = full_counts(architecture, tokens), planned_counts(architecture, tokens, kept, trimmers)
    published = None
    if any(name.endswith(".row_calls") for name in tokens):
        published = (
            float(total_macs(architecture, full, None, True)),
            float(total_macs(architecture, trimmed, trimmers, True)),
        )
    return Plan(
        kept,
        macs_by_part(architecture, full),
        macs_by_part(architecture, trimmed, trimmers),
        dict(tokens),
        published,
    )


def solve(
    architecture: Architecture,
    trimmers: Mapping[str, Any],
    proportions: Mapping[str, float],
    tokens: Mapping[str, float],
    speedup: float,
) -> dict[str, float]:
    """Scale proportional sparsities until the predicted MACs reduction is ``speedup``, by bisection."""
    if not proportions:
        raise UserError(
            "no site has a trimmer, so no speed-up can be reached",
            where="pruning",
            hint="a trimmer's build leaves out the sites for which it gives None",
        )
    largest = max(proportions.values(), default=0.0)
    if largest <= 0:
        raise UserError("every sparsity is 0, so no speed-up can be reached", where="pruning.target_sparsity")

    def kept_at(scale: float) -> dict[str, float]:
        return {group: 1.0 - min(scale * share / largest, _MOST) for group, share in proportions.items()}

    full = total_macs(architecture, full_counts(architecture, tokens))

    def reached(scale: float) -> float:
        counts = planned_counts(architecture, tokens, kept_at(scale), trimmers)
        return float(full / total_macs(architecture, counts, trimmers))

    low, high = 0.0, _MOST * largest / min(share for share in proportions.values() if share > 0)
    if reached(high) < speedup:
        raise UserError(
            f"{speedup}x cannot be reached: at most {reached(high):.2f}x, removing {_MOST:.0%} everywhere",
            where="pruning.target_speedup",
        )
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if reached(middle) < speedup else (low, middle)
    return kept_at(high)

"""Shift the decision threshold so that measured MACs meet a budget, on a split of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch

from smarttrim_cli.errors import UserError
from smarttrim_cli.pruning.cost import instance_macs
from smarttrim_cli.pruning.model import TrimmedModel

_USUAL, _FURTHEST = 2.0**6, 2.0**18
"""Logits hardly ever lie beyond the first; the second is below what trimmers give to what is always kept."""


@dataclass(frozen=True)
class Calibration:
    """Result of a calibration.

    Attributes:
        threshold: Decision threshold, a logit.
        speedup: MACs of the full model over those of the trimmed one, on the calibration instances.
        target: The speed-up asked for.
        reached: Whether the tolerance was met.
        trained_speedup: ``speedup`` at the threshold that the model came with, that of its training.
    """

    threshold: float
    speedup: float
    target: float
    reached: bool
    trained_speedup: float


@torch.no_grad()
def measured_speedup(model: TrimmedModel, batches: Iterable[Any]) -> float:
    """Mean MACs of the full model over mean MACs of the trimmed one, at the current threshold.

    Decisions are taken in ``masked`` mode, which is the faster one for a batch of small models; they are the
    same.
    """
    trimmed, full = 0.0, 0.0
    for batch in batches:
        forward = model(batch.inputs, "masked", instance_ids=batch.instance_ids)
        trimmed_B, full_B = instance_macs(model, forward.decisions)
        trimmed += float(trimmed_B.sum())
        full += float(full_B.sum())
    return full / trimmed


def calibrate(
    model: TrimmedModel, batches: list[Any], target: float, tolerance: float = 0.005, rounds: int = 24
) -> Calibration:
    """Find the threshold at which the measured speed-up is the target, by bisection, and set it.

    Args:
        model: In evaluation mode.
        batches: Instances of the calibration split.
        target: MACs of the full over MACs of the trimmed model, > 1.
        tolerance: Relative distance that is good enough. The search aims at the side at or above the target;
            the one below is taken where the measured speed-up jumps over the target (tokens with one score
            go together) and only that side is good enough.
        rounds: At most so many measurements after the bracket is found.

    Raises:
        UserError: There are no instances.
    """
    if not batches:
        raise UserError(
            "no instance of the calibration split can be used: it has none, or their images are broken",
            where="pruning.calibrate.split",
        )
    at = cache(partial(_at, model, batches))
    low = _bound(-1.0, lambda threshold: at(threshold) <= target)
    high = _bound(1.0, lambda threshold: at(threshold) >= target)
    best, speedup, below = high, at(high), 0.0
    for _ in range(rounds):
        if 0 <= speedup / target - 1 <= tolerance:
            break
        middle = (low + high) / 2
        at_middle = at(middle)
        if at_middle < target:
            low, below = middle, at_middle
        else:
            high, best, speedup = middle, middle, at_middle
    if abs(speedup / target - 1) > tolerance >= 1 - below / target:
        best, speedup = low, below
    trained = at(float(model.threshold))
    model.threshold.fill_(best)
    return Calibration(best, speedup, target, abs(speedup / target - 1) <= tolerance, trained)


def _bound(first: float, is_one: Callable[[float], bool]) -> float:
    """The first of growing thresholds that bounds the search; that of usual logits, where none does.

    Args:
        first: Where to begin; its sign says which bound it is.
        is_one: Whether the target lies on the other side of a threshold.
    """
    bound = first
    while abs(bound) < _USUAL and not is_one(bound):
        bound *= 2
    if not is_one(bound) and is_one(_FURTHEST * first):  # scores of another scale than logits
        while not is_one(bound):
            bound *= 2
    return bound


def _at(model: TrimmedModel, batches: list[Any], threshold: float) -> float:
    with model.at_threshold(threshold):
        return measured_speedup(model, batches)

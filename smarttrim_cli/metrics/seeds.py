"""How sure a mean or a difference is that was measured with several seeds, on the same instances or not.

Two things vary: the training (seeds) and the choice of test instances. Each has its standard error; that of a
difference holds both, added in squares. This counts what is particular to a seed *and* an instance twice.

Degrees of freedom are those of the seeds alone (of two separate sets of seeds: Welch and Satterthwaite's),
however many instances there are. Adding up those of both parts would let two seeds that happen to lie close
together pass for many: where seeds vary most, one test in eight at the level of .05 then rejects a true
hypothesis. With the seeds' alone at most one in twenty does, and far fewer where instances vary most: three
seeds show only large differences. A single seed shows nothing of how others would differ, so there is no
test then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from smarttrim_cli.metrics.stats import Estimate, mean_with_error

_ROUNDING = 1e-12
_ANGLES = 20_001


@dataclass(frozen=True)
class Difference:
    """A mean difference with its standard errors; nan where one cannot be known.

    Attributes:
        mean: First minus second.
        standard_error: Over seeds and instances together.
        over_seeds: What training contributes; nan with a single seed.
        over_instances: What the choice of instances contributes.
        p_value: Two-sided, of a t test of no difference; nan with a single seed, or without a standard error.
        seeds: Number of seeds; of two separate sets that of the smaller one.
        paired: Whether the same instances and seeds were compared one by one.
    """

    mean: float
    standard_error: float
    over_seeds: float
    over_instances: float
    p_value: float
    seeds: int
    paired: bool


def paired_over_seeds(first_SN: ArrayLike, second_SN: ArrayLike) -> Difference:
    """Difference of scores (S, N) of S seeds on the same N instances, seed by seed and instance by instance.

    Raises:
        ValueError: The shapes differ, or there are no scores.
    """
    one, two = np.asarray(first_SN, dtype=np.float64), np.asarray(second_SN, dtype=np.float64)
    if one.shape != two.shape or one.ndim != 2:
        raise ValueError(f"paired scores need the same shape (S, N), found {one.shape} and {two.shape}")
    differences_SN = one - two
    seeds, instances = (mean_with_error(differences_SN.mean(axis=axis)) for axis in (1, 0))
    return combined(
        seeds.mean, seeds.standard_error, instances.standard_error, seeds.count, seeds.count - 1, paired=True
    )


def matched_over_seeds(
    differences_S: Sequence[float], errors_S: Sequence[float], *, paired: bool = False
) -> Difference:
    """Mean of one difference per seed, each with its own standard error over instances.

    The seeds share their instances, so their errors over instances do not shrink with the number of seeds:
    the root of their mean square is taken.

    Args:
        differences_S: (S,) first minus second, of the same seed.
        errors_S: (S,) standard errors over instances; nan where unknown.
        paired: Whether these errors come from a comparison instance by instance.

    Raises:
        ValueError: There is no difference.
    """
    seeds = mean_with_error(differences_S)
    squares = np.square(np.asarray(errors_S, dtype=np.float64))
    error = math.sqrt(float(squares.mean()))  # nan if one of them is
    return combined(seeds.mean, seeds.standard_error, error, seeds.count, seeds.count - 1, paired=paired)


def unmatched(
    first_S: Sequence[float], second_T: Sequence[float], first_error: float, second_error: float
) -> Difference:
    """Difference of two means over seeds that are not the same, or not all.

    Args:
        first_S: (S,) scores.
        second_T: (T,) scores.
        first_error: Standard error over instances of a single score; nan if unknown.
        second_error: As well.

    Raises:
        ValueError: One of them has no scores.
    """
    one, two = mean_with_error(first_S), mean_with_error(second_T)
    error, degrees = _error_of_seeds(one, two)
    instances = math.hypot(first_error, second_error)
    return combined(one.mean - two.mean, error, instances, min(one.count, two.count), degrees, paired=False)


def _error_of_seeds(one: Estimate, two: Estimate) -> tuple[float, float]:
    """Standard error that seeds give a difference, and its degrees of freedom.

    Of a single seed the spread is unknown; it is taken to be that of the other side.
    """
    few, several = sorted((one, two), key=lambda mean: mean.count)
    if few.count == 1 < several.count:
        spread = several.standard_error * math.sqrt(several.count)
        return spread * math.sqrt(1 / several.count + 1), several.count - 1
    degrees = _degrees([(one.standard_error, one.count - 1), (two.standard_error, two.count - 1)])
    return math.hypot(one.standard_error, two.standard_error), degrees


def combined(
    mean: float, over_seeds: float, over_instances: float, seeds: int, degrees: float, *, paired: bool
) -> Difference:
    """A difference from its standard errors, of which unknown ones (nan) are left out.

    Args:
        mean: The difference.
        over_seeds: Its standard error over seeds.
        over_instances: And over instances.
        seeds: Number of seeds.
        degrees: Of freedom of ``over_seeds``.
        paired: As in the result.
    """
    known = [error for error in (over_seeds, over_instances) if math.isfinite(error)]
    error = math.hypot(*known) if known else math.nan
    p_value = two_sided_p(mean, error, degrees) if seeds > 1 else math.nan
    return Difference(mean, error, over_seeds, over_instances, p_value, seeds, paired)


def two_sided_p(mean: float, error: float, degrees: float) -> float:
    """Probability under Student's t of a mean at least as far from 0; nan without an error.

    Without one are also differences that happen to be the same: two seeds of a small test set say nothing of
    how far others would be.

    With t = sqrt(degrees) tan(a) the density of ``a`` is proportional to cos(a) ** (degrees - 1), which is
    integrated numerically.
    """
    if math.isnan(error):
        return math.nan
    if error <= _ROUNDING * abs(mean):
        return 1.0 if mean == 0 else math.nan
    t = abs(mean) / error
    if degrees > 10_000:
        return math.erfc(t / math.sqrt(2))
    angles = np.linspace(0, math.pi / 2, _ANGLES)
    below = math.atan(t / math.sqrt(degrees))
    tail = np.linspace(below, math.pi / 2, _ANGLES)
    return _integral(tail, degrees) / _integral(angles, degrees)


def _integral(angles: np.ndarray[tuple[int, ...], np.dtype[np.float64]], degrees: float) -> float:
    values = np.cos(angles).clip(0) ** (degrees - 1)
    return float((values[1:] + values[:-1]).sum() * (angles[1] - angles[0]) / 2)


def _degrees(parts: Sequence[tuple[float, float]]) -> float:
    """Degrees of freedom of a sum of squared errors (Welch and Satterthwaite); nan errors are left out.

    Errors of 0 are those of scores that happen to be equal: they count as the fewest there are.
    """
    known = [(error, degrees) for error, degrees in parts if math.isfinite(error) and degrees > 0]
    total = sum(error**2 for error, _ in known)
    share = sum(error**4 / degrees for error, degrees in known)
    if not share:
        return min((degrees for _, degrees in known), default=math.inf)
    return total**2 / share

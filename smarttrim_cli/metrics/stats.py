"""How sure a measured mean or difference is: standard errors and intervals over instances."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

NORMAL_QUANTILE_975 = 1.959963984540054


@dataclass(frozen=True)
class Estimate:
    """A mean over ``count`` instances with its standard error (nan for a single instance)."""

    mean: float
    standard_error: float
    count: int


@dataclass(frozen=True)
class PairedDifference:
    """Mean of (first - second) over the same instances, with a 95 % interval."""

    mean: float
    standard_error: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's correlation over ``count`` pairs, with a 95 % interval and the p-value of none at all."""

    rho: float
    low: float
    high: float
    p: float
    count: int


def mean_with_error(values: ArrayLike) -> Estimate:
    """Mean of per-instance values (N,) and its standard error s / sqrt(N), s with N - 1 degrees of freedom.

    Raises:
        ValueError: There is no value.
    """
    values_N = np.asarray(values, dtype=np.float64)
    if values_N.ndim != 1 or values_N.size == 0:
        raise ValueError(f"expected a list of at least one value, found shape {values_N.shape}")
    count = values_N.size
    error = float(values_N.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    return Estimate(float(values_N.mean()), error, count)


def paired_difference(first: Sequence[float], second: Sequence[float]) -> PairedDifference:
    """How much higher ``first`` is than ``second``, instance by instance; both (N,), in the same order.

    The interval is mean +- 1.96 standard errors of the per-instance differences (normal approximation). It is
    narrower than that of two unpaired means when both models find the same instances hard.

    Raises:
        ValueError: The two do not have the same length, or are empty.
    """
    if len(first) != len(second):
        raise ValueError(f"paired values need the same length, found {len(first)} and {len(second)}")
    estimate = mean_with_error(np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64))
    half = NORMAL_QUANTILE_975 * estimate.standard_error
    return PairedDifference(
        estimate.mean, estimate.standard_error, estimate.mean - half, estimate.mean + half, estimate.count
    )


def means_by_group(values: Sequence[float], groups: Sequence[str]) -> dict[str, Estimate]:
    """Mean and standard error of the values (N,) of each group, groups in alphabetical order.

    Raises:
        ValueError: The two do not have the same length.
    """
    members: dict[str, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        members.setdefault(group, []).append(value)
    return {group: mean_with_error(members[group]) for group in sorted(members)}


def ranks(values: ArrayLike) -> NDArray[np.float64]:
    """Ranks (N,) from 1; values that are equal share the mean of their ranks."""
    values_N = np.asarray(values, dtype=np.float64)
    _, group_N, sizes = np.unique(values_N, return_inverse=True, return_counts=True)
    last = np.cumsum(sizes)
    mean_ranks: NDArray[np.float64] = last - (sizes - 1) / 2
    return mean_ranks[group_N]


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> RankCorrelation | None:
    """Spearman's rank correlation of pairs: Pearson's correlation of their ranks, ties averaged.

    The interval is Fisher's with the variance of Bonett and Wright (2000), (1 + rho^2 / 2) / (N - 3); the
    two-sided p-value is that of the normal approximation rho * sqrt(N - 1). Both take pairs for independent.

    Args:
        first: One value per instance.
        second: The other, in the same order.

    Returns:
        The correlation; None with fewer than four pairs, or where all values of one side are equal.

    Raises:
        ValueError: The two do not have the same length.
    """
    if len(first) != len(second):
        raise ValueError(f"pairs need the same length, found {len(first)} and {len(second)}")
    count = len(first)
    if count < 4 or min(len(set(first)), len(set(second))) < 2:
        return None
    rho = float(np.clip(np.corrcoef(ranks(first), ranks(second))[0, 1], -1, 1))
    half = NORMAL_QUANTILE_975 * math.sqrt((1 + rho**2 / 2) / (count - 3))
    middle = math.atanh(min(max(rho, -1 + 1e-12), 1 - 1e-12))
    p = math.erfc(abs(rho) * math.sqrt((count - 1) / 2))
    return RankCorrelation(rho, math.tanh(middle - half), math.tanh(middle + half), p, count)


def bootstrap_error(
    statistic: Callable[[NDArray[np.intp]], NDArray[np.float64]],
    count: int,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Standard error of a score of a whole corpus (BLEU), from drawing its instances with replacement.

    Args:
        statistic: From the indices (count,) of the drawn instances to the scores (K,).
        count: Number of instances.
        draws: Number of corpora drawn; the error of the error is about 1 / sqrt(2 * draws), 2 % for 1,000.
        seed: Seed of the drawing.

    Returns:
        (K,) standard deviations over the draws; nan for a single instance.
    """
    rng = np.random.default_rng(seed)
    scores_RK = np.stack([np.asarray(statistic(rng.integers(count, size=count))) for _ in range(draws)])
    return scores_RK.std(axis=0, ddof=1) if count > 1 else np.full(scores_RK.shape[1], math.nan)

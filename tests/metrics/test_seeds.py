from __future__ import annotations

import math

import numpy as np
import pytest

from smarttrim_cli.metrics.seeds import matched_over_seeds, paired_over_seeds, two_sided_p, unmatched


def test_paired_over_seeds_and_instances() -> None:
    found = paired_over_seeds([[1, 1, 0, 1], [1, 1, 1, 1]], [[1, 0, 0, 1], [0, 1, 0, 1]])
    # seeds: .25 and .5, s = .25 / sqrt(2), error s / sqrt(2); instances: .5 .5 .5 0, s = .25, error .25 / 2
    assert found.mean == pytest.approx(0.375)
    assert (found.over_seeds, found.over_instances) == pytest.approx((0.125, 0.125))
    assert found.standard_error == pytest.approx(0.125 * math.sqrt(2))
    # one degree of freedom, of the two seeds: Cauchy's distribution
    tail = 1 - 2 / math.pi * math.atan(0.375 / (0.125 * math.sqrt(2)))
    assert found.p_value == pytest.approx(tail, abs=1e-6)
    assert (found.seeds, found.paired) == (2, True)


def test_a_single_seed_leaves_the_instances() -> None:
    found = paired_over_seeds([[1, 1, 0, 1]], [[1, 0, 0, 1]])
    assert math.isnan(found.over_seeds) and math.isnan(found.p_value)
    assert (found.mean, found.standard_error) == pytest.approx((0.25, 0.25))  # s = .5, / 2


def test_matched_seeds_without_instances() -> None:
    found = matched_over_seeds([0.1, 0.3], [0.03, 0.05])
    assert (found.mean, found.over_seeds) == pytest.approx((0.2, 0.1))  # s = .2 / sqrt(2), / sqrt(2)
    assert found.over_instances == pytest.approx(math.sqrt((0.0009 + 0.0025) / 2))
    assert found.standard_error == pytest.approx(math.sqrt(0.01 + 0.0017))
    assert math.isnan(matched_over_seeds([0.1, 0.3], [0.03, math.nan]).over_instances)


def test_nothing_is_known_of_a_single_pair() -> None:
    found = matched_over_seeds([0.1], [math.nan])
    assert found.mean == 0.1
    assert math.isnan(found.standard_error) and math.isnan(found.p_value)


def test_other_seeds() -> None:
    found = unmatched([0.8, 0.9], [0.5, 0.6, 0.7], 0.03, 0.04)
    # errors over seeds: .1 / sqrt(2) / sqrt(2) = .05 and .1 / sqrt(3)
    assert found.mean == pytest.approx(0.25)
    assert found.over_seeds == pytest.approx(math.sqrt(0.0025 + 0.01 / 3))
    assert (found.over_instances, found.paired) == (pytest.approx(0.05), False)


def test_a_single_seed_varies_as_those_of_the_other_side() -> None:
    """Its spread is unknown, not nothing."""
    for first, second in (([0.5, 0.9, 0.7], [0.6]), ([0.6], [0.5, 0.9, 0.7])):
        found = unmatched(first, second, 0.01, 0.01)
        assert found.over_seeds == pytest.approx(0.2 * math.sqrt(1 / 3 + 1))
        assert found.seeds == 1 and math.isnan(found.p_value)
    assert math.isnan(unmatched([0.5], [0.6], 0.01, 0.01).over_seeds)


@pytest.mark.parametrize("seeds", [2, 3])
def test_a_true_hypothesis_is_rejected_at_most_as_often_as_said(seeds: int) -> None:
    """Where seeds vary most; with degrees of freedom of instances, too, .13 and .08 were below .05."""
    rng = np.random.default_rng(1)
    tests = []
    for _ in range(600):
        scores_SN = rng.normal(0, 0.05, (seeds, 1)) + rng.normal(0, 0.3, (seeds, 100))
        mean_S, error_S = scores_SN.mean(axis=1), scores_SN.std(axis=1, ddof=1) / 10
        other_S = rng.normal(0, math.hypot(0.05, 0.03), seeds)
        tests.append(
            (
                paired_over_seeds(scores_SN, np.zeros_like(scores_SN)).p_value,
                matched_over_seeds(list(mean_S), list(error_S)).p_value,
                unmatched(list(mean_S), list(other_S), 0.03, 0.03).p_value,
            )
        )
    assert (np.mean(np.array(tests) < 0.05, axis=0) < 0.05 + 2 * math.sqrt(0.05 * 0.95 / 600)).all()


@pytest.mark.parametrize(
    ("t", "degrees", "p"),
    [
        (1.0, 1, 0.5),  # 1 - 2 atan(t) / pi
        (math.sqrt(2), 2, 1 - math.sqrt(0.5)),  # 1 - t / sqrt(2 + t^2)
        (2.228139, 10, 0.05),  # tables
        (1.984217, 99, 0.05),
        (1.959964, math.inf, 0.05),
        (0.0, 5, 1.0),
    ],
)
def test_two_sided_p(t: float, degrees: float, p: float) -> None:
    assert two_sided_p(-t, 1.0, degrees) == pytest.approx(p, abs=1e-5)


def test_p_without_spread() -> None:
    assert two_sided_p(0.0, 0.0, 3) == 1.0
    assert math.isnan(two_sided_p(0.1, 0.0, 3))


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="same shape"):
        paired_over_seeds([[1, 0]], [[1, 0, 1]])


def test_equal_differences_say_nothing_of_chance() -> None:
    """Two seeds of a coarse test set, rounded alike."""
    difference = matched_over_seeds([0.75 - 0.74, 0.76 - 0.75], [math.nan, math.nan])
    assert difference.mean == pytest.approx(0.01) and math.isnan(difference.p_value)
    assert matched_over_seeds([0.0, 0.0], [math.nan, math.nan]).p_value == 1.0


def test_seeds_that_happen_to_be_equal_count_as_few() -> None:
    """As those that differ by next to nothing do, not as countless ones."""
    equal = unmatched([0.5, 0.5], [0.6, 0.6], 0.05, 0.05)
    nearly = unmatched([0.5, 0.5 + 1e-9], [0.6, 0.6], 0.05, 0.05)
    assert equal.p_value == pytest.approx(nearly.p_value, rel=1e-3)
    assert equal.p_value == pytest.approx(two_sided_p(0.1, math.hypot(0.05, 0.05), 1))

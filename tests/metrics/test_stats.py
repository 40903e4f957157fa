from __future__ import annotations

import math

import numpy as np
import pytest

from smarttrim_cli.metrics.stats import (
    bootstrap_error,
    mean_with_error,
    means_by_group,
    paired_difference,
    rank_correlation,
    ranks,
)


def test_mean_and_its_error() -> None:
    estimate = mean_with_error([1.0, 0.0, 1.0, 1.0])
    assert (estimate.mean, estimate.count) == (0.75, 4)
    assert estimate.standard_error == pytest.approx(0.25)  # s = sqrt(3 * .0625 + .5625 over 3) = .5; .5 / 2


def test_one_value_has_no_error() -> None:
    estimate = mean_with_error([0.5])
    assert estimate.mean == 0.5
    assert math.isnan(estimate.standard_error)


@pytest.mark.parametrize("values", [[], [[1.0], [2.0]]])
def test_no_values_is_an_error(values: list[float]) -> None:
    with pytest.raises(ValueError, match="at least one value"):
        mean_with_error(values)


def test_paired_difference() -> None:
    difference = paired_difference([1, 1, 0, 1], [0, 1, 0, 0])  # differences 1 0 0 1, s = sqrt(1/3)
    error = math.sqrt(1 / 3) / 2
    assert difference.mean == 0.5
    assert difference.count == 4
    assert difference.standard_error == pytest.approx(error)
    assert difference.low == pytest.approx(0.5 - 1.959964 * error)
    assert difference.high == pytest.approx(0.5 + 1.959964 * error)


def test_equal_models_have_no_difference() -> None:
    difference = paired_difference([0.3, 1.0, 0.0], [0.3, 1.0, 0.0])
    assert (difference.mean, difference.low, difference.high) == (0.0, 0.0, 0.0)


def test_interval_covers_the_true_difference() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        second = rng.random(200)
        difference = paired_difference(second + rng.normal(0.1, 0.5, 200), second)
        inside += difference.low <= 0.1 <= difference.high
    assert 0.92 < inside / 400 < 0.98


def test_lengths_have_to_agree() -> None:
    with pytest.raises(ValueError, match="same length, found 2 and 1"):
        paired_difference([1, 2], [1])


def test_means_by_group() -> None:
    by_type = means_by_group([1.0, 0.0, 0.5, 1.0], ["yes/no", "other", "number", "other"])
    assert list(by_type) == ["number", "other", "yes/no"]
    assert (by_type["other"].mean, by_type["other"].count) == (0.5, 2)
    with pytest.raises(ValueError, match="shorter"):
        means_by_group([1.0], [])


def test_bootstrap_error_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(0).random((500, 2)) * [1.0, 3.0]
    errors = bootstrap_error(lambda drawn: values[drawn].mean(axis=0), 500)
    assert errors == pytest.approx(values.std(axis=0) / math.sqrt(500), rel=0.08)
    again = bootstrap_error(lambda drawn: values[drawn].mean(axis=0), 500)
    assert np.array_equal(errors, again)


def test_bootstrap_of_one_instance_has_no_error() -> None:
    assert np.isnan(bootstrap_error(lambda drawn: np.array([1.0, 2.0]), 1)).all()


def test_equal_values_share_the_mean_of_their_ranks() -> None:
    assert ranks([10, 30, 20, 30, 5]).tolist() == [2, 4.5, 3, 4.5, 1]
    assert ranks([7, 7, 7]).tolist() == [2, 2, 2]


def test_rank_correlation() -> None:
    """Ranks 1 2 3 4 5 and 2 1 4 3 5: squared differences 1 1 1 1 0, so rho = 1 - 6 * 4 / (5 * 24) = .8."""
    found = rank_correlation([0.1, 0.2, 5.0, 6.0, 70.0], [3, 1, 8, 7, 9])
    assert found is not None
    assert found.rho == pytest.approx(0.8)
    assert found.count == 5
    assert found.p == pytest.approx(0.1096, abs=1e-4)  # two tails of the normal beyond .8 * sqrt(4) = 1.6
    half = 1.959964 * math.sqrt((1 + 0.32) / 2)
    assert (math.atanh(found.low), math.atanh(found.high)) == pytest.approx(
        (math.atanh(0.8) - half, math.atanh(0.8) + half), abs=1e-5
    )


def test_rank_correlation_with_ties() -> None:
    """Ranks 1.5 1.5 3 4 and 1 2 3.5 3.5: deviations -1 -1 .5 1.5 and -1.5 -.5 1 1; 4 / sqrt(4.5 * 4.5)."""
    found = rank_correlation([1, 1, 2, 3], [1, 2, 3, 3])
    assert found is not None and found.rho == pytest.approx(4 / 4.5)


def test_rank_correlation_of_what_does_not_vary() -> None:
    assert rank_correlation([1, 2, 3, 4], [5, 5, 5, 5]) is None
    assert rank_correlation([1, 2, 3], [1, 2, 3]) is None
    with pytest.raises(ValueError, match="same length"):
        rank_correlation([1, 2], [1])


def test_perfect_rank_correlation_has_finite_bounds() -> None:
    found = rank_correlation([1, 2, 3, 4, 5], [5, 4, 3, 2, 1])
    assert found is not None and found.rho == pytest.approx(-1)
    assert -1 <= found.low <= found.high <= 1

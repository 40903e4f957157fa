from __future__ import annotations

import math

import pytest

from smarttrim_cli.metrics.accuracy import accuracy, consistency


def test_accuracy() -> None:
    estimate = accuracy(["a", "b", "b", "a"], ["a", "b", "a", "a"])
    assert (estimate.mean, estimate.count) == (0.75, 4)
    assert estimate.standard_error == pytest.approx(math.sqrt(0.75 * 0.25 / 3))  # s^2 = p q n / (n - 1)


def test_lengths_have_to_agree() -> None:
    with pytest.raises(ValueError, match="shorter"):
        accuracy([1, 2], [1])


def test_consistency_as_in_the_official_script() -> None:
    # identifier: split-set-pair-sentence; two pairs of set 10 share sentence 0, and so on
    outcomes = {
        "dev-10-0-0": True,
        "dev-10-1-0": True,
        "dev-10-0-1": True,
        "dev-10-1-1": False,
        "dev-11-0-0": True,
        "dev-12-0-0": False,
        "dev-12-1-0": False,
        "dev-12-2-0": True,
    }
    statements = []
    for identifier in outcomes:
        split, group, _, sentence = identifier.split("-")
        statements.append((split, group, sentence))
    estimate = consistency(statements, list(outcomes.values()))
    assert (estimate.mean, estimate.count) == (0.5, 4)  # (10, 0) and (11, 0) of four sentences
    assert estimate.standard_error == pytest.approx(math.sqrt(0.25 / 3))


def test_consistency_needs_a_statement_per_prediction() -> None:
    with pytest.raises(ValueError, match="shorter"):
        consistency(["a", "b"], [True])
    with pytest.raises(ValueError, match="at least one"):
        consistency([], [])

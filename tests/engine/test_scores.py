from __future__ import annotations

from typing import Any

import pytest

from smarttrim_cli.engine.scores import collapse_warning, paired
from smarttrim_cli.tasks._summary import summarize


def records(*answers: tuple[str, str]) -> list[dict[str, Any]]:
    """Of pairs (prediction, reference)."""
    return [
        {
            "id": i,
            "type": reference,
            "prediction": answer,
            "reference": reference,
            "score": float(answer == reference),
        }
        for i, (answer, reference) in enumerate(answers)
    ]


def test_score_and_standard_error_by_hand() -> None:
    """Scores 1, 1, 1, 0: mean 3/4, sample variance 1/4, standard error 1/4."""
    summary = summarize("accuracy", records(("a", "a"), ("a", "a"), ("b", "b"), ("a", "b")))
    assert (summary["accuracy"], summary["accuracy_se"], summary["count"]) == (0.75, 0.25, 4)
    assert summary["accuracy_by_type"]["a"] == {"accuracy": 1.0, "se": 0.0, "count": 2}
    assert summary["accuracy_by_type"]["b"] == {"accuracy": 0.5, "se": 0.5, "count": 2}


def test_instances_without_reference_are_not_scored() -> None:
    some = records(("a", "a"), ("b", "a"))
    unscored = [{**record, "score": None, "reference": None} for record in some]
    assert summarize("accuracy", unscored) == {"count": 2}
    assert summarize("accuracy", [some[0], unscored[1]])["count"] == 1
    assert paired(unscored, unscored) == {}


def test_paired_difference_by_hand() -> None:
    """Differences -1, 0, 0, 0: mean -1/4, standard error 1/4, interval of 1.96 of those."""
    full = records(("a", "a"), ("b", "b"), ("a", "a"), ("a", "b"))
    trimmed = records(("b", "a"), ("b", "b"), ("a", "a"), ("a", "b"))
    difference = paired(trimmed, full)
    assert (difference["mean"], difference["se"]) == (-0.25, 0.25)
    assert difference["low"] == pytest.approx(-0.25 - 1.959964 * 0.25)
    assert difference["high"] == pytest.approx(-0.25 + 1.959964 * 0.25)


@pytest.mark.parametrize(
    ("answers", "collapsed"),
    [
        ([("yes", "yes" if i % 2 else "no") for i in range(40)], True),
        ([("yes" if i % 2 else "no",) * 2 for i in range(40)], False),
        ([("yes", "yes" if i else "no") for i in range(99)], False),  # as constant as the references
        ([("yes", "yes")] * 40, False),
        ([("yes", "yes" if i % 2 else "no") for i in range(10)], False),  # too few to tell
        ([("no" if i < 4 else "yes", "yes" if i % 2 else "no") for i in range(40)], False),
    ],
)
def test_collapse_is_a_constant_answer_to_varying_questions(
    answers: list[tuple[str, str]], collapsed: bool
) -> None:
    warning = collapse_warning(records(*answers))
    assert (warning is not None) == collapsed
    if warning:
        assert "100% of its predictions are 'yes'" in warning and "trimmers" in warning
        assert "trimme" not in str(collapse_warning(records(*answers), trimmed=False))

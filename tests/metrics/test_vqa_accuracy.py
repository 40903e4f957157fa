"""Values worked out by hand from the published rules."""

from __future__ import annotations

import pytest

from smarttrim_cli.metrics.stats import means_by_group
from smarttrim_cli.metrics.vqa_accuracy import normalize_answer, vqa_accuracy


@pytest.mark.parametrize(
    ("agreeing", "expected"),
    [
        (0, 0.0),
        (1, 0.3),  # 9 of 10 subsets have 1 match: 9 * (1/3) / 10
        (2, 0.6),  # 8 subsets with 2 matches, 2 with 1: (8 * 2/3 + 2 * 1/3) / 10
        (3, 0.9),  # 7 subsets with 3, 3 with 2: (7 + 3 * 2/3) / 10
        (4, 1.0),
        (9, 1.0),
    ],
)
def test_leave_one_out(agreeing: int, expected: float) -> None:
    answers = ["red"] * agreeing + [f"other{index}" for index in range(10 - agreeing)]
    assert vqa_accuracy("red", answers) == pytest.approx(expected)


def test_unanimous_answers_are_compared_as_they_are() -> None:
    assert vqa_accuracy("two", ["two"] * 10) == 1.0
    assert vqa_accuracy("2", ["two"] * 10) == 0.0
    assert vqa_accuracy("the cat", ["cat"] * 10) == 0.0
    assert vqa_accuracy("\tcat \n", ["cat"] * 10) == 1.0


def test_differing_answers_are_normalised_on_both_sides() -> None:
    answers = ["Two", "two", "2", "2.", "a 2"] + ["three"] * 5
    assert vqa_accuracy("two", answers) == 1.0
    assert vqa_accuracy("3", answers) == 1.0


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("Yes.", "yes"),
        ("The Red Car", "red car"),
        ("a", ""),
        ("none", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("dont", "don't"),
        ("DONT know", "don't know"),
        ("couldntve", "couldntve"),
        ("couldn'tve", "couldn't've"),
        ("couldnt've", "couldn't've"),
        ("its", "its"),
        ("twas", "'twas"),
        ("yall'd've", "y'all'd've"),
        ("somebody'd", "somebodyd"),
        ("t-shirt", "t shirt"),
        ("red/white", "red white"),
        ("red, white", "red white"),
        ("red,white", "red white"),
        ("1,000", "1000"),
        ("1,000 red-white", "1000 redwhite"),
        ("1.5", "1.5"),
        (".5", ".5"),
        ("5.", "5"),
        ("u.s.a.", "usa"),
        ("what?!", "what"),
        ("man's", "man's"),
        ("line\nbreak\ttab", "line break tab"),
        ("10:30", "10:30"),
        ("Im", "im"),  # the official list has "Im" and "Ive", but only lower case is looked up
        ("let's", "let's"),
        ("a." * 32 + "b.", "a" * 32 + "b."),  # the official code drops 32 periods at most
    ],
)
def test_normalisation(raw: str, expected: str) -> None:
    assert normalize_answer(raw) == expected


def test_means_by_answer_type() -> None:
    answers = {
        "yes/no": ("Yes", ["yes"] * 9 + ["no"]),  # 1.0: "Yes" is normalised, for the annotators differ
        "number": ("two", ["2"] * 2 + ["3"] * 8),  # (2 * 1/3 + 8 * 2/3) / 10
        "other": ("grey", ["gray"] * 10),  # 0.0
    }
    scores = [vqa_accuracy(*pair) for pair in answers.values()]
    means = {name: value.mean for name, value in means_by_group(scores, list(answers)).items()}
    assert means == pytest.approx({"number": 0.6, "other": 0.0, "yes/no": 1.0})

from __future__ import annotations

import math

import numpy as np
import pytest

from smarttrim_cli.metrics.bleu import bleu, bleu_of, bleu_statistics


def means(candidates: list[str], references: list[list[str]]) -> list[float]:
    groups = [[text.split() for text in group] for group in references]
    return [estimate.mean for estimate in bleu([text.split() for text in candidates], groups)]


def test_clipping_as_in_the_example_of_papineni() -> None:
    scores = means(["the the the the the the the"], [["the cat is on the mat", "there is a cat on the mat"]])
    assert scores[0] == pytest.approx(2 / 7)  # "the" occurs at most twice in a reference; 7 words, no penalty
    assert scores[1:] == pytest.approx([0, 0, 0], abs=1e-3)


def test_short_candidates_are_penalised() -> None:
    scores = means(["a b"], [["a b c d"]])
    assert scores[:2] == pytest.approx([math.exp(1 - 4 / 2)] * 2)


def test_of_two_equally_close_references_the_shorter_counts() -> None:
    statistics = bleu_statistics([["a", "b", "c"]], [[["a", "b", "c", "d"], ["a", "b"], ["x"] * 7]])
    assert statistics.tolist() == [[3, 2, 3, 2, 1, 0, 3, 2, 1, 0]]


def test_counts_are_summed_over_the_corpus() -> None:
    # unigrams 3 of 4, bigrams 1 of 2; lengths 4 against 4
    scores = means(["a b", "c d"], [["a b"], ["c x"]])
    assert scores[:2] == pytest.approx([3 / 4, math.sqrt(3 / 4 * 1 / 2)])


@pytest.mark.parametrize(
    ("lengths", "found", "total", "published"),
    [
        # what the official evaluation prints for its example results on COCO val2014
        (
            [9893, 9855],
            [5732, 2510, 1043, 423],
            [9893, 8893, 7893, 6893],
            [0.579, 0.404, 0.279, 0.191],
        ),
        # and for a model of MultiCapCLIP, in its issue 2
        (
            [66025, 58036],
            [25803, 5681, 1135, 237],
            [66025, 61025, 56025, 51025],
            [0.391, 0.191, 0.090, 0.043],
        ),
    ],
)
def test_published_counts_and_scores(
    lengths: list[int], found: list[int], total: list[int], published: list[float]
) -> None:
    scores = bleu_of(np.array([*lengths, *found, *total], dtype=float))
    assert [round(score, 3) for score in scores.tolist()] == published


def test_standard_error_and_count() -> None:
    same = bleu([["a", "b"]] * 10, [[["a", "c"]]] * 10)
    assert same[0].count == 10
    assert same[0].standard_error == pytest.approx(0, abs=1e-12)
    # BLEU-1 of one-word captions is the share of hits, a mean: its error is known
    mixed = bleu([["a"]] * 300 + [["b"]] * 100, [[["a"]]] * 400)
    assert mixed[0].mean == pytest.approx(0.75)
    assert mixed[0].standard_error == pytest.approx(math.sqrt(0.75 * 0.25 / 400), rel=0.1)
    assert math.isnan(bleu([["a"]], [[["a"]]])[0].standard_error)


def test_empty_captions_score_nothing() -> None:
    assert means(["", "a b"], [["a b c"], ["a b"]])[0] == pytest.approx(math.exp(1 - 5 / 2))
    assert means([""], [["a"]]) == pytest.approx([0] * 4, abs=1e-6)


def test_every_caption_needs_a_reference() -> None:
    with pytest.raises(ValueError, match="caption 1 has no reference"):
        bleu([["a"], ["b"]], [[["a"]], []])
    with pytest.raises(ValueError, match="found 1 and 2"):
        bleu([["a"]], [[["a"]], [["b"]]])
    with pytest.raises(ValueError, match="found 0 and 0"):
        bleu([], [])


def test_equals_the_official_scorer() -> None:
    scorer = pytest.importorskip("pycocoevalcap.bleu.bleu")
    rng = np.random.default_rng(0)
    words = list("abcdefg")
    texts = [" ".join(rng.choice(words, rng.integers(0, 12))) for _ in range(200)]
    candidates, references = texts[:40], [texts[40 + 4 * row : 44 + 4 * row] for row in range(40)]
    theirs, _ = scorer.Bleu(4).compute_score(
        dict(enumerate(references)), {row: [text] for row, text in enumerate(candidates)}, verbose=0
    )
    assert means(candidates, references) == pytest.approx(theirs, rel=1e-12)

from __future__ import annotations

import math

import numpy as np
import pytest

from smarttrim_cli.metrics.cider import cider


def scores(candidates: list[str], references: list[list[str]]) -> list[float]:
    groups = [[text.split() for text in group] for group in references]
    return cider([text.split() for text in candidates], groups).tolist()


def test_worked_out_by_hand() -> None:
    # every n-gram occurs in one of two documents: all weights are tf * log 2
    assert scores(["a b", "c c"], [["a b"], ["c d"]]) == pytest.approx(
        [
            10 * (1 + 1 + 0 + 0) / 4,  # equal unigrams and bigrams, none longer
            10 * (1 / (2 * math.sqrt(2))) / 4,  # unigrams: clipped 1 * 1 over norms 2 and sqrt 2
        ]
    )


def test_unknown_words_and_length() -> None:
    unigrams, bigrams = 2 / math.sqrt(3 * 2), 1 / math.sqrt(2 * 1)
    penalty = math.exp(-1 / (2 * 36))  # two bigrams against one
    expected = 10 * (unigrams + bigrams) / 4 * penalty
    assert scores(["a b x", "c d"], [["a b"], ["c d"]])[0] == pytest.approx(expected)


def test_mean_over_references() -> None:
    assert scores(["a b", "c d"], [["a b", "e f"], ["c d"]]) == pytest.approx([2.5, 5.0])


def test_what_every_image_shares_is_worth_nothing() -> None:
    assert scores(["a", "a"], [["a b"], ["a c"]]) == [0.0, 0.0]


def test_a_single_image_scores_nothing() -> None:
    assert scores(["a b c d"], [["a b c d"]]) == [0.0]


def test_empty_captions() -> None:
    assert scores(["", "c"], [["a b"], ["c"]]) == pytest.approx([0.0, 2.5])


def test_a_perfect_long_caption_scores_ten() -> None:
    assert scores(["a b c d e", "f"], [["a b c d e"], ["g"]])[0] == pytest.approx(10.0)


def test_every_caption_needs_a_reference() -> None:
    with pytest.raises(ValueError, match="caption 0 has no reference"):
        scores(["a"], [[]])


def test_equals_the_official_scorer() -> None:
    scorer = pytest.importorskip("pycocoevalcap.cider.cider")
    rng = np.random.default_rng(0)
    words = list("abcdefg")
    texts = [" ".join(rng.choice(words, rng.integers(0, 12))) for _ in range(200)]
    candidates, references = texts[:40], [texts[40 + 4 * row : 44 + 4 * row] for row in range(40)]
    mean, theirs = scorer.Cider().compute_score(
        dict(enumerate(references)), {row: [text] for row, text in enumerate(candidates)}
    )
    ours = scores(candidates, references)
    assert ours == pytest.approx(theirs.tolist(), rel=1e-10)
    assert np.mean(ours) == pytest.approx(mean, rel=1e-10)

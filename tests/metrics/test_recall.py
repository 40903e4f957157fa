from __future__ import annotations

import math

import numpy as np
import pytest

from smarttrim_cli.metrics.recall import ScoreMatrix, hits, mean_recall_per_image, recalls

IMAGE_OF_TEXT = [0, 0, 1, 2]
SCORES = [
    [0.9, 0.1, 0.8, 0.2],
    [0.3, 0.7, 0.7, 0.1],
    [0.5, 0.6, 0.2, 0.4],
]
# image 0: its text 0 leads; image 1: text 1 ties with its text 2, against it; image 2: two are better
IMAGE_RANKS = [1, 2, 3]
# text 1 (image 0): both others are better; text 2 (image 1): image 0 is better
TEXT_RANKS = [1, 3, 2, 1]


def filled(scores: object, image_of_text: list[int]) -> ScoreMatrix:
    matrix = ScoreMatrix(image_of_text)
    matrix.add(range(len(matrix.scores_IT)), range(len(image_of_text)), scores)
    return matrix


def test_ranks_worked_out_by_hand() -> None:
    matrix = filled(SCORES, IMAGE_OF_TEXT)
    assert matrix.image_to_text_ranks().tolist() == IMAGE_RANKS
    assert matrix.text_to_image_ranks().tolist() == TEXT_RANKS
    assert matrix.scored_pairs == 12


def test_recalls_worked_out_by_hand() -> None:
    found = recalls(IMAGE_RANKS, TEXT_RANKS, IMAGE_OF_TEXT)
    means = {name: estimate.mean for name, estimate in found.items()}
    assert means == pytest.approx(
        {
            "image_to_text_recall@1": 1 / 3,
            "image_to_text_recall@5": 1.0,
            "image_to_text_recall@10": 1.0,
            "image_to_text_mean_recall": 7 / 9,
            "text_to_image_recall@1": 1 / 2,
            "text_to_image_recall@5": 1.0,
            "text_to_image_recall@10": 1.0,
            "text_to_image_mean_recall": 5 / 6,
            "mean_recall": 29 / 36,
        }
    )
    assert found["image_to_text_recall@1"].standard_error == pytest.approx(1 / 3)  # s = sqrt(1/3)
    assert {found[name].count for name in ("text_to_image_recall@1", "text_to_image_mean_recall")} == {4}
    assert found["mean_recall"].count == 3


def test_mean_recall_per_image() -> None:
    # image 0: itself 1, its texts (1 + 2/3) * 3 images / 4 texts; images 1 and 2 alike
    expected = [(1 + 5 / 4) / 2, (2 / 3 + 1 / 2) / 2, (2 / 3 + 3 / 4) / 2]
    assert mean_recall_per_image(IMAGE_RANKS, TEXT_RANKS, IMAGE_OF_TEXT) == pytest.approx(expected)


def test_hits() -> None:
    assert hits([1, 2, 5, 6, 10, 11, math.inf]).tolist() == [
        [1, 1, 1],
        [0, 1, 1],
        [0, 1, 1],
        [0, 0, 1],
        [0, 0, 1],
        [0, 0, 0],
        [0, 0, 0],
    ]


def test_equal_scores_find_nothing() -> None:
    matrix = filled(np.zeros((12, 24)), [image for image in range(12) for _ in range(2)])
    assert set(matrix.text_to_image_ranks()) == {12}
    assert set(matrix.image_to_text_ranks()) == {23}  # behind all 22 false texts
    found = recalls(matrix.image_to_text_ranks(), matrix.text_to_image_ranks(), matrix.image_of_text_T)
    assert found["mean_recall"].mean == 0


def test_equals_sorting_on_distinct_scores() -> None:
    rng = np.random.default_rng(0)
    image_of_text = rng.permutation(np.repeat(np.arange(20), 5)).tolist()
    scores = rng.permutation(20 * 100).reshape(20, 100) / 1000
    matrix = filled(scores, image_of_text)
    order = np.argsort(-scores, axis=1)
    first = [
        1 + min(place for place, text in enumerate(row) if image_of_text[text] == image)
        for image, row in enumerate(order)
    ]
    assert matrix.image_to_text_ranks().tolist() == first
    columns = np.argsort(-scores, axis=0)
    places = [1 + columns[:, text].tolist().index(image) for text, image in enumerate(image_of_text)]
    assert matrix.text_to_image_ranks().tolist() == places


def test_blocks_in_any_order_give_the_whole() -> None:
    rng = np.random.default_rng(1)
    scores = rng.standard_normal((6, 10))
    image_of_text = [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]
    matrix = ScoreMatrix(image_of_text)
    for image in rng.permutation(6).tolist():
        for texts in ([7, 2, 9], [0, 1], [8, 3, 4, 5, 6]):
            matrix.add([image], texts, scores[image, texts][None])
    whole = filled(scores, image_of_text)
    assert np.array_equal(matrix.scores_IT, whole.scores_IT)
    assert matrix.scored_pairs == 60


def test_a_true_pair_that_is_no_candidate_is_missed() -> None:
    matrix = ScoreMatrix([0, 1, 2])
    assert matrix.scored_pairs == 0
    matrix.add([0], [0, 1], [[0.1, 0.2]])
    matrix.add([1], [0, 2], [[0.3, 0.4]])  # its own text is not among its candidates
    matrix.add([2], [1, 2], [[-math.inf, -5.0]])
    assert matrix.scored_pairs == 5
    assert matrix.image_to_text_ranks().tolist() == [2, math.inf, 1]
    assert matrix.text_to_image_ranks().tolist() == [2, math.inf, 2]


def test_a_score_that_is_no_number_is_named() -> None:
    matrix = ScoreMatrix([0, 1, 2])
    with pytest.raises(ValueError, match="image 1 and text 2 is nan"):
        matrix.add([0, 1], [1, 2], [[0.0, 0.0], [0.0, math.nan]])
    with pytest.raises(ValueError, match=r"expected scores \(1, 2\), found \(2,\)"):
        matrix.add([0], [1, 2], [0.0, 0.0])


def test_every_image_needs_a_text() -> None:
    with pytest.raises(ValueError, match="image 1 has no text"):
        ScoreMatrix([0, 2])
    with pytest.raises(ValueError, match="no texts"):
        ScoreMatrix([])

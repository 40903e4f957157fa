"""Hypotheses about a scene: every label is derived again from the words and the objects."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict

import pytest

from smarttrim_cli.data.samples import ENTAILMENT
from smarttrim_cli.data.scenes.hypotheses import Hypothesis
from smarttrim_cli.data.scenes.options import Options
from smarttrim_cli.data.scenes.world import Scene
from smarttrim_cli.data.scenes.write_snli_ve import make_example
from smarttrim_cli.errors import UserError
from tests.data.scene_language import COLORS, SHAPES, UNSEEN, fitting, truth

OPTIONS = Options()
LABEL = {True: "entailment", None: "neutral", False: "contradiction"}
Made = list[tuple[Scene, Hypothesis]]


@pytest.fixture(scope="module")
def made() -> Made:
    examples = [make_example(OPTIONS, "train", index) for index in range(700)]
    return [(scene, hypothesis) for scene, found in examples for hypothesis in found]


def test_labels_are_right(made: Made) -> None:
    for scene, hypothesis in made:
        assert LABEL[truth(scene.objects, hypothesis.text)] == hypothesis.label, hypothesis


def test_labels_are_equal_in_number(made: Made) -> None:
    assert len(made) == 700 * 6
    assert Counter(hypothesis.label for _, hypothesis in made) == dict.fromkeys(ENTAILMENT, 1400)


def test_types_have_their_labels_in_equal_parts(made: Made) -> None:
    labels: dict[str, Counter[str]] = defaultdict(Counter)
    for _, hypothesis in made:
        labels[hypothesis.type][hypothesis.label] += 1
    assert set(labels["plain"]) == {"entailment", "contradiction"}
    assert set(labels["conjunction"]) == {"neutral", "contradiction"}
    assert set(labels["disjunction"]) == {"entailment", "neutral"}
    assert set(labels["mixed"]) == set(ENTAILMENT)
    for counts in labels.values():
        assert min(counts.values()) > 0.8 * max(counts.values())


def test_words_of_what_is_unseen_stand_in_hypotheses_of_all_labels(made: Made) -> None:
    for pattern in (*UNSEEN.split("|"), "anna", "likes"):
        labels = Counter(h.label for _, h in made if re.search(rf"\b{pattern}\b", h.text))
        assert set(labels) == set(ENTAILMENT), pattern
        assert max(labels.values()) < 0.6 * labels.total(), pattern


def test_words_alone_do_not_tell_the_label(made: Made) -> None:
    """Naive Bayes over words, and the majority per pattern, learnt on half and tried on the other half."""
    train, test = made[: len(made) // 2], made[len(made) // 2 :]
    counts: dict[str, Counter[str]] = {label: Counter() for label in ENTAILMENT}
    patterns: dict[str, Counter[str]] = defaultdict(Counter)

    def pattern(text: str) -> str:
        for words, name in ((COLORS, "COLOR"), (SHAPES, "SHAPE"), ({UNSEEN}, "UNSEEN")):
            text = re.sub("|".join(sorted(words)), name, text)
        return text

    for _, hypothesis in train:
        counts[hypothesis.label].update(set(hypothesis.text.split()))
        patterns[pattern(hypothesis.text)][hypothesis.label] += 1

    def by_words(text: str) -> str:
        words = set(text.split())
        return max(ENTAILMENT, key=lambda label: sum(math.log((1 + counts[label][w]) / 1000) for w in words))

    def by_pattern(text: str) -> str:
        return patterns[pattern(text)].most_common(1)[0][0] if pattern(text) in patterns else ENTAILMENT[0]

    for guess in (by_words, by_pattern):
        right = sum(guess(hypothesis.text) == hypothesis.label for _, hypothesis in test) / len(test)
        assert right < 0.48, guess


def test_roles_name_objects_that_are_there(made: Made) -> None:
    assert all(0 <= index < len(scene.objects) for scene, h in made for _, index in h.roles)
    existence = [(scene, h) for scene, h in made if h.type == "plain" and re.match("there is an? ", h.text)]
    assert len(existence) > 50
    for scene, hypothesis in existence:
        there = fitting(scene.objects, hypothesis.text.removeprefix("there is "))
        assert [scene.objects[index] for _, index in hypothesis.roles] == there


def test_language_is_small(made: Made) -> None:
    texts = [hypothesis.text.split() for _, hypothesis in made]
    assert max(map(len, texts)) <= 18
    assert len({word for words in texts for word in words}) <= 80


def test_hypotheses_about_an_image_differ() -> None:
    for index in range(30):
        _, found = make_example(OPTIONS, "val", index)
        assert len({hypothesis.text for hypothesis in found}) == 6


def test_weights_choose_the_types_and_leave_the_labels_balanced() -> None:
    weights = {"plain": 0, "conjunction": 0, "disjunction": 0, "mixed": 1}
    options = Options(snli_ve={"hypotheses_per_image": 3, "weights": weights})
    found = [hypothesis for index in range(50) for hypothesis in make_example(options, "val", index)[1]]
    assert {hypothesis.type for hypothesis in found} == {"mixed"}
    assert Counter(hypothesis.label for hypothesis in found) == dict.fromkeys(ENTAILMENT, 50)


def test_impossible_options_are_refused() -> None:
    with pytest.raises(ValueError, match="a label cannot occur"):
        Options(snli_ve={"weights": {"plain": 0, "conjunction": 0, "mixed": 0}})
    options = Options(
        snli_ve={"weights": {"plain": 0, "conjunction": 0, "disjunction": 0}},
        min_objects=1,
        max_objects=1,
        question_weights={"relation": 0, "comparison": 0},
    )
    with pytest.raises(UserError, match="6 different hypotheses") as caught:
        make_example(options, "train", 0)
    assert caught.value.where == "snli_ve.hypotheses_per_image"

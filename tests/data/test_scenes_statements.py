"""Statements about two scenes: every label is derived again from the words and the objects."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from smarttrim_cli.data.scenes.options import Options
from smarttrim_cli.data.scenes.statements import Pair, Statement
from smarttrim_cli.data.scenes.write_nlvr2 import make_example
from smarttrim_cli.errors import UserError
from tests.data.scene_language import pair_truth

OPTIONS = Options()
TYPES = ("existence", "count", "comparison", "total", "relation")


@pytest.fixture(scope="module")
def sets() -> list[tuple[list[Pair], list[Statement]]]:
    return [make_example(OPTIONS, "train", index) for index in range(150)]


def test_labels_are_right(sets: list[tuple[list[Pair], list[Statement]]]) -> None:
    for pairs, statements in sets:
        for statement in statements:
            for (left, right), label in zip(pairs, statement.labels, strict=True):
                assert pair_truth(left.scene.objects, right.scene.objects, statement.text) is label, statement


def test_each_statement_is_true_of_two_pairs_and_false_of_two(
    sets: list[tuple[list[Pair], list[Statement]]],
) -> None:
    for pairs, statements in sets:
        assert len(pairs) == 4
        assert len({statement.text for statement in statements}) == len(statements) == 8
        assert all(sorted(statement.labels) == [False, False, True, True] for statement in statements)


def test_the_place_in_a_set_does_not_tell_the_label(sets: list[tuple[list[Pair], list[Statement]]]) -> None:
    labels = [statement.labels for _, statements in sets for statement in statements]
    for position in range(4):
        assert 0.45 < sum(label[position] for label in labels) / len(labels) < 0.55


def test_types_and_quantifiers_are_mixed(sets: list[tuple[list[Pair], list[Statement]]]) -> None:
    statements = [statement for _, found in sets for statement in found]
    types = Counter(statement.type for statement in statements)
    assert all(0.15 < types[kind] / len(statements) < 0.25 for kind in TYPES)
    quantifier = re.compile(r"(both|at least one|only one|no|neither|the left|the right|in all)( images?|$)")
    found = Counter(quantifier.search(statement.text)[1] for statement in statements)  # type: ignore[index]
    assert set(found) == {
        *("both", "at least one", "only one", "no", "neither", "the left", "the right", "in all"),
    }
    assert min(found.values()) > 20


def test_a_set_has_few_colors_and_shapes(sets: list[tuple[list[Pair], list[Statement]]]) -> None:
    for pairs, _ in sets:
        objects = [item for pair in pairs for facts in pair for item in facts.scene.objects]
        assert len({item.color for item in objects}) <= 4
        assert len({item.shape for item in objects}) <= 3
    seen = {item.color for pairs, _ in sets for facts in pairs[0] for item in facts.scene.objects}
    assert seen == set(OPTIONS.colors)


def test_language_is_small(sets: list[tuple[list[Pair], list[Statement]]]) -> None:
    texts = [statement.text.split() for _, statements in sets for statement in statements]
    assert max(map(len, texts)) <= 14
    assert len({word for words in texts for word in words}) <= 75


def test_weights_choose_the_types() -> None:
    weights = {"existence": 0, "count": 0, "comparison": 3, "total": 1, "relation": 0}
    options = Options(nlvr2={"weights": weights})
    types = Counter(s.type for index in range(40) for s in make_example(options, "val", index)[1])
    assert set(types) == {"comparison", "total"}
    assert 0.65 < types["comparison"] / types.total() < 0.85


def test_impossible_options_are_refused() -> None:
    options = Options(
        nlvr2={"statements_per_set": 2, "weights": dict.fromkeys(TYPES[:4], 0)},
        min_objects=1,
        max_objects=1,
        question_weights={"relation": 0, "comparison": 0},
    )
    with pytest.raises(UserError, match="2 different statements") as caught:
        make_example(options, "train", 0)
    assert caught.value.where == "nlvr2.statements_per_set"
    with pytest.raises(ValueError, match="at least one has to be above 0"):
        Options(nlvr2={"weights": dict.fromkeys(TYPES, 0)})

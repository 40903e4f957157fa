"""Every answer is derived again, from the words of the question and the list of objects alone."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import pytest

from smarttrim_cli.data.scenes.options import Options
from smarttrim_cli.data.scenes.questions import Question
from smarttrim_cli.data.scenes.world import Scene, SceneObject
from smarttrim_cli.data.scenes.write_vqa import make_example

OPTIONS = Options()
COLORS, SHAPES, SIZES = OPTIONS.colors, OPTIONS.shapes, ("small", "large")
TYPES = ("attribute", "existence", "count", "relation", "comparison")


@pytest.fixture(scope="module")
def asked() -> dict[str, list[tuple[Scene, Question]]]:
    by_type: dict[str, list[tuple[Scene, Question]]] = defaultdict(list)
    for index in range(700):
        scene, questions = make_example(OPTIONS, "train", index)
        for question in questions:
            by_type[question.type].append((scene, question))
    return by_type


def fitting(scene: Scene, phrase: str) -> list[int]:
    """Indices of the objects that a noun phrase ("small red circles") fits."""
    words = [re.sub(r"(ss|s)$", lambda end: "ss" if end[0] == "ss" else "", word) for word in phrase.split()]
    words = ["cross" if word == "crosse" else word for word in words]
    assert all(word in {*COLORS, *SHAPES, *SIZES, "object"} for word in words), phrase
    return [
        index
        for index, item in enumerate(scene.objects)
        if all(word in (item.color, item.shape, item.size, "object") for word in words)
    ]


def the_one(scene: Scene, phrase: str) -> SceneObject:
    (index,) = fitting(scene, phrase)
    return scene.objects[index]


def beside(one: SceneObject, other: SceneObject, words: str) -> bool:
    """Whether ``one`` lies in that direction of ``other``, judged by the pixels of the centers."""
    (x, y), (other_x, other_y) = one.center, other.center
    return {
        "left of": x < other_x - 5,
        "right of": x > other_x + 5,
        "above": y < other_y - 5,
        "below": y > other_y + 5,
    }[words]


def expected(scene: Scene, text: str) -> str:
    """The answer, or an error if the question does not have exactly one."""
    directions = "left of|right of|above|below"
    if found := re.fullmatch(rf"what (color|shape) is the object just ({directions}) the (.+)\?", text):
        anchor = the_one(scene, found[3])
        near = [
            item
            for item in scene.objects
            if beside(item, anchor, found[2]) and abs(item.row - anchor.row) + abs(item.col - anchor.col) == 1
        ]
        assert len(near) == 1
        return str(getattr(near[0], found[1]))
    if found := re.fullmatch(r"what (color|shape|size) is the (.+)\?", text):
        return str(getattr(the_one(scene, found[2]), found[1]))
    if found := re.fullmatch(r"is there (an?) (.+)\?", text):
        assert (found[1] == "an") == (found[2][0] in "aeiou")
        return "yes" if fitting(scene, found[2]) else "no"
    if found := re.fullmatch(r"how many (.+) are there\?", text):
        return str(len(fitting(scene, found[1])))
    if found := re.fullmatch(r"are there more (.+) than (.+)\?", text):
        return "yes" if len(fitting(scene, found[1])) > len(fitting(scene, found[2])) else "no"
    if found := re.fullmatch(r"are there as many (.+) as (.+)\?", text):
        return "yes" if len(fitting(scene, found[1])) == len(fitting(scene, found[2])) else "no"
    if found := re.fullmatch(r"is the (.+) (larger|smaller) than the (.+)\?", text):
        widths = the_one(scene, found[1]).box[2], the_one(scene, found[3]).box[2]
        assert widths[0] != widths[1]
        return "yes" if (widths[0] > widths[1]) == (found[2] == "larger") else "no"
    found = re.fullmatch(rf"is the (.+) ({directions}) the (.+)\?", text)
    assert found, text
    return "yes" if beside(the_one(scene, found[1]), the_one(scene, found[3]), found[2]) else "no"


@pytest.mark.parametrize("kind", TYPES)
def test_answers_are_right(asked: dict[str, list[tuple[Scene, Question]]], kind: str) -> None:
    assert len(asked[kind]) > 400
    for scene, question in asked[kind]:
        assert question.answer == expected(scene, question.text), question.text


def test_roles_name_the_objects_asked_about(asked: dict[str, list[tuple[Scene, Question]]]) -> None:
    for _, question in asked["count"]:
        assert len(question.roles) == int(question.answer)
    for _, question in asked["existence"]:
        assert bool(question.roles) == (question.answer == "yes")
    for scene, question in asked["attribute"]:
        ((role, index),) = question.roles
        item = scene.objects[index]
        assert role == "referent"
        assert question.answer in (item.color, item.shape, item.size)
    for scene, question in asked["relation"]:
        (target_role, target), (anchor_role, anchor) = question.roles
        assert (target_role, anchor_role) == ("target", "anchor")
        assert anchor in fitting(scene, question.text[:-1].split(" the ")[-1])
        if question.text.startswith("what"):
            assert question.answer in (scene.objects[target].color, scene.objects[target].shape)
    for _, question in asked["comparison"]:
        assert {role for role, _ in question.roles} == {"first", "second"}


def test_answers_are_balanced(asked: dict[str, list[tuple[Scene, Question]]]) -> None:
    answers = {kind: Counter(question.answer for _, question in pairs) for kind, pairs in asked.items()}
    for kind in ("existence", "comparison"):
        assert set(answers[kind]) == {"yes", "no"}
        assert 0.44 < answers[kind]["yes"] / answers[kind].total() < 0.56
    assert set(answers["count"]) == set("0123456")
    assert max(answers["count"].values()) / answers["count"].total() < 0.35
    for kind in ("attribute", "relation"):
        assert {*COLORS, *SHAPES} <= set(answers[kind])
        assert max(answers[kind].values()) / answers[kind].total() < 0.2
    total = sum(counts.total() for counts in answers.values())
    assert all(0.15 < answers[kind].total() / total < 0.25 for kind in TYPES)


def test_words_alone_do_not_tell_yes_from_no(asked: dict[str, list[tuple[Scene, Question]]]) -> None:
    """The first half's majority answer to each pattern of question is at chance on the second half."""
    pairs = [pair for kind in TYPES for pair in asked[kind] if pair[1].answer in ("yes", "no")]

    def pattern(question: Question) -> str:
        return re.sub("|".join(COLORS), "COLOR", re.sub("|".join(SHAPES), "SHAPE", question.text))

    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for _, question in pairs[::2]:
        counts[pattern(question)][question.answer] += 1
    right = [
        counts[pattern(question)].most_common(1)[0][0] == question.answer
        for _, question in pairs[1::2]
        if pattern(question) in counts
    ]
    assert 0.42 < sum(right) / len(right) < 0.58


def test_language_is_small(asked: dict[str, list[tuple[Scene, Question]]]) -> None:
    tokens = [re.findall(r"\w+|\?", question.text) for kind in TYPES for _, question in asked[kind]]
    assert max(map(len, tokens)) <= 13
    assert len({word for words in tokens for word in words}) <= 48
    assert all(question.text == question.text.lower() for kind in TYPES for _, question in asked[kind])


def test_questions_about_an_image_differ() -> None:
    for index in range(50):
        _, questions = make_example(OPTIONS, "val", index)
        assert len({question.text for question in questions}) == OPTIONS.questions_per_image


def test_weights_choose_the_types() -> None:
    weights = {"attribute": 0, "existence": 0, "count": 3, "relation": 0, "comparison": 1}
    options = Options(question_weights=weights)
    types = Counter(
        question.type for index in range(100) for question in make_example(options, "train", index)[1]
    )
    assert set(types) == {"count", "comparison"}
    assert 0.65 < types["count"] / types.total() < 0.85

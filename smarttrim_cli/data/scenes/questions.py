"""Questions about a scene, their answers, and the objects that they are about.

One function per type; each draws a question from what is true of the scene, or returns None where the scene
does not allow one. Answers are balanced by construction: the wanted answer is drawn before the objects, and a
form of question is used only where several answers to it are possible, so that the words alone do not give it
away.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from smarttrim_cli.data.scenes.describe import ALL_FORMS, ONE_WORD, TWO_WORDS, Description, Facts
from smarttrim_cli.data.scenes.world import DIRECTIONS

T = TypeVar("T")
TRIES_PER_TYPE = 5
"""Draws of a question of one type before another type is drawn; keeps the mix of types near the asked one."""


@dataclass(frozen=True)
class Question:
    """A question with its answer; ``roles`` are pairs of role and index of an object in the scene."""

    text: str
    answer: str
    type: str
    roles: tuple[tuple[str, int], ...]


def attribute_question(facts: Facts, rng: random.Random) -> Question | None:
    """Ask for the color, shape, size or ground of an object that is described by its other attributes."""
    asked = rng.choices(facts.attributes, weights=[1 if name == "size" else 2 for name in facts.attributes])[
        0
    ]
    by_answer: dict[str, list[tuple[Description, int]]] = defaultdict(list)
    for description, index in facts.unique:
        if asked not in description.form:
            by_answer[getattr(facts.scene.objects[index], asked)].append((description, index))
    if len(by_answer) < 2:
        return None
    answer, (description, index) = _draw_balanced(by_answer, rng)
    wanted = "is behind" if asked == "ground" else f"{asked} is"
    return Question(
        f"what {wanted} the {description.singular()}?", answer, "attribute", (("referent", index),)
    )


def existence_question(facts: Facts, rng: random.Random) -> Question | None:
    """Ask whether something is there: half yes, half no, the no mostly with near misses in the scene."""
    forms = facts.forms(ALL_FORMS)
    form = rng.choices(forms, weights=[(1, 2, 2)[len(form) - 1] for form in forms])[0]
    present, absent = facts.present[form], facts.absent(form)
    if not present or not absent:
        return None
    answer = rng.choice(("yes", "no"))
    description = rng.choice(present if answer == "yes" else absent)
    roles = tuple(("referent", index) for index in facts.matches.get(description, ()))
    return Question(f"is there {description.with_article()}?", answer, "existence", roles)


def count_question(facts: Facts, rng: random.Random, max_count: int) -> Question | None:
    """Ask for a number; large ones are drawn more often where they are possible, as few groups are large."""
    forms = facts.forms((*ONE_WORD, *TWO_WORDS))
    form = rng.choices(forms, weights=[(3, 1)[len(form) - 1] for form in forms])[0]
    by_number: dict[int, list[Description]] = defaultdict(list)
    by_number[0] += facts.absent(form)
    for description in facts.present[form]:
        by_number[len(facts.matches[description])].append(description)
    numbers = [number for number, found in sorted(by_number.items()) if found and number <= max_count]
    if len(numbers) < 2:
        return None
    number = rng.choices(numbers, weights=[1 + number for number in numbers])[0]
    description = rng.choice(by_number[number])
    roles = tuple(("counted", index) for index in facts.matches.get(description, ()))
    return Question(f"how many {description.plural()} are there?", str(number), "count", roles)


def relation_question(facts: Facts, rng: random.Random, neighbour_share: float = 0.75) -> Question | None:
    """Ask about the neighbour of an object (with this share), or how two objects lie to each other."""
    neighbour = rng.random() < neighbour_share
    return _neighbour_question(facts, rng) if neighbour else _position_question(facts, rng)


def comparison_question(facts: Facts, rng: random.Random) -> Question | None:
    """Ask which of two groups is larger, whether they are equal, or which of two objects is larger."""
    return rng.choice((_more_question, _as_many_question, _larger_question))(facts, rng)


def sample_questions(
    facts: Facts,
    rng: random.Random,
    number: int,
    weights: dict[str, float],
    max_count: int,
    neighbour_share: float,
) -> list[Question] | None:
    """Draw ``number`` different questions, of types by ``weights``; None if the scene has too few."""
    makers: dict[str, Callable[[], Question | None]] = {
        "attribute": lambda: attribute_question(facts, rng),
        "existence": lambda: existence_question(facts, rng),
        "count": lambda: count_question(facts, rng, max_count),
        "relation": lambda: relation_question(facts, rng, neighbour_share),
        "comparison": lambda: comparison_question(facts, rng),
    }
    types, shares = list(weights), list(weights.values())
    questions: dict[str, Question] = {}
    for _ in range(10 * number):
        maker = makers[rng.choices(types, weights=shares)[0]]
        question = next(filter(None, (maker() for _ in range(TRIES_PER_TYPE))), None)
        if question is not None:
            questions.setdefault(question.text, question)
        if len(questions) == number:
            return list(questions.values())
    return None


def _neighbour_question(facts: Facts, rng: random.Random) -> Question | None:
    """What is in the cell next to an object?"""
    asked = rng.choice(("color", "shape"))
    by_answer: dict[str, list[tuple[str, Description, int, int]]] = defaultdict(list)
    for description, anchor in facts.unique:
        for words, step in DIRECTIONS.items():
            neighbour = facts.scene.neighbour(anchor, *step)
            if neighbour is not None:
                answer = getattr(facts.scene.objects[neighbour], asked)
                by_answer[answer].append((words, description, anchor, neighbour))
    if len(by_answer) < 2:
        return None
    answer, (words, description, anchor, target) = _draw_balanced(by_answer, rng)
    text = f"what {asked} is the object just {words} the {description.singular()}?"
    return Question(text, answer, "relation", (("target", target), ("anchor", anchor)))


def _position_question(facts: Facts, rng: random.Random) -> Question | None:
    """Is one object left of (right of, above, below) another one, at any distance?"""
    if len(facts.unique) < 2:
        return None
    (first, target), (second, anchor) = rng.sample(facts.unique, 2)
    words = rng.choice(list(DIRECTIONS))
    distance = facts.scene.lies(words, target, anchor)
    if distance == 0:
        return None
    text = f"is the {first.singular()} {words} the {second.singular()}?"
    return Question(
        text, "yes" if distance > 0 else "no", "relation", (("target", target), ("anchor", anchor))
    )


def _more_question(facts: Facts, rng: random.Random) -> Question | None:
    """Are there more of these than of those? Groups of equal number are not asked about here."""
    pairs = [pair for pair in _group_pairs(facts, rng) if len(pair[0][1]) != len(pair[1][1])]
    if not pairs:
        return None
    (first, ones), (second, others) = rng.choice(pairs)
    answer = "yes" if len(ones) > len(others) else "no"
    return _group_question(f"are there more {first.plural()} than {second.plural()}?", answer, ones, others)


def _as_many_question(facts: Facts, rng: random.Random) -> Question | None:
    """Are two groups equal in number?"""
    pairs = _group_pairs(facts, rng)
    equal = [pair for pair in pairs if len(pair[0][1]) == len(pair[1][1])]
    different = [pair for pair in pairs if len(pair[0][1]) != len(pair[1][1])]
    if not equal or not different:
        return None
    answer = rng.choice(("yes", "no"))
    (first, ones), (second, others) = rng.choice(equal if answer == "yes" else different)
    return _group_question(f"are there as many {first.plural()} as {second.plural()}?", answer, ones, others)


def _larger_question(facts: Facts, rng: random.Random) -> Question | None:
    """Is one object larger (smaller) than another one? One is small and one large, and no size is named."""
    named = [(description, index) for description, index in facts.unique if description.size is None]
    if len(facts.scene.values["size"]) < 2 or len(named) < 2:
        return None
    (first, one), (second, other) = rng.sample(named, 2)
    sizes = facts.scene.objects[one].size, facts.scene.objects[other].size
    if sizes[0] == sizes[1]:
        return None
    word, wanted = rng.choice((("larger", "large"), ("smaller", "small")))
    text = f"is the {first.singular()} {word} than the {second.singular()}?"
    return Question(
        text, "yes" if sizes[0] == wanted else "no", "comparison", (("first", one), ("second", other))
    )


Group = tuple[Description, tuple[int, ...]]


def _group_pairs(facts: Facts, rng: random.Random) -> list[tuple[Group, Group]]:
    """All ordered pairs of groups that share one kind of attribute (two colors, two shapes, two sizes)."""
    form = rng.choice(facts.forms(ONE_WORD))
    groups = [(description, facts.matches[description]) for description in facts.present[form]]
    return [(one, other) for one in groups for other in groups if one is not other]


def _group_question(text: str, answer: str, ones: tuple[int, ...], others: tuple[int, ...]) -> Question:
    roles = (*(("first", index) for index in ones), *(("second", index) for index in others))
    return Question(text, answer, "comparison", roles)


def _draw_balanced(by_answer: dict[str, list[T]], rng: random.Random) -> tuple[str, T]:
    """Draw an answer first, all equally likely, then one of the ways of asking for it."""
    answer = rng.choice(sorted(by_answer))
    return answer, rng.choice(by_answer[answer])

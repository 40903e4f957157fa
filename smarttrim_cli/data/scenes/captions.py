"""Captions of a scene: several sentences that name its objects in different ways and orders.

Objects that look alike are one phrase ("two small red circles"). A caption names as many phrases as it may
(``max_phrases``): all of them in a scene of few objects, which singles the scene out among many others.
"""

from __future__ import annotations

import itertools
import random

from smarttrim_cli.data.scenes.describe import Description, Facts, number_word
from smarttrim_cli.data.scenes.world import DIRECTIONS, Scene

Group = tuple[Description, tuple[int, ...]]
MAX_TRIES = 10
"""Draws per caption asked for, on average, before the scene is given up."""


def signature(scene: Scene) -> tuple[tuple[str, str, str], ...]:
    """What captions tell of a scene, wherever its objects are: no two scenes of a split share it."""
    return tuple(sorted((item.size, item.color, item.shape) for item in scene.objects))


def sample_captions(facts: Facts, rng: random.Random, number: int, max_phrases: int) -> list[str] | None:
    """Draw ``number`` different captions; None if the scene has too few."""
    form = facts.attributes
    groups = [(description, facts.matches[description]) for description in facts.present[form]]
    captions: dict[str, None] = {}
    for _ in range(MAX_TRIES * number):
        named = rng.sample(groups, min(len(groups), max_phrases))
        caption = rng.choices((_with_place, _with_number, _list), weights=(3, 1, 1))[0](facts, rng, named)
        if caption is not None:
            captions[caption] = None
        if len(captions) == number:
            return list(captions)
    return None


def _with_place(facts: Facts, rng: random.Random, named: list[Group]) -> str | None:
    """Where one object lies of another one, then the rest; for objects that are alone in their look."""
    single = [group for group in named if len(group[1]) == 1]
    places = [
        (one, words, other)
        for one, other in itertools.permutations(single, 2)
        for words in DIRECTIONS
        if facts.scene.lies(words, one[1][0], other[1][0]) > 0
    ]
    if not places:
        return None
    one, words, other = rng.choice(places)
    rest = [group for group in named if group is not one and group is not other]
    more = f", with {_list(facts, rng, rest)}" if rest else ""
    return f"{_phrase(one)} {words} {_phrase(other)}{more}"


def _with_number(facts: Facts, rng: random.Random, named: list[Group]) -> str:
    """How many objects there are, then what they are."""
    total = len(facts.scene.objects)
    missing = sum(len(found) for _, found in named) < total
    head = f"{number_word(total)} object{'s' if total > 1 else ''}"
    return f"{head}{', among them ' if missing else ': '}{_list(facts, rng, named)}"


def _list(facts: Facts, rng: random.Random, named: list[Group]) -> str:
    phrases = [_phrase(group) for group in named]
    return " and ".join([", ".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)


def _phrase(group: Group) -> str:
    description, found = group
    return description.with_article() if len(found) == 1 else description.numbered(len(found))

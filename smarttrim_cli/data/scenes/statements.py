"""Statements about two images, each true of two pairs of a set and false of the other two.

A set is four pairs of scenes (left, right), as in NLVR2. A statement is used only if it is true of two of
them: its words say nothing about its truth, and being right about all four (consistency) means something.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from smarttrim_cli.data.scenes.describe import ALL_FORMS, ONE_WORD, Description, Facts, Form

T = TypeVar("T")
Pair = tuple[Facts, Facts]
Labels = tuple[bool, ...]
PAIRS_PER_SET = 4
NUMBERS = range(1, 10)
"""Numbers that statements name."""
TRIES_PER_TYPE = 5
"""Draws of one type before another type is drawn; keeps the mix of types near the asked one."""
MAX_TRIES = 10
"""Types drawn per statement asked for, on average, before the set is given up."""

EXISTENCE: tuple[tuple[str, Callable[[int, int], bool]], ...] = (
    ("there is {} in both images", lambda left, right: left > 0 and right > 0),
    ("there is {} in at least one image", lambda left, right: left + right > 0),
    ("there is {} in only one image", lambda left, right: (left > 0) != (right > 0)),
    ("there is {} in neither image", lambda left, right: left + right == 0),
    ("there is {} in the left image", lambda left, right: left > 0),
    ("there is {} in the right image", lambda left, right: right > 0),
)
COUNT: tuple[tuple[str, Callable[[int, int, int], bool]], ...] = (
    ("at least one image contains exactly {}", lambda left, right, n: n in (left, right)),
    ("both images contain at least {}", lambda left, right, n: min(left, right) >= n),
    ("the left image contains exactly {}", lambda left, right, n: left == n),
    ("the right image contains exactly {}", lambda left, right, n: right == n),
)
COMPARISON: tuple[tuple[str, Callable[[int, int], bool]], ...] = (
    ("the left image has more {} than the right image", lambda left, right: left > right),
    ("the right image has more {} than the left image", lambda left, right: left < right),
    ("both images have the same number of {}", lambda left, right: left == right),
)
RELATION: tuple[tuple[str, Callable[[bool, bool], bool]], ...] = (
    ("both images show {}", lambda left, right: left and right),
    ("at least one image shows {}", lambda left, right: left or right),
    ("no image shows {}", lambda left, right: not left and not right),
    ("the left image shows {}", lambda left, right: left),
    ("the right image shows {}", lambda left, right: right),
)


@dataclass(frozen=True)
class Statement:
    """A sentence with its truth for each pair; ``about`` are the descriptions that it names."""

    text: str
    type: str
    labels: Labels
    about: tuple[Description, ...]


class SetFacts:
    """The pairs of a set with what their statements are drawn from, worked out once.

    Attributes:
        counts: By form, for every description that fits some object: how many it fits (left, right) per pair.
    """

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.pairs = pairs
        self.images = [facts for pair in pairs for facts in pair]
        self.forms = self.images[0].forms(ALL_FORMS)
        self.counts: dict[Form, dict[Description, tuple[tuple[int, int], ...]]] = {}
        for form in self.forms:
            names = dict.fromkeys(name for facts in self.images for name in facts.present[form])
            self.counts[form] = {name: self._count(name) for name in names}

    def _count(self, name: Description) -> tuple[tuple[int, int], ...]:
        return tuple(
            (len(left.matches.get(name, ())), len(right.matches.get(name, ()))) for left, right in self.pairs
        )

    @cached_property
    def beside(self) -> list[tuple[Description, str, Description]]:
        """What lies just beside what, in any of the images."""
        return list(dict.fromkeys(key for facts in self.images for key in facts.beside))


def sample_statements(
    facts: SetFacts, rng: random.Random, number: int, weights: dict[str, float]
) -> list[Statement] | None:
    """Draw ``number`` different statements, of types by ``weights``; None if the set has too few."""
    types, shares = list(weights), list(weights.values())
    found: dict[str, Statement] = {}
    for _ in range(MAX_TRIES * number):
        type = rng.choices(types, weights=shares)[0]
        tries = (_MAKERS[type](facts, rng) for _ in range(TRIES_PER_TYPE))
        drawn = next(filter(None, tries), None)
        if drawn is not None:
            text, labels, about = drawn
            found.setdefault(text, Statement(text, type, labels, about))
        if len(found) == number:
            return list(found.values())
    return None


Drawn = tuple[str, Labels, tuple[Description, ...]]


def _existence(facts: SetFacts, rng: random.Random) -> Drawn | None:
    words, holds = rng.choice(EXISTENCE)
    counts = facts.counts[_draw_form(facts, rng, (1, 2, 2))]
    drawn = _first_in_halves(counts, rng, lambda name: tuple(holds(*pair) for pair in counts[name]))
    return drawn and (words.format(drawn[0].with_article()), drawn[1], (drawn[0],))


def _count(facts: SetFacts, rng: random.Random) -> Drawn | None:
    words, holds = rng.choice(COUNT)
    counts = facts.counts[_draw_form(facts, rng, (3, 2, 1))]
    numbers = NUMBERS[1:] if "at least {}" in words else NUMBERS
    drawn = _first_in_halves(
        itertools.product(counts, numbers),
        rng,
        lambda named: tuple(holds(*pair, named[1]) for pair in counts[named[0]]),
    )
    return drawn and (words.format(drawn[0][0].numbered(drawn[0][1])), drawn[1], drawn[0][:1])


def _comparison(facts: SetFacts, rng: random.Random) -> Drawn | None:
    """Of the two images, or of two groups within one."""
    if rng.random() < 0.25:
        return _comparison_within(facts, rng)
    words, holds = rng.choice(COMPARISON)
    counts = facts.counts[_draw_form(facts, rng, (3, 2, 1))]
    seen = [name for name, pairs in counts.items() if all(left + right > 0 for left, right in pairs)]
    drawn = _first_in_halves(seen, rng, lambda name: tuple(holds(*pair) for pair in counts[name]))
    return drawn and (words.format(drawn[0].plural()), drawn[1], (drawn[0],))


def _comparison_within(facts: SetFacts, rng: random.Random) -> Drawn | None:
    side = rng.randrange(2)
    counts = facts.counts[rng.choice([form for form in facts.forms if form in ONE_WORD])]
    drawn = _first_in_halves(
        itertools.permutations(counts, 2),
        rng,
        lambda two: tuple(
            one[side] > other[side] for one, other in zip(counts[two[0]], counts[two[1]], strict=True)
        ),
    )
    image = ("left", "right")[side]
    return drawn and (
        f"the {image} image has more {drawn[0][0].plural()} than {drawn[0][1].plural()}",
        drawn[1],
        drawn[0],
    )


def _total(facts: SetFacts, rng: random.Random) -> Drawn | None:
    counts = facts.counts[_draw_form(facts, rng, (2, 2, 1))]
    drawn = _first_in_halves(
        itertools.product(counts, NUMBERS),
        rng,
        lambda named: tuple(sum(pair) == named[1] for pair in counts[named[0]]),
    )
    if drawn is None:
        return None
    (name, number), labels = drawn
    return f"there {'is' if number == 1 else 'are'} exactly {name.numbered(number)} in all", labels, (name,)


def _relation(facts: SetFacts, rng: random.Random) -> Drawn | None:
    words, holds = rng.choice(RELATION)
    drawn = _first_in_halves(
        facts.beside,
        rng,
        lambda key: tuple(holds(key in left.beside, key in right.beside) for left, right in facts.pairs),
    )
    if drawn is None:
        return None
    (one, where, other), labels = drawn
    return words.format(f"{one.with_article()} just {where} {other.with_article()}"), labels, (one, other)


def _draw_form(facts: SetFacts, rng: random.Random, weights: tuple[int, int, int]) -> Form:
    """A form of descriptions; weights for one, two and three words."""
    return rng.choices(facts.forms, weights=[weights[len(form) - 1] for form in facts.forms])[0]


def _first_in_halves(
    candidates: Iterable[T], rng: random.Random, labels_of: Callable[[T], Labels]
) -> tuple[T, Labels] | None:
    """One of the candidates that are true of half the pairs, all equally likely; None if there is none."""
    order = list(candidates)
    rng.shuffle(order)
    for candidate in order:
        labels = labels_of(candidate)
        if 2 * sum(labels) == len(labels):
            return candidate, labels
    return None


_MAKERS: dict[str, Callable[[SetFacts, random.Random], Drawn | None]] = {
    "existence": _existence,
    "count": _count,
    "comparison": _comparison,
    "total": _total,
    "relation": _relation,
}

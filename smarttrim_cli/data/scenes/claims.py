"""Claims about a scene that it decides: true or false as wanted.

One function per type; each returns None where the scene does not allow both a true and a false claim of the
form that was drawn. The false claim differs from the true one by an exchange (of names, numbers or directions
that both occur), so that true and false claims have the same words in the same proportions.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from smarttrim_cli.data.scenes.describe import (
    ALL_FORMS,
    ONE_WORD,
    TWO_WORDS,
    Description,
    Facts,
    Form,
    article,
)
from smarttrim_cli.data.scenes.output import Roles
from smarttrim_cli.data.scenes.world import DIRECTIONS

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
MAX_TRIES = 8


@dataclass(frozen=True)
class Claim:
    """A clause about a scene; ``roles`` are pairs of role and index of an object."""

    text: str
    roles: Roles

    def joined(self, words: str) -> Claim:
        """The same with words after it."""
        return Claim(f"{self.text} {words}", self.roles)


def draw_claim(facts: Facts, rng: random.Random, wanted: bool) -> Claim | None:
    """A claim of any type that is true (false) as wanted; None if several draws gave none."""
    tries = (rng.choice(_MAKERS)(facts, rng, wanted) for _ in range(MAX_TRIES))
    return next(filter(None, tries), None)


def draw_form(facts: Facts, rng: random.Random, without: str | None = None) -> Form:
    """The form of a description, all but the attribute ``without``; two and three words are likelier."""
    forms = [form for form in facts.forms(ALL_FORMS) if without not in form]
    return rng.choices(forms, weights=[(1, 2, 2)[len(form) - 1] for form in forms])[0]


def roles_of(facts: Facts, description: Description, role: str = "referent") -> Roles:
    """All objects that a description fits, in one role."""
    return tuple((role, index) for index in facts.matches.get(description, ()))


def existence_claim(facts: Facts, rng: random.Random, wanted: bool) -> Claim | None:
    """There is such an object."""
    form = draw_form(facts, rng)
    present, absent = facts.present[form], facts.absent(form)
    if not present or not absent:
        return None
    description = rng.choice(present if wanted else absent)
    return Claim(f"there is {description.with_article()}", roles_of(facts, description))


def count_claim(facts: Facts, rng: random.Random, wanted: bool) -> Claim | None:
    """There are exactly so many; a false number is that of another group."""
    forms = facts.forms((*ONE_WORD, *TWO_WORDS))
    form = rng.choices(forms, weights=[(3, 1)[len(form) - 1] for form in forms])[0]
    groups = [(description, len(facts.matches[description])) for description in facts.present[form]]
    pairs = [(one, other) for one in groups for other in groups if one[1] != other[1]]
    if not pairs:
        return None
    (description, number), (_, other_number) = rng.choice(pairs)
    said = number if wanted else other_number
    verb = "is" if said == 1 else "are"
    text = f"there {verb} exactly {description.numbered(said)}"
    return Claim(text, roles_of(facts, description, "counted"))


def comparison_claim(facts: Facts, rng: random.Random, wanted: bool) -> Claim | None:
    """There are more of these than of those."""
    groups = facts.present[rng.choice(facts.forms(ONE_WORD))]
    sizes = {description: len(facts.matches[description]) for description in groups}
    pairs = [(more, fewer) for more in groups for fewer in groups if sizes[more] > sizes[fewer]]
    if not pairs:
        return None
    pair = rng.choice(pairs)
    first, second = pair if wanted else pair[::-1]
    roles = (*roles_of(facts, first, "first"), *roles_of(facts, second, "second"))
    return Claim(f"there are more {first.plural()} than {second.plural()}", roles)


def position_claim(facts: Facts, rng: random.Random, wanted: bool) -> Claim | None:
    """One object lies left of (right of, above, below) another one, at any distance."""
    if len(facts.unique) < 2:
        return None
    (first, target), (second, anchor) = rng.sample(facts.unique, 2)
    directions = [words for words in DIRECTIONS if facts.scene.lies(words, target, anchor) > 0]
    if not directions:  # two descriptions of one object
        return None
    words = rng.choice(directions)
    text = f"the {first.singular()} is {words if wanted else OPPOSITE[words]} the {second.singular()}"
    return Claim(text, (("target", target), ("anchor", anchor)))


def neighbour_claim(facts: Facts, rng: random.Random, wanted: bool) -> Claim | None:
    """Such an object lies in the cell next to such another one; the opposite direction has to be false."""
    one_way = [key for key in facts.beside if (key[0], OPPOSITE[key[1]], key[2]) not in facts.beside]
    if not one_way:
        return None
    first, words, second = key = rng.choice(one_way)
    said = words if wanted else OPPOSITE[words]
    target, anchor = facts.beside[key]
    text = f"{first.with_article()} is just {said} {second.with_article()}"
    return Claim(text, (("target", target), ("anchor", anchor)))


def attribute_claim(facts: Facts, rng: random.Random, wanted: bool) -> Claim | None:
    """The only object of a description has this color, shape or size."""
    asked = rng.choice(facts.attributes)
    form = draw_form(facts, rng, without=asked)
    named = [(description, index) for description, index in facts.unique if description.form == form]
    if not named:
        return None
    description, index = rng.choice(named)
    value = draw_value(facts, rng, asked, index, wanted)
    if value is None:
        return None
    return Claim(f"the {description.singular()} is {value}", (("referent", index),))


def draw_value(facts: Facts, rng: random.Random, asked: str, index: int, wanted: bool) -> str | None:
    """What an object is ("red", "a circle"), or is not but another one is; None if all are alike."""
    own = getattr(facts.scene.objects[index], asked)
    others = [name for name in facts.present[(asked,)] if getattr(name, asked) != own]
    if not others:
        return None
    value: str = own if wanted else getattr(rng.choice(others), asked)
    return article(value) if asked == "shape" else value


_MAKERS = (
    existence_claim,
    count_claim,
    comparison_claim,
    position_claim,
    neighbour_claim,
    attribute_claim,
)

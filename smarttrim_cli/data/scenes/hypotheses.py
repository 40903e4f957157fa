"""Hypotheses about a scene: entailed by it, contradicted, or neither (neutral).

Neutral is what no picture shows: whether a circle is heavy or made of wood, who drew the picture. The same
words stand in hypotheses of all labels: joined by "and" to a false claim they are contradicted, joined by
"or" to a true claim entailed. The label is drawn first, and with the default weights each type has its labels
in equal parts, so that only the picture tells them apart.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from smarttrim_cli.data.scenes.claims import (
    Claim,
    attribute_claim,
    draw_claim,
    draw_form,
    draw_value,
    roles_of,
)
from smarttrim_cli.data.scenes.describe import Description, Facts, article
from smarttrim_cli.data.scenes.output import Roles

ADJECTIVES = ("heavy", "old", "soft", "cheap")
MATERIALS = ("wood", "glass", "paper", "stone")
UNSEEN = (*ADJECTIVES, *MATERIALS)
NAMES = ("anna", "tom", "lucy", "ben")
VERBS = ("drew", "likes")
E, N, C = "entailment", "neutral", "contradiction"
POSSIBLE = {"plain": (E, C), "conjunction": (N, C), "disjunction": (E, N), "mixed": (E, N, C)}
"""Labels that a type of hypothesis can have."""
MAX_TRIES = 20
"""Draws of one hypothesis before the scene is given up."""


@dataclass(frozen=True)
class Hypothesis:
    """A sentence with its label; ``roles`` are pairs of role and index of an object in the scene."""

    text: str
    label: str
    type: str
    roles: Roles


def sample_hypotheses(
    facts: Facts, rng: random.Random, number: int, weights: dict[str, float]
) -> list[Hypothesis] | None:
    """Draw ``number`` different hypotheses, of all labels in turn; None if the scene has too few."""
    labels = [label for _ in range(0, number, 3) for label in rng.sample((E, N, C), 3)][:number]
    found: dict[str, Hypothesis] = {}
    for label in labels:
        types = [type for type, possible in POSSIBLE.items() if label in possible]
        shares = [weights[type] for type in types]
        for _ in range(MAX_TRIES):
            type = rng.choices(types, weights=shares)[0]
            said = _MAKERS[type](facts, rng, label)
            if said is not None and said.text not in found:
                found[said.text] = Hypothesis(said.text, label, type, said.roles)
                break
        else:
            return None
    return list(found.values())


def _plain(facts: Facts, rng: random.Random, label: str) -> Claim | None:
    return draw_claim(facts, rng, wanted=label == E)


def _conjunction(facts: Facts, rng: random.Random, label: str) -> Claim | None:
    """A claim and something unseen: true and unknown is neutral, false and unknown contradicted."""
    if rng.random() < 0.5:
        claim = draw_claim(facts, rng, wanted=label == N)
        return claim and claim.joined(f"and {_unseen_clause(rng)}")
    picked = _draw_object(facts, rng, there=label == N)
    if picked is None:
        return None
    unseen = rng.choice(UNSEEN)
    if rng.random() < 0.5:
        text = f"there is {_unseen_object(picked, unseen)}"
    else:
        text = f"there is {picked.with_article()} and it is {_predicate(unseen)}"
    return Claim(text, roles_of(facts, picked))


def _disjunction(facts: Facts, rng: random.Random, label: str) -> Claim | None:
    """A claim or something unseen: true or unknown is entailed, false or unknown neutral."""
    if rng.random() < 0.5:
        claim = draw_claim(facts, rng, wanted=label == E)
        return claim and claim.joined(f"or {_unseen_clause(rng)}")
    claim = attribute_claim(facts, rng, wanted=label == E)
    return claim and claim.joined(f"or {_predicate(rng.choice(UNSEEN))}")


def _mixed(facts: Facts, rng: random.Random, label: str) -> Claim | None:
    """One of two sentences that can have each label."""
    return rng.choice((_one_or_unseen_other, _one_that_is_this_or_unseen))(facts, rng, label)


def _one_or_unseen_other(facts: Facts, rng: random.Random, label: str) -> Claim | None:
    """There is a P or a heavy Q: entailed with a P, neutral with only a Q, contradicted with neither."""
    form = draw_form(facts, rng)
    present, absent = facts.present[form], facts.absent(form)
    if len(present) < 2 or len(absent) < 2:
        return None
    first = rng.choice(present if label == E else absent)
    second_there = label == N or (label == E and rng.random() < 0.5)
    second = rng.choice([name for name in (present if second_there else absent) if name != first])
    text = f"there is {first.with_article()} or {_unseen_object(second, rng.choice(UNSEEN))}"
    return Claim(text, (*roles_of(facts, first, "first"), *roles_of(facts, second, "second")))


def _one_that_is_this_or_unseen(facts: Facts, rng: random.Random, label: str) -> Claim | None:
    """There is a Q and it is red or heavy: contradicted without a Q, else entailed if the only Q is red."""
    asked = rng.choice(facts.attributes)
    form = draw_form(facts, rng, without=asked)
    unique = [(name, index) for name, index in facts.unique if name.form == form]
    absent = facts.absent(form)
    if not unique or not absent:
        return None
    description, index = rng.choice(unique)
    value = draw_value(facts, rng, asked, index, wanted=label == E)
    if value is None:
        return None
    if label == C:
        description = rng.choice(absent)
    unseen = _predicate(rng.choice(UNSEEN))
    text = f"there is {description.with_article()} and it is {value} or {unseen}"
    return Claim(text, roles_of(facts, description))


def _draw_object(facts: Facts, rng: random.Random, there: bool) -> Description | None:
    """A description that fits an object, or none; None where the form that was drawn does not have both."""
    form = draw_form(facts, rng)
    present, absent = facts.present[form], facts.absent(form)
    return rng.choice(present if there else absent) if present and absent else None


def _unseen_object(description: Description, unseen: str) -> str:
    """Noun phrase with something unseen: "a heavy red circle", "a red circle made of wood"."""
    if unseen in MATERIALS:
        return f"{description.with_article()} made of {unseen}"
    return article(f"{unseen} {description.singular()}")


def _predicate(unseen: str) -> str:
    return f"made of {unseen}" if unseen in MATERIALS else unseen


def _unseen_clause(rng: random.Random) -> str:
    return f"{rng.choice(NAMES)} {rng.choice(VERBS)} the picture"


_MAKERS: dict[str, Callable[[Facts, random.Random, str], Claim | None]] = {
    "plain": _plain,
    "conjunction": _conjunction,
    "disjunction": _disjunction,
    "mixed": _mixed,
}

"""Referring to objects in words: descriptions, the objects they fit, and their noun phrases."""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass, fields
from functools import cached_property

from smarttrim_cli.data.scenes.world import DIRECTIONS, Scene, SceneObject

Form = tuple[str, ...]
"""The attributes that a description names, in the order in which English says them."""

ONE_WORD: tuple[Form, ...] = (("size",), ("color",), ("shape",), ("ground",))
TWO_WORDS: tuple[Form, ...] = (
    *(("size", "color"), ("size", "shape"), ("color", "shape")),
    *(("color", "ground"), ("shape", "ground")),
)
ALL_FORMS: tuple[Form, ...] = (
    *(*ONE_WORD, *TWO_WORDS),
    *(("size", "color", "shape"), ("color", "shape", "ground")),
)
BESIDE_FORMS: tuple[Form, ...] = (("color",), ("shape",), ("color", "shape"))
"""How objects are described that lie beside each other."""
_NUMBERS = (
    *("no", "one", "two", "three", "four", "five", "six"),
    *("seven", "eight", "nine", "ten", "eleven", "twelve"),
)


@dataclass(frozen=True)
class Description:
    """What is said about an object; an attribute that is not mentioned is None."""

    size: str | None = None
    color: str | None = None
    shape: str | None = None
    ground: str | None = None

    @property
    def form(self) -> Form:
        """The attributes mentioned."""
        return tuple(field.name for field in fields(self) if getattr(self, field.name) is not None)

    def singular(self) -> str:
        """Noun phrase without article: "small red circle", "red object", "circle on dots"."""
        return self._noun() + self._place()

    def plural(self) -> str:
        """Noun phrase for several: "red crosses", "small objects", "circles on dots"."""
        noun = self._noun()
        return noun + ("es" if noun.endswith("s") else "s") + self._place()

    def with_article(self) -> str:
        """Noun phrase with "a" or "an"."""
        return article(self.singular())

    def numbered(self, number: int) -> str:
        """Noun phrase with a number: "one red circle", "three squares"."""
        return f"{number_word(number)} {self.singular() if number == 1 else self.plural()}"

    def _noun(self) -> str:
        return " ".join(word for word in (self.size, self.color, self.shape or "object") if word)

    def _place(self) -> str:
        return f" on {self.ground}" if self.ground else ""


def article(phrase: str) -> str:
    """A noun phrase with "a" or "an" before it."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def number_word(number: int) -> str:
    """A number in words as far as twelve, then in digits; 0 is "no"."""
    return _NUMBERS[number] if number < len(_NUMBERS) else str(number)


def describe(item: SceneObject, form: Form) -> Description:
    """The description of an object by the attributes of ``form``."""
    return Description(**{attribute: getattr(item, attribute) for attribute in form})


class Facts:
    """A scene with all its true descriptions, worked out once for all questions about it.

    Attributes:
        attributes: Those in which objects of these scenes can differ.
        present: Descriptions that fit at least one object, by form.
        matches: Indices of the objects that a description fits.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.attributes = tuple(
            name for name in ("size", "color", "shape", "ground") if len(scene.values.get(name, ())) > 1
        )
        found: dict[Form, dict[Description, list[int]]] = {
            form: defaultdict(list) for form in self.forms(ALL_FORMS)
        }
        for form, groups in found.items():
            for index, item in enumerate(scene.objects):
                groups[describe(item, form)].append(index)
        self.present = {form: list(groups) for form, groups in found.items()}
        self.matches = {name: tuple(group) for groups in found.values() for name, group in groups.items()}

    def forms(self, forms: tuple[Form, ...]) -> list[Form]:
        """Those forms that mention only attributes in which objects of these scenes differ."""
        return [form for form in forms if all(attribute in self.attributes for attribute in form)]

    @cached_property
    def unique(self) -> list[tuple[Description, int]]:
        """Descriptions that fit exactly one object, with that object's index."""
        return [(description, found[0]) for description, found in self.matches.items() if len(found) == 1]

    @cached_property
    def beside(self) -> dict[tuple[Description, str, Description], tuple[int, int]]:
        """What is just beside what, as ("a red object", "left of", "a square"), with two such objects."""
        found: dict[tuple[Description, str, Description], tuple[int, int]] = {}
        forms = self.forms(BESIDE_FORMS)
        names = [[describe(item, form) for form in forms] for item in self.scene.objects]
        for anchor, (words, step) in itertools.product(range(len(names)), DIRECTIONS.items()):
            target = self.scene.neighbour(anchor, *step)
            if target is not None:
                for one, other in itertools.product(names[target], names[anchor]):
                    found.setdefault((one, words, other), (target, anchor))
        return found

    def absent(self, form: Form) -> list[Description]:
        """Descriptions of this form that fit no object; near misses only, where there are any.

        A near miss has every one of its words true of some object (for "red circle" a red square and a blue
        circle), so that the answer takes binding attributes to one object.
        """
        combinations = itertools.product(*(self.scene.values[attribute] for attribute in form))
        named = [Description(**dict(zip(form, values, strict=True))) for values in combinations]
        none = [description for description in named if description not in self.matches]
        near = [
            description
            for description in none
            if all(Description(**{name: getattr(description, name)}) in self.matches for name in form)
        ]
        return near or none

"""``preset``: a method as a whole, so that a recipe need not name its dozen settings.

``guided`` is ours (guided.yaml; docs/results/study says why); ``paper`` is SmartTrim as published, which the
schema's defaults are. In a file a preset says what the file does not: the file's keys win, and so do
overrides. As an override (``preset=guided``) it replaces what the file says of the method, and yields to the
overrides behind it. A trimmer that is given as null stays away, and options of a trimmer of the same name
stay; nothing else of a recipe (targets, rates, lengths) is touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from smarttrim_cli.recipe.schema import PRESETS, Pruning, Strategy
from smarttrim_cli.recipe.source import KeyPath, Place, Source, read_source

KEY = "preset"
_FOLDER = Path(__file__).parent


def complete(source: Source) -> None:
    """Give a recipe what its preset says and it does not, in place; of unknown ones the schema tells."""
    _merge(source, source.place((KEY,)), replace=False)


def impose(source: Source, place: Place) -> None:
    """Replace what a recipe says of the method by its preset, in place.

    Args:
        source: The recipe, with its preset.
        place: Of the override.
    """
    _merge(source, place, replace=True)


@cache
def values(name: str) -> dict[str, Any]:
    """The settings of a preset, by section."""
    guided = read_source(_FOLDER / "guided.yaml").data
    return guided if name == "guided" else _defaults(guided)


def _defaults(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The schema's defaults of the same keys."""
    whole = {"pruning": Pruning(target_speedup=2.0).model_dump(), "strategy": Strategy().model_dump()}

    def pick(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: pick(value, found[key]) if isinstance(value, Mapping) and "name" not in value else found[key]
            for key, value in wanted.items()
        }

    return pick(wanted, whole)


def _merge(source: Source, place: Place, *, replace: bool) -> None:
    name = source.data.get(KEY)
    if name not in PRESETS or not isinstance(source.data.get("pruning"), dict):
        return  # nothing is trimmed, or the schema has something to say
    for path, value in _leaves(values(name), ()):
        section: Any = source.data
        for depth, part in enumerate(path[:-1], start=1):
            if part not in section:
                section[part] = {}
                source.places[path[:depth]] = place
            section = section[part]
            if not isinstance(section, dict):  # null, or a mistake: the recipe's in either case
                break
        else:
            _set(section, path[-1], value, replace)
            source.places.setdefault(path, place)


def _leaves(values: Mapping[str, Any], path: KeyPath) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in values.items():
        inner = (*path, key)
        if isinstance(value, Mapping) and "name" not in value:
            yield from _leaves(value, inner)
        else:
            yield inner, value  # type: ignore[misc]


def _set(section: dict[str, Any], key: str, value: Any, replace: bool) -> None:
    if isinstance(value, Mapping):  # a trimmer
        own = section.get(key, {})
        if own is None:
            return
        if isinstance(own, dict) and own.get("name", value["name"]) == value["name"]:
            section[key] = {**value, **own}
            return
    if replace or key not in section:
        section[key] = dict(value) if isinstance(value, Mapping) else value

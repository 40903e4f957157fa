"""Loads a recipe: file and overrides, checked by schema and plug-ins, all problems reported at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from smarttrim_cli.errors import UserError
from smarttrim_cli.recipe import presets
from smarttrim_cli.recipe.plugins import check_plugins, resolved_dict
from smarttrim_cli.recipe.problems import check
from smarttrim_cli.recipe.schema import Recipe
from smarttrim_cli.recipe.shipped import find_recipe
from smarttrim_cli.recipe.source import Place, Problem, Source, apply_overrides, dump_yaml, read_source


class RecipeError(UserError):
    """All that is wrong with a recipe.

    Args:
        problems: At least one, in the order of their places.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        lines = "\n".join(str(problem) for problem in problems)
        count = f"{len(problems)} problems:\n" if len(problems) > 1 else ""
        super().__init__(count + lines)
        self.problems = list(problems)


def load_recipe(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe.

    Args:
        path_or_name: A file, or the name of a shipped recipe.
        overrides: ``key=value`` pairs: a dotted key and a value in YAML.

    Raises:
        UserError: There is no such file, or it is not a YAML mapping.
        RecipeError: Its content is wrong: every problem with its file and line, or its override.
    """
    source = read_source(find_recipe(path_or_name))
    _apply(source, overrides)
    source.data = _with_home(source.data)
    problems = {*source.problems, *check(Recipe, source.data, source), *check_plugins(source)}
    if problems:
        raise RecipeError(sorted(problems))
    return Recipe.model_validate(source.data)


def _with_home(value: Any) -> Any:
    """Values with ``~/`` at the beginning of texts as the user's home, as a shell has it."""
    if isinstance(value, dict):
        return {key: _with_home(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_home(inner) for inner in value]
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value


def _apply(source: Source, overrides: Sequence[str]) -> None:
    """Overrides in their order; a preset among them replaces the file's, and what it says of the method."""
    given = [number for number, text in enumerate(overrides) if text.partition("=")[0].strip() == presets.KEY]
    last = given[-1] + 1 if given else 0
    apply_overrides(source, overrides[:last])
    if given:
        presets.impose(source, source.place((presets.KEY,)))
    apply_overrides(source, overrides[last:], first=last)
    if presets.KEY in source.data:
        presets.complete(source)


def load_options(model: type[BaseModel], overrides: Sequence[str]) -> Any:
    """An ``Options`` of a plug-in from ``key=value`` pairs alone.

    Raises:
        RecipeError: Some are wrong.
    """
    source = Source({}, {(): Place(0, "options")})
    apply_overrides(source, overrides)
    problems = {*source.problems, *check(model, source.data, source)}
    if problems:
        raise RecipeError(sorted(problems))
    return model.model_validate(source.data)


def resolved_yaml(recipe: Recipe) -> str:
    """The recipe with every default filled in, as YAML that ``load_recipe`` reads."""
    return dump_yaml(resolved_dict(recipe))

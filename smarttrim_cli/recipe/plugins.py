"""The sections of a recipe that belong to plug-ins: checked, completed and described by their ``Options``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smarttrim_cli import registry
from smarttrim_cli.recipe.problems import check
from smarttrim_cli.recipe.schema import Recipe
from smarttrim_cli.recipe.source import Problem, Source

SECTIONS: dict[tuple[str, ...], str] = {
    ("backbone",): "backbones",
    ("task",): "tasks",
    ("pruning", "token_trimmer"): "trimmers",
    ("pruning", "head_trimmer"): "trimmers",
}
DATA = ("task", "data")


def check_plugins(source: Source) -> list[Problem]:
    """Everything that the plug-ins find wrong with their sections."""
    problems = []
    for path, kind in SECTIONS.items():
        section = _get(source.data, path)
        if (
            not isinstance(section, Mapping)
            or not isinstance(section.get("name"), str)
            or not section["name"]
        ):
            continue  # the recipe's schema reports it
        try:
            options = registry.load(kind, section["name"]).Options
        except registry.PluginError as error:
            hint = f" ({error.hint})" if error.hint else ""
            problems.append(source.problem((*path, "name"), f"{error.message}{hint}"))
            continue
        problems += check(options, _without_name(section), source, path)
    return problems + _mistakes_in_data(source, {problem.key for problem in problems})


def _mistakes_in_data(source: Source, known: set[str]) -> list[Problem]:
    """What strict reading finds in ``task.data``, which its task reads as pydantic does ("6" as 6)."""
    section = _get(source.data, DATA)
    if not isinstance(section, Mapping) or not isinstance(section.get("name"), str):
        return []
    try:
        options = registry.load("data", section["name"]).Options
    except registry.PluginError:
        return []  # the task reports it
    found = check(options, _without_name(section), source, DATA)
    return [problem for problem in found if problem.key not in known]


def resolved_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain data, with every default filled in, those of the plug-ins too."""
    data = recipe.model_dump(mode="json")
    for path, kind in SECTIONS.items():
        section = _get(data, path)
        if section is not None:
            _get(data, path[:-1])[path[-1]] = {
                "name": section["name"],
                **registry.options(kind, section).model_dump(mode="json"),
            }
    return data


def recipe_schema() -> dict[str, Any]:
    """JSON schema of a recipe for editors, with the options of every plug-in of this package."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}
    definitions = schema["$defs"]
    for kind in sorted(set(SECTIONS.values())):
        variants = [_plugin_schema(kind, name, definitions) for name in registry.names(kind)]
        definitions[kind] = {"anyOf": [*variants, _outside_schema(definitions["Plugin"])]}
    for path, kind in SECTIONS.items():
        owner = schema if len(path) == 1 else definitions["Pruning"]
        field = owner["properties"][path[-1]]
        nullable = "anyOf" in field
        field.pop("$ref", None)
        field["anyOf"] = [{"$ref": f"#/$defs/{kind}"}, *([{"type": "null"}] if nullable else [])]
    return schema


def _plugin_schema(kind: str, name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """Schema of one plug-in's section; the definitions it needs are added, under names of their own."""
    own = registry.load(kind, name).Options.model_json_schema(ref_template=f"#/$defs/{kind}.{name}.{{model}}")
    for inner, definition in own.pop("$defs", {}).items():
        definitions[f"{kind}.{name}.{inner}"] = definition
    own["properties"] = {"name": {"const": name}, **own.get("properties", {})}
    own["required"] = ["name", *own.get("required", [])]
    own["title"] = f"{kind}.{name}"
    return own


def _outside_schema(plugin: dict[str, Any]) -> dict[str, Any]:
    name = {"type": "string", "pattern": "[.:]", "description": "package.module:Class"}
    return {**plugin, "properties": {"name": name}, "title": "outside"}


def _get(data: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        data = data.get(part) if isinstance(data, Mapping) else None
    return data


def _without_name(section: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key != "name"}

"""Writes the tables of docs/recipes.md from the recipe's schema and the ``Options`` of every plug-in.

``python docs/generate_recipe_reference.py`` rewrites what is below the marker in the page; the text above it
is written by hand. The same package always gives the same page.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from smarttrim_cli import registry
from smarttrim_cli.recipe import Plugin, Recipe

PAGE = Path(__file__).with_name("recipes.md")
MARKER = "<!-- below: written by docs/generate_recipe_reference.py -->"
PLUGINS = {
    "backbones": ("Backbone", "backbone"),
    "tasks": ("Task", "task"),
    "data": ("Data of a task", "task.data"),
    "trimmers": ("Trimmer", "pruning.<kind>_trimmer"),
}
"""Kind of plug-in to the heading of its tables and the key of its section."""

_TYPES = {
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "string": "text",
    "null": "null",
    "object": "section",
}
_LIMITS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
Row = tuple[str, str, str, str]


def page(text: str) -> str:
    """The page with its tables made anew.

    Args:
        text: The page as it is; what is above the marker stays.
    """
    above, marker, _ = text.partition(MARKER)
    if not marker:
        raise SystemExit(f"{PAGE.name} has lost its marker: {MARKER}")
    return f"{above}{MARKER}\n\n" + "\n\n".join(sections()) + "\n"


def sections() -> Iterator[str]:
    """Headings with their tables."""
    whole = dict(_leaves_by_section(Recipe))
    yield f"## Keys of a recipe\n\n{table(whole.pop(''))}"
    for name, rows in whole.items():
        yield f"### {name}\n\n{_about(_annotation(Recipe, name))}\n\n{table(rows)}"
    yield "## Keys of the plug-ins"
    for kind, (heading, key) in PLUGINS.items():
        for name in registry.names(kind):
            module = registry.load(kind, name)
            section = key.replace("<kind>", getattr(module, "SCORES", ""))
            text = f"In section `{section}`. {_first_line(module.__doc__)}"
            rows = [("name", "text", "required", f"`{name}`"), *leaves(module.Options)]
            yield f"### {heading}: {name}\n\n{text}\n\n{table(rows)}"


def table(rows: list[Row]) -> str:
    """A Markdown table of keys."""
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    lines += [f"| `{key}` | {kind} | {default} | {meaning} |" for key, kind, default, meaning in rows]
    return "\n".join(lines)


def leaves(model: type[BaseModel], prefix: str = "") -> list[Row]:
    """Rows of a section, those of the sections inside it too, with dotted keys."""
    properties = model.model_json_schema()["properties"]
    definitions = model.model_json_schema().get("$defs", {})
    rows: list[Row] = []
    for name, field in model.model_fields.items():
        inner = _model_in(field.annotation)
        words = _words(properties[name], definitions, inner)
        if inner is None or issubclass(inner, Plugin):
            rows.append((prefix + name, words, _default(field), _cell(field.description)))
            continue
        if words != "section":
            rows.append((prefix + name, words, _default(field), _cell(field.description)))
        rows += leaves(inner, f"{prefix}{name}.")
    return rows


def _leaves_by_section(model: type[BaseModel]) -> Iterator[tuple[str, list[Row]]]:
    """Rows at the top (section ``""``), then those of every section, keys in full."""
    top: list[Row] = []
    inner: list[tuple[str, list[Row]]] = []
    properties = model.model_json_schema()["properties"]
    for name, field in model.model_fields.items():
        section = _model_in(field.annotation)
        top.append((name, _words(properties[name], {}, section), _default(field), _cell(field.description)))
        if section is not None and not issubclass(section, Plugin):
            inner.append((name, leaves(section, f"{name}.")))
    yield "", top
    yield from inner


def _annotation(model: type[BaseModel], name: str) -> type[BaseModel]:
    found = _model_in(model.model_fields[name].annotation)
    assert found is not None
    return found


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model in a type such as ``Model`` or ``Model | None``; None if there is none."""
    if get_origin(annotation) is None and isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = [_model_in(argument) for argument in get_args(annotation)]
    return next((model for model in found if model is not None), None)


def _words(schema: dict[str, Any], definitions: dict[str, Any], model: type[BaseModel] | None) -> str:
    """The type of a key; for a section or a plug-in, with what may stand in its place."""
    if model is None:
        return _type(schema, definitions)
    others = [part for part in schema.get("anyOf", []) if "$ref" not in part and part.get("type") != "object"]
    name = "plug-in" if issubclass(model, Plugin) else "section"
    return " or ".join([name, *(_type(part, definitions) for part in others)])


def _type(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """A JSON schema in words."""
    if "anyOf" in schema:
        return " or ".join(_type(part, definitions) for part in schema["anyOf"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        items = schema.get("items") or schema.get("prefixItems", [{}])[0]
        return f"list of {_type(items, definitions)}{_length(schema)}"
    text = _TYPES[schema.get("type", "object")]
    limits = [f"{sign} {_number(schema[name])}" for name, sign in _LIMITS.items() if name in schema]
    inner = schema.get("additionalProperties")
    if isinstance(inner, dict):
        return f"{text} of {_type(inner, definitions)}"
    return " ".join([text, ", ".join(limits)]).strip()


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _length(schema: dict[str, Any]) -> str:
    least, most = schema.get("minItems"), schema.get("maxItems")
    if least is not None and least == most:
        return f", {least} of them"
    bounds = [f"{word} {n}" for word, n in (("at least", least), ("at most", most)) if n is not None]
    return f", {', '.join(bounds)}" if bounds else ""


def _default(field: FieldInfo) -> str:
    """The default of a key as YAML in code, ``required`` if it has none."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Plugin):
        return f"`{{name: {value.name}}}`"
    if isinstance(value, BaseModel):
        return "see below"
    return f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    """A value in YAML's flow style, on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_yaml(item) for item in value) + "]"
    return value if isinstance(value, str) and value else json.dumps(value)


def _about(model: type[BaseModel]) -> str:
    return _cell(_first_line(model.__doc__))


def _first_line(text: str | None) -> str:
    """The first sentence of a docstring, on one line."""
    return " ".join((text or "").strip().split("\n\n")[0].split())


def _cell(text: str | None) -> str:
    """Text of a table cell: a capital at the start, a full stop at the end."""
    words = (text or "").replace("|", "\\|")
    return f"{words[:1].upper()}{words[1:]}" + ("" if words.endswith((".", "?")) else ".")


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()

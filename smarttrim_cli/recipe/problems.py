"""Turns pydantic's errors into problems with file, line, key, and the nearest valid name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from smarttrim_cli import registry
from smarttrim_cli.errors import UserError
from smarttrim_cli.recipe.source import KeyPath, Problem, Source, describe, dotted

Error = Mapping[str, Any]

_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "dict_type": "a section (key: value)",
    "model_type": "a section (key: value)",
    "model_attributes_type": "a section (key: value)",
}
_LIMITS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
}
# pydantic would quietly read the text "5" as a number and true as 1; in a recipe these are mistakes
_STRICT_TYPES = {"int_type", "float_type", "bool_type"}


def check(
    model: type[BaseModel], data: Mapping[str, Any], source: Source, prefix: KeyPath = ()
) -> list[Problem]:
    """Everything that a model finds wrong with a section.

    Args:
        model: Model of the section.
        data: The section's values.
        source: Where they come from.
        prefix: The section's key; empty for the whole recipe.
    """
    endless = [] if prefix else list(_not_finite(data, ()))
    lax, strict = _validate(model, data, strict=False), _validate(model, data, strict=True)
    if isinstance(lax, str):
        return [source.problem(prefix, lax)]
    places_with_errors = {error["loc"] for error in lax}
    errors = [
        *lax,
        *(
            e
            for e in strict
            if not isinstance(e, str) and _is_mistake(e) and e["loc"] not in places_with_errors
        ),
    ]
    messages: dict[KeyPath, list[str]] = {}
    for error in errors:
        path = _real_path(error, data)
        found = messages.setdefault(path, [])
        message = _message(error, path, model, data, prefix)
        if message not in found:
            found.append(message)
    for path, number in endless:  # sections of plug-ins would take them
        messages.setdefault(path, [f"expected a finite number, found {describe(number)}"])
    return [source.problem((*prefix, *path), "; or ".join(found)) for path, found in messages.items()]


def _not_finite(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, float]]:
    """Infinite values and those that are no numbers, with their keys."""
    if isinstance(value, float) and not math.isfinite(value):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _not_finite(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _not_finite(inner, (*path, index))


def _validate(model: type[BaseModel], data: Mapping[str, Any], *, strict: bool) -> list[Error] | str:
    """Errors of a validation, or the text of an error that a plug-in raised itself."""
    try:
        model.model_validate(data, strict=strict)
    except ValidationError as error:
        return list(_flat(error, ()))
    except UserError as error:
        return _one_line(error)
    return []


def _flat(error: ValidationError, prefix: KeyPath) -> Iterator[Error]:
    """Errors, with those of a validation inside a validator in the place of the outer one."""
    for item in error.errors(include_url=False):
        location = (*prefix, *item["loc"])
        inner = item.get("ctx", {}).get("error")
        if isinstance(inner, ValidationError):
            yield from _flat(inner, location)
        else:
            yield {**item, "loc": location}


def _is_mistake(error: Error) -> bool:
    """Whether an error of strict validation is one for the user, too."""
    value = error["input"]
    whole = error["type"] == "int_type" and isinstance(value, float)
    return error["type"] in _STRICT_TYPES and error["loc"][-1:] != ("[key]",) and not whole


def _real_path(error: Error, data: Any) -> KeyPath:
    """The error's location without what is not in the recipe (pydantic adds the branches of unions)."""
    path: KeyPath = ()
    for part in error["loc"]:
        is_key = isinstance(data, Mapping) and part in data
        is_index = isinstance(data, list) and isinstance(part, int) and part < len(data)
        if is_key or is_index:
            path, data = (*path, part), data[part]
    if error["type"] == "missing":
        return (*path, error["loc"][-1])
    return path


def _message(
    error: Error, path: KeyPath, model: type[BaseModel], data: Mapping[str, Any], prefix: KeyPath
) -> str:
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    if kind == "extra_forbidden":
        return _unknown_key(path, model, data, prefix)
    if kind == "missing":
        return "required key is missing"
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, found {describe(value)}"
    if kind in _LIMITS:
        name, words = _LIMITS[kind]
        return f"must be {words} {context[name]:.15g}, found {describe(value)}"
    if kind == "literal_error":
        valid = str(context["expected"])
        nearest = registry.did_you_mean(
            str(value), [option.strip("'") for option in valid.replace(" or ", ", ").split(", ")]
        )
        return f"expected {valid}, found {describe(value)}" + (
            f"; did you mean {nearest}?" if nearest else ""
        )
    if isinstance(context.get("error"), UserError):
        return _one_line(context["error"])
    if kind in ("value_error", "assertion_error"):
        return str(context["error"])
    return f"{error['msg'][:1].lower()}{error['msg'][1:]}, found {describe(value)}"


def _one_line(error: UserError) -> str:
    return f"{error.message} ({error.hint})" if error.hint else error.message


def _unknown_key(path: KeyPath, model: type[BaseModel], data: Mapping[str, Any], prefix: KeyPath) -> str:
    key = str(path[-1])
    valid = _valid_keys(model, data, path[:-1])
    nearest = registry.did_you_mean(key, valid)
    if nearest:
        return f"unknown key; did you mean {nearest}?"
    paths = [other for other in _all_paths(model) if other[-1] == key]
    if paths:
        shortest = min(len(other) for other in paths)
        elsewhere = [dotted((*prefix, *other)) for other in paths if len(other) == shortest]
        return f"unknown key here; did you mean {' or '.join(elsewhere[:3])}?"
    return f"unknown key; valid here: {', '.join(valid) or 'none'}"


def _valid_keys(model: type[BaseModel], data: Any, path: KeyPath) -> list[str]:
    """The keys that are valid in the section at ``path``."""
    models = [model]
    extra: list[str] = []
    for part in path:
        data = data[part]
        fields = [m.model_fields[part] for m in models if isinstance(part, str) and part in m.model_fields]
        inner = [found for field in fields for found in _models_in(field.annotation)]
        extra = []
        if part in registry.KINDS and isinstance(data, Mapping) and isinstance(data.get("name"), str):
            inner, extra = [registry.load(str(part), data["name"]).Options], ["name"]
        models = inner or models
    return extra + [name for m in models for name in m.model_fields]


def _all_paths(model: type[BaseModel], prefix: KeyPath = ()) -> Iterator[KeyPath]:
    for name, field in model.model_fields.items():
        yield (*prefix, name)
        for inner in _models_in(field.annotation):
            yield from _all_paths(inner, (*prefix, name))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models in a type such as ``Model | None`` or ``list[Model]``."""
    if get_origin(annotation) is None and isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]

"""Checks that the user asks for: ``--require 'trimmed.accuracy>=0.93'``."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from smarttrim_cli.cli.render import flatten
from smarttrim_cli.cli.tables import format_value
from smarttrim_cli.errors import CheckFailed, UserError

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
_REQUIREMENT = re.compile(r"\s*(.+?)\s*(>=|<=|==|>|<)\s*([^<>=\s]+)\s*")
"""Its operator is the last one: names of ``compare`` have signs of their own, ``scenes,grid=4``."""


@dataclass(frozen=True)
class Requirement:
    """A dotted name of a result, an operator, and a number."""

    text: str
    name: str
    operator: str
    bound: float


def parse_requirements(texts: Sequence[str] | None) -> list[Requirement]:
    """Read requirements such as ``trimmed.accuracy>=0.93``.

    Raises:
        UserError: One of them cannot be read.
    """
    return [_parse(text) for text in texts or ()]


def enforce(requirements: Sequence[Requirement], result: Mapping[str, Any]) -> None:
    """Check all requirements.

    Raises:
        UserError: A name is not in the result, or is not a number.
        CheckFailed: Some do not hold.
    """
    values = flatten(result)
    unmet = []
    for requirement in requirements:
        value = _value(requirement, values)
        if value is None or not _OPERATORS[requirement.operator](value, requirement.bound):
            found = "it was not measured" if value is None else f"it is {format_value(value)}"
            unmet.append(f"required {requirement.text}, but {found}")
    if unmet:
        raise CheckFailed("\n".join(unmet))


def _parse(text: str) -> Requirement:
    match = _REQUIREMENT.fullmatch(text)
    try:
        bound = float(match[3]) if match else None
    except ValueError:
        bound = None
    if match is None or bound is None:
        raise UserError(
            "expected a name, one of >= <= > < ==, and a number",
            where=f"--require {text!r}",
            hint="for example --require 'trimmed.accuracy>=0.93' (with quotes: the shell takes > otherwise)",
        )
    return Requirement(text, match[1], match[2], bound)


def _value(requirement: Requirement, values: Mapping[str, Any]) -> float | None:
    """The number of that name, or None if the result has it as not measured."""
    where = f"--require {requirement.text!r}"
    if requirement.name not in values:
        numbers = [name for name, value in values.items() if isinstance(value, int | float)]
        near = get_close_matches(requirement.name, numbers, n=3, cutoff=0.5)
        question = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(
            f"the result has no {requirement.name}{question}",
            where=where,
            hint=None if near else f"it has: {', '.join(numbers)}",
        )
    value = values[requirement.name]
    if value is not None and not isinstance(value, int | float):
        raise UserError(f"{requirement.name} is {value!r}, not a number", where=where)
    return value

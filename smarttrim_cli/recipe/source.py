"""Reads YAML so that every key remembers where it was written, and applies ``key=value`` overrides to it.

Scalars follow YAML 1.2: ``1e-5`` is a number; ``on`` and ``yes`` are text; so are ``010`` and ``12:30``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from smarttrim_cli.errors import UserError

KeyPath = tuple[str | int, ...]
_AFTER_ALL_FILES = 1_000_000_000
_DEEPEST, _MOST = 100, 100_000
"""Levels and values that no recipe has: beyond them reading it would take all stack or memory."""


@dataclass(frozen=True, order=True)
class Place:
    """Where a key was written: a line of a file, or an override."""

    order: int
    where: str


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong with a recipe."""

    place: Place
    key: str
    message: str

    def __str__(self) -> str:
        """One line: place, key, what is wrong."""
        return ": ".join(part for part in (self.place.where, self.key, self.message) if part)


@dataclass
class Source:
    """The mapping that was read, the place of each of its keys, and what is wrong with it so far."""

    data: dict[str, Any]
    places: dict[KeyPath, Place]
    problems: list[Problem] = field(default_factory=list)

    def place(self, path: KeyPath) -> Place:
        """The place of a key, or of the nearest section around it."""
        while path not in self.places:
            path = path[:-1]
        return self.places[path]

    def problem(self, path: KeyPath, message: str) -> Problem:
        """A problem at a key."""
        return Problem(self.place(path), dotted(path), message)


def dotted(path: Iterable[str | int]) -> str:
    """``("logging", "report_to", 0)`` as ``logging.report_to[0]``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in ("null", "merge")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_SCALARS = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(0|[1-9][0-9_]*)", "-+0123456789"),
    "float": (
        r"[-+]?([0-9][0-9_]*(\.[0-9_]*([eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)|\.[0-9]+([eE][-+]?[0-9]+)?|\.(inf|Inf|INF))"
        r"|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
}


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes whatever YAML 1.1 or 1.2 would not read as text."""


for _tag, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first)
        )


def dump_yaml(data: Any) -> str:
    """YAML that this module (and any YAML 1.1 or 1.2 reader) reads back as ``data``."""
    return yaml.dump(
        data, Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=110
    )


def read_recipe_text(path: Path) -> str:
    """The text of a recipe file.

    Raises:
        UserError: It cannot be read, or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"not UTF-8 text (byte {error.start} is {error.object[error.start]:#04x})",
            where=str(path),
            hint="save the file with the encoding UTF-8",
        ) from error
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(path)) from error


def read_source(path: Path) -> Source:
    """Read a recipe file.

    Raises:
        UserError: It cannot be read, or is not a YAML mapping.
    """
    node = _compose(read_recipe_text(path), str(path))
    if node is None:
        raise UserError(
            "the file is empty",
            where=str(path),
            hint="`smarttrim recipes show quickstart` prints a recipe to start from",
        )
    builder = _Builder(where=f"{path}:{{line}}", order=0)
    data = builder.build(node, ())
    if not isinstance(data, dict):
        if builder.problems:
            problem = builder.problems[0]
            raise UserError(problem.message, where=problem.place.where)
        raise UserError(f"expected a mapping of keys to values, found {describe(data)}", where=f"{path}:1")
    return Source(data, {(): Place(0, f"{path}:1"), **builder.places}, builder.problems)


def apply_overrides(source: Source, overrides: Sequence[str], first: int = 0) -> None:
    """Set ``key=value`` pairs, in place; what is wrong with them is added to the source's problems.

    Args:
        source: The recipe.
        overrides: In their order.
        first: How many came before.
    """
    for number, override in enumerate(overrides, start=first):
        where = f'override "{override}"'
        place = Place(_AFTER_ALL_FILES + number, where)
        key, equals, text = override.partition("=")
        parts = tuple(key.strip().split("."))
        if not equals or not all(parts):
            source.problems.append(
                Problem(place, "", "expected key=value, such as optimizer.learning_rate=1e-5")
            )
            continue
        builder = _Builder(where=where, order=place.order)
        try:
            node = _compose(text, where)
            value = None if node is None else builder.build(node, parts)
        except UserError as error:
            source.problems.append(Problem(place, dotted(parts), error.message))
            continue
        source.problems += builder.problems
        _set(source, parts, value, place, builder.places)


def _set(
    source: Source, parts: tuple[str, ...], value: Any, place: Place, places: dict[KeyPath, Place]
) -> None:
    section = source.data
    for depth, part in enumerate(parts[:-1], start=1):
        if section.get(part) is None:
            section[part] = {}
            source.places[parts[:depth]] = place
        section = section[part]
        if not isinstance(section, dict):
            message = f"{dotted(parts[:depth])} is {describe(section)}, not a section; override it as a whole"
            source.problems.append(Problem(place, dotted(parts), message))
            return
    section[parts[-1]] = value
    for path in [path for path in source.places if path[: len(parts)] == parts]:
        del source.places[path]
    source.places[parts] = place
    source.places.update(places)


def describe(value: Any) -> str:
    """A value, as an error message names it."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, dict):
        return "a section (key: value)"
    if isinstance(value, list | tuple):
        return "a list"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _compose(text: str, where: str) -> yaml.Node | None:
    """The YAML tree of a text, or None if it is empty."""
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{where}:{mark.line + 1}" if mark and not where.startswith("override") else where
        context = f"{error.context}, " if error.context else ""
        hint = "indent with spaces; YAML does not allow tabs" if "'\\t'" in (error.problem or "") else None
        raise UserError(f"not valid YAML: {context}{error.problem}", where=place, hint=hint) from error
    except yaml.YAMLError as error:
        raise UserError(f"not valid YAML: {' '.join(str(error).split())}", where=where) from error
    except RecursionError as error:
        raise UserError("not a recipe: nested too deeply", where=where) from error


class _Builder:
    """Turns a YAML tree into plain values, noting the place of every key and element.

    Args:
        where: Text of a place; ``{line}`` stands for the line.
        order: Added to the line for the place's order.
    """

    def __init__(self, where: str, order: int) -> None:
        self.where = where
        self.order = order
        self.places: dict[KeyPath, Place] = {}
        self.problems: list[Problem] = []
        self._scalars = _Loader("")
        self._open: list[yaml.Node] = []
        self._built = 0

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        """The value of a node that stands at ``path``.

        Raises:
            UserError: The text is nested too deeply, or holds more than any recipe.
        """
        if node in self._open:
            return self._reject(node, path, "an alias (*name) contains itself")
        self._built += 1
        if self._built > _MOST:
            raise self._too_much(node, "it holds too much; aliases (*name) count as often as they are used")
        if len(self._open) >= _DEEPEST:
            raise self._too_much(node, "nested too deeply")
        self._open.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                return [self._element(child, (*path, index)) for index, child in enumerate(node.value)]
            return self._scalar(node, path)
        except (yaml.constructor.ConstructorError, ValueError) as error:
            return self._reject(node, path, getattr(error, "problem", None) or str(error))
        except (KeyError, AttributeError, IndexError, TypeError):  # how PyYAML refuses a value under a tag
            return self._reject_tag(node, path)
        finally:
            self._open.pop()

    def _scalar(self, node: yaml.Node, path: KeyPath) -> Any:
        value = self._scalars.construct_object(node)
        if isinstance(value, dict | list | set):  # PyYAML would fill it later
            return self._reject_tag(node, path)
        problem = _unwritable(value) if isinstance(value, str) else None
        if problem is not None:
            self._reject(node, path, problem)
        return value

    def _element(self, node: yaml.Node, path: KeyPath) -> Any:
        self.places[path] = self._place(node)
        return self.build(node, path)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        first_lines: dict[str, int] = {}
        for key_node, _ in node.value:
            key = str(key_node.value)
            if not isinstance(key_node, yaml.ScalarNode):
                self._reject(key_node, path, "keys must be plain text")
            elif key in first_lines:
                self._reject(key_node, (*path, key), f"duplicate key, first given in line {first_lines[key]}")
            first_lines.setdefault(key, key_node.start_mark.line + 1)
        self._scalars.flatten_mapping(node)  # merge keys (<<): their values come first
        mapping = {}
        for key_node, value_node in node.value:
            key_path = (*path, str(key_node.value))
            self.places[key_path] = self._place(key_node)
            mapping[str(key_node.value)] = self.build(value_node, key_path)
        return mapping

    def _place(self, node: yaml.Node) -> Place:
        line = node.start_mark.line + 1
        return Place(self.order + line, self.where.replace("{line}", str(line)))

    def _too_much(self, node: yaml.Node, message: str) -> UserError:
        outermost = [*self._open, node][1:2] or [node]  # what an alias names may be far from here
        return UserError(f"not a recipe: {message}", where=self._place(outermost[0]).where)

    def _reject_tag(self, node: yaml.Node, path: KeyPath) -> None:
        kind = node.tag.rpartition(":")[2]
        self._reject(node, path, f"{describe(str(node.value))} is no value of the tag !!{kind}")

    def _reject(self, node: yaml.Node, path: KeyPath, message: str) -> None:
        self.problems.append(Problem(self._place(node), dotted(path), message))


def _unwritable(text: str) -> str | None:
    """What YAML can spell in a text, but no file's name and no tokenizer takes."""
    if "\0" in text:
        return f"{describe(text)} has a character that no file takes (NUL)"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return f"{describe(text)} has half of a character"
    return None

"""Finds plug-ins (backbones, tasks, trimmers, data sets) by name, importing only the one that is asked for.

A plug-in is a module in the sub-package of its kind with a top-level ``Options`` class (a pydantic model that
validates its section of a recipe). There is no list to edit: a new file is a new plug-in. Code outside this
package is named ``package.module`` or ``package.module:Class``; it has the same members as such a module.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import pkgutil
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from smarttrim_cli.errors import UserError

KINDS = ("backbones", "tasks", "trimmers", "data")
MEMBERS = {
    "backbones": ("FORMS", "PREPROCESS", "fit_to_tokenizer", "build"),
    "tasks": ("FORM", "build"),
    "trimmers": ("SCORES", "build"),
    "data": ("TASKS", "read", "splits"),
}
"""What a plug-in of a kind has beside its ``Options``."""

_SINGULAR = {"backbones": "backbone", "tasks": "task", "trimmers": "trimmer", "data": "data set"}


_outside: set[str] = set()
"""Packages that plug-ins were loaded from; of those without a package the modules."""

_GUIDES = "see the guides in docs/ on adding a plug-in"


class PluginError(UserError, ValueError):
    """A plug-in that cannot be loaded; a ``ValueError`` too, so that pydantic reports it with its place."""


def did_you_mean(name: str, valid: Iterable[str]) -> str | None:
    """The valid name nearest to ``name``, or None. Abbreviations count: ``lr`` means ``learning_rate``."""
    candidates = sorted(valid)
    close = get_close_matches(name, candidates, n=1, cutoff=0.6)
    if close:
        return close[0]
    initials = {
        "".join(word[:1] for word in candidate.split("_")): candidate
        for candidate in candidates
        if "_" in candidate
    }
    return initials.get(name)


@functools.cache
def names(kind: str) -> list[str]:
    """Names of the plug-ins of a kind, sorted, without importing any of them.

    Args:
        kind: A sub-package: one of ``KINDS``.
    """
    spec = importlib.util.find_spec(f"smarttrim_cli.{kind}")
    locations = list(spec.submodule_search_locations or []) if spec else []
    return sorted(
        module.name
        for module in pkgutil.iter_modules(locations)
        if not module.name.startswith("_") and _has_options(Path(module.module_finder.path), module)  # type: ignore[union-attr]
    )


def is_outside(name: str) -> bool:
    """Whether a name is that of code outside this package."""
    return "." in name or ":" in name


def is_of_a_plugin(module: str) -> bool:
    """Whether a module is that of a plug-in from outside this package, or stands beside one."""
    return any(module == package or module.startswith(f"{package}.") for package in _outside)


def load(kind: str, name: str, whole: bool = False) -> Any:
    """The plug-in of a kind: its module, or the object that ``package.module:Class`` names.

    Args:
        kind: A sub-package: one of ``KINDS``.
        name: The module's name in that sub-package; or ``package.module[:Class]`` for code outside.
        whole: Refuse one without all of ``MEMBERS``; else its ``Options`` are enough.

    Raises:
        PluginError: There is no such plug-in, it cannot be imported, or it lacks something.
    """
    if is_outside(name):
        found = _load_outside(kind, name)
        lacking = [member for member in MEMBERS[kind] if whole and not hasattr(found, member)]
        if lacking:
            raise PluginError(f"{_SINGULAR[kind]} {name!r} has no {', '.join(lacking)}", hint=_GUIDES)
        return found
    if name not in names(kind):
        nearest = did_you_mean(name, names(kind))
        question = f"; did you mean {nearest}?" if nearest else ""
        raise PluginError(
            f"unknown {_SINGULAR[kind]} {name!r}{question}",
            hint=f"valid: {', '.join(names(kind)) or 'none'}; or package.module:Class for code of your own",
        )
    try:
        return importlib.import_module(f"smarttrim_cli.{kind}.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("smarttrim_cli"):
            raise
        raise PluginError(
            f"{_SINGULAR[kind]} {name} needs the package {error.name}, which is not installed"
        ) from error


def options(kind: str, section: Mapping[str, Any]) -> Any:
    """Validate a recipe section ``{name: ..., further keys}`` with its plug-in's ``Options``.

    Args:
        kind: A sub-package: one of ``KINDS``.
        section: The section, as read from the recipe.

    Returns:
        An instance of the plug-in's ``Options`` (``name`` is not part of it).

    Raises:
        PluginError: There is no such plug-in.
        pydantic.ValidationError: The further keys are wrong.
    """
    if not isinstance(section.get("name"), str):
        raise PluginError(f"the {_SINGULAR[kind]} needs a name", hint=f"valid: {', '.join(names(kind))}")
    further = {key: value for key, value in section.items() if key != "name"}
    return load(kind, section["name"]).Options.model_validate(further)


def _has_options(folder: Path, module: pkgutil.ModuleInfo) -> bool:
    """Whether the source of a module defines or imports ``Options`` at its top level."""
    source = folder / module.name / "__init__.py" if module.ispkg else folder / f"{module.name}.py"
    if not source.is_file():
        return False
    for statement in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.ClassDef) and statement.name == "Options":
            return True
        if isinstance(statement, ast.ImportFrom) and any(
            (a.asname or a.name) == "Options" for a in statement.names
        ):
            return True
    return False


def _load_outside(kind: str, name: str) -> Any:
    module_name, _, attribute = name.partition(":")
    if "/" in module_name or module_name.startswith("."):
        raise PluginError(
            f"{_SINGULAR[kind]} {name!r} names a file, not a module",
            hint="such as my_package.my_module, with its folder on PYTHONPATH",
        )
    try:
        found = importlib.import_module(module_name)
        _outside.add(module_name.rpartition(".")[0] or module_name)
    except (ImportError, ValueError) as error:
        raise PluginError(
            f"cannot import {_SINGULAR[kind]} {name!r}: {error}",
            hint="is the package installed, or its folder on PYTHONPATH?",
        ) from error
    except Exception as error:  # the module is the user's, and so is whatever is wrong in it
        raise PluginError(
            f"cannot import {_SINGULAR[kind]} {name!r}: {type(error).__name__}: {error}",
            hint=f"`python -c 'import {module_name}'` shows where",
        ) from error
    if attribute and not hasattr(found, attribute):
        raise PluginError(f"{_SINGULAR[kind]} {name!r}: module {module_name} has no {attribute}")
    found = getattr(found, attribute) if attribute else found
    if not hasattr(found, "Options"):
        raise PluginError(f"{_SINGULAR[kind]} {name!r} has no Options class", hint=_GUIDES)
    if not hasattr(found.Options, "model_validate"):
        raise PluginError(f"Options of {_SINGULAR[kind]} {name!r} is no pydantic model", hint=_GUIDES)
    return found

"""Holds the direction of imports: cli -> engine -> {tasks, backbones, pruning} -> trimmers -> leaves."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "smarttrim_cli"
ANYONE = {"errors", "forms", "registry", "tensors"}
ALLOWED = {
    "__init__": {"api"},
    "__main__": {"cli"},
    "api": {"engine", "recipe", "tasks", "backbones", "pruning", "data"},
    "cli": {"engine", "recipe"},
    "engine": {"recipe", "tasks", "backbones", "pruning", "trimmers", "data", "metrics"},
    "tasks": {"backbones", "pruning", "trimmers", "data", "metrics"},
    "backbones": {"pruning", "trimmers"},
    "pruning": {"trimmers"},
    "recipe": set(),
    "trimmers": set(),
    "data": {"metrics"},
    "metrics": set(),
    "errors": set(),
    "forms": set(),
    "registry": set(),
    "tensors": set(),
}
HEAVY = (
    "torch",
    "transformers",
    "timm",
    "pydantic",
    "yaml",
    "numpy",
    "accelerate",
    "matplotlib",
    "rich",
    "PIL",
)
FILES = sorted(PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    """The first level below the package: a sub-package or a module."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST, path: Path) -> Iterator[str]:
    """Absolute names of what is imported."""
    folder = ["smarttrim_cli", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def test_every_part_has_a_place() -> None:
    assert {part(path) for path in FILES} <= set(ALLOWED)


@pytest.mark.parametrize("path", FILES, ids=[path.relative_to(PACKAGE).as_posix() for path in FILES])
def test_direction(path: Path) -> None:
    own = part(path)
    parts = {
        name.split(".")[1]
        for name in imported(ast.parse(path.read_text("utf-8")), path)
        if name.startswith("smarttrim_cli.")
    }
    wrong = parts - ALLOWED[own] - ANYONE - {own, "__version__"}
    assert not wrong, f"{own} must not import {sorted(wrong)}"


def top_level(path: Path) -> ast.Module:
    """The module without its functions and without what is for type checkers only."""
    tree = ast.parse(path.read_text("utf-8"))
    kept = [
        node
        for node in tree.body
        if not isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    ]
    return ast.Module(kept, [])


@pytest.mark.parametrize("path", [path for path in FILES if part(path) == "cli"], ids=lambda path: path.name)
def test_cli_imports_nothing_heavy_at_its_top(path: Path) -> None:
    names = set(imported(top_level(path), path))
    assert not {
        name for name in names if name.split(".")[0] in HEAVY or name.startswith("smarttrim_cli.recipe")
    }


def test_importing_the_command_line_imports_no_torch() -> None:
    heavy = [
        name for name in HEAVY if name not in ("pydantic", "rich")
    ]  # what Typer imports is its own affair
    code = f"import sys, smarttrim_cli.cli.app; assert not set({heavy!r}) & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_types_are_there_for_others() -> None:
    assert (PACKAGE / "py.typed").exists()

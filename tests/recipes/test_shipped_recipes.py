"""Every recipe that is shipped can be loaded, and says how it is run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.costs import paper_rows
from smarttrim_cli.recipe import load_recipe, resolved_yaml

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


def test_all_of_them_are_found() -> None:
    found = [
        name
        for _, _, names in os.walk(ROOT / "recipes")
        for name in names
        if name.endswith((".yaml", ".yml"))
    ]
    assert len(RECIPES) == len(found) >= 35


def test_those_of_the_paper_are_the_rows_of_its_tables() -> None:
    files = {
        path.relative_to(ROOT).as_posix()
        for backbone in ("meter", "blip")
        for path in (ROOT / "recipes" / backbone).rglob("*.yaml")
    }
    assert files == paper_rows().keys()
    tables = [row["table"] for row in paper_rows().values()]
    assert {table: tables.count(table) for table in tables} == {1: 16, 2: 8, 3: 4, 4: 1, 5: 3}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_recipe(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.description
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(resolved_yaml(recipe), encoding="utf-8")
    assert resolved_yaml(load_recipe(resolved)) == resolved_yaml(recipe)
    command = path.read_text(encoding="utf-8").splitlines()[0].split()
    assert command[:2] == ["#", "smarttrim"]
    assert path.relative_to(ROOT).as_posix() in command

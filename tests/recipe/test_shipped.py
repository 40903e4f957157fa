from __future__ import annotations

from pathlib import Path

import pytest

from smarttrim_cli.errors import UserError
from smarttrim_cli.recipe import find_recipe, recipes_list, shipped
from tests.conftest import RECIPE


@pytest.fixture
def shipped_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "package" / "recipes"
    (folder / "meter").mkdir(parents=True)
    (folder / "quickstart.yaml").write_text(f"{RECIPE}description: first steps\n", encoding="utf-8")
    (folder / "meter" / "vqa_2.0x.yaml").write_text(RECIPE, encoding="utf-8")
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path / "package" / "smarttrim_cli")
    monkeypatch.chdir(tmp_path)
    return folder


def test_list(shipped_recipes: Path) -> None:
    assert [(r.name, r.description) for r in recipes_list()] == [
        ("meter/vqa_2.0x", ""),
        ("quickstart", "first steps"),
    ]


@pytest.mark.parametrize("name", ["quickstart", "quickstart.yaml", "recipes/quickstart.yaml"])
def test_by_name(shipped_recipes: Path, name: str) -> None:
    assert find_recipe(name) == Path("package/recipes/quickstart.yaml")


def test_dots_in_a_name(shipped_recipes: Path) -> None:
    assert find_recipe("meter/vqa_2.0x").name == "vqa_2.0x.yaml"


def test_own_file_goes_before_shipped_one(shipped_recipes: Path) -> None:
    Path("quickstart.yaml").write_text(RECIPE, encoding="utf-8")
    assert find_recipe("quickstart.yaml") == Path("quickstart.yaml")


def test_directory_of_the_same_name_does_not_hide_a_recipe(shipped_recipes: Path) -> None:
    Path("quickstart").mkdir()
    assert find_recipe("quickstart").name == "quickstart.yaml"


def test_unknown_name(shipped_recipes: Path) -> None:
    with pytest.raises(UserError) as caught:
        find_recipe("quikstart")
    assert "no such recipe; did you mean quickstart?" in str(caught.value)
    assert "meter/vqa_2.0x, quickstart" in str(caught.value)


def test_installed_recipes_are_preferred(shipped_recipes: Path, tmp_path: Path) -> None:
    installed = tmp_path / "package" / "smarttrim_cli" / "_recipes"
    installed.mkdir(parents=True)
    (installed / "other.yaml").write_text(RECIPE, encoding="utf-8")
    assert [r.name for r in recipes_list()] == ["other"]

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Literal

import pytest
from pydantic import BaseModel, Field

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", DOCS / "generate_recipe_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Inner(BaseModel):
    size: int = Field(7, ge=1, le=9, description="how large")
    mode: Literal["a", "b"] = Field("a", description="a or b?")


class Outer(BaseModel):
    inner: Inner | None = Field(default_factory=Inner, description="what is inside")
    names: list[str] = Field(["x"], min_length=1, description="pipes | and more")
    path: str = Field(description="a folder")
    rate: float | None = Field(None, gt=0, lt=0.5, description="a rate")


def test_the_page_is_up_to_date(generator: ModuleType) -> None:
    text = generator.PAGE.read_text(encoding="utf-8")
    assert generator.page(text) == text, "run: python docs/generate_recipe_reference.py"


def test_every_key_has_a_row_with_type_default_and_meaning(generator: ModuleType) -> None:
    assert generator.leaves(Outer, "o.") == [
        ("o.inner", "section or null", "see below", "What is inside."),
        ("o.inner.size", "whole number >= 1, <= 9", "`7`", "How large."),
        ("o.inner.mode", "`a` or `b`", "`a`", "A or b?"),
        ("o.names", "list of text, at least 1", "`[x]`", "Pipes \\| and more."),
        ("o.path", "text", "required", "A folder."),
        ("o.rate", "number > 0, < 0.5 or null", "`null`", "A rate."),
    ]


def test_what_is_written_by_hand_stays(generator: ModuleType) -> None:
    page = generator.page(f"by hand\n{generator.MARKER}\nold tables")
    assert page.startswith(f"by hand\n{generator.MARKER}\n\n## Keys of a recipe")
    assert "old tables" not in page
    with pytest.raises(SystemExit, match="marker"):
        generator.page("by hand")

"""What the pages point at exists: functions, recipes, and the numbers of the committed costs."""

from __future__ import annotations

import ast
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
INDEX = (DOCS / "paper_index.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
NAMED = re.compile(r"`([\w/]+\.py)`((?:,? `[A-Za-z_]\w*(?:\.(?!py`)\w+)?`)*)")
RECIPE = re.compile(r"recipes/[\w./{},*-]+?\.yaml")


def named_in_index() -> list[tuple[str, str]]:
    """Files with the names behind them; a file without a folder is in that of the one before it."""
    found, folder = [], ""
    for line in INDEX.splitlines():
        for match in NAMED.finditer(line):
            folder = match[1].rpartition("/")[0] or folder
            file = match[1] if "/" in match[1] else f"{folder}/{match[1]}"
            found += [(file, name) for name in re.findall(r"`([^`]+)`", match[2]) or [""]]
    return found


def definitions(file: Path) -> set[str]:
    """Functions and classes of a file, methods as ``Class.method`` and by their own name."""
    names = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        for inner in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(inner, ast.FunctionDef):
                names |= {inner.name, f"{node.name}.{inner.name}"}
            if isinstance(inner, ast.Assign) and isinstance(inner.targets[0], ast.Name):
                names.add(f"{node.name}.{inner.targets[0].id}")
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{name}" for name in attributes(node)}
    return names


def attributes(node: ast.ClassDef) -> set[str]:
    """What a class puts on ``self``."""
    targets = (inner for inner in ast.walk(node) if isinstance(inner, ast.Attribute))
    return {inner.attr for inner in targets if isinstance(inner.value, ast.Name) and inner.value.id == "self"}


def expanded(pattern: str) -> list[str]:
    """A path with ``{a,b}`` as the paths it stands for."""
    parts = re.split(r"\{([^}]*)\}", pattern)
    choices = [[part] if index % 2 == 0 else part.split(",") for index, part in enumerate(parts)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


@pytest.mark.parametrize(("file", "name"), sorted(set(named_in_index())))
def test_file_and_function_exist(file: str, name: str) -> None:
    path = next((p for p in (ROOT / "smarttrim_cli" / file, ROOT / file) if p.is_file()), None)
    assert path is not None
    assert not name or name in definitions(path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_recipes_exist(page: Path) -> None:
    for pattern in set(RECIPE.findall(page.read_text(encoding="utf-8"))):
        for path in expanded(pattern):
            assert "**" in path or list(ROOT.glob(path)), path


def test_every_recipe_of_the_paper_is_in_the_index() -> None:
    rows = json.loads((ROOT / "benchmarks/paper_costs.json").read_text(encoding="utf-8"))
    named = {path for pattern in RECIPE.findall(INDEX) for path in expanded(pattern)}
    assert {path for path in rows if path not in named} == set()


def costs() -> dict[str, Any]:
    """The committed result of ``benchmarks/costs.py``."""
    content: dict[str, Any] = json.loads((DOCS / "results/costs.json").read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize(
    ("model", "recipe"),
    [
        ("METER, VQA, 288", "meter/vqa_288_1.0x"),
        ("METER, VQA, 384", "meter/vqa_384_1.0x"),
        ("BLIP, NLVR2", "blip/nlvr2_288_1.0x"),
        ("BLIP, VQA", "blip/vqa_288_1.0x"),
        ("BLIP, captioning", "blip/captioning_288_1.0x"),
    ],
)
def test_costs_of_untrimmed_models(model: str, recipe: str) -> None:
    line = costs()["untrimmed"][f"recipes/{recipe}.yaml"]
    row = next(row for row in INDEX.splitlines() if row.startswith(f"| {model}"))
    paper, ours, rest = (cell.strip() for cell in row.split("|")[2:5])
    assert float(paper) == line["paper_gmacs"]
    assert float(ours.split()[0]) == round(line["gmacs"], 2)
    if line["count"] == "as_published":
        assert f"as run {line['torchprofile_gmacs']:.2f}" in rest


def test_costs_of_decoders_in_architecture() -> None:
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    for name, recipe in (("VQA, 10 text", "vqa"), ("captioning, 3 beams", "captioning")):
        line = costs()["untrimmed"][f"recipes/blip/{recipe}_288_1.0x.yaml"]
        row = next(row for row in page.splitlines() if row.startswith(f"| {name}"))
        numbers = [line["paper_gmacs"], round(line["gmacs"], 2), round(line["torchprofile_gmacs"], 2)]
        assert [float(cell.split()[0]) for cell in row.split("|")[2:5]] == numbers

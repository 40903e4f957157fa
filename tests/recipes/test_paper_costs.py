"""The recipes' costs are those of the paper's tables: predicted for all, measured for untrimmed models."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.costs import (
    OFFICIAL_PARTS,
    RESULTS,
    UNTRIMMED,
    meter_parts,
    paper_rows,
    predicted,
    typical,
    without_weights,
)
from smarttrim_cli.cli.app import app
from smarttrim_cli.engine import profile as profiling
from smarttrim_cli.engine.build import plan_for_model
from smarttrim_cli.engine.plan import describe_plan, plan
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.recipe import Recipe, load_recipe

ROOT = Path(__file__).parents[2]
ROWS = paper_rows()
METER = "recipes/meter/vqa_288_1.0x.yaml"


@cache
def recipe_and_model(path: str) -> tuple[Recipe, TrimmedModel]:
    recipe = load_recipe(ROOT / path)
    return recipe, without_weights(recipe)


def row_costs(path: str, row: dict[str, Any]) -> dict[str, float]:
    return predicted(*recipe_and_model(path), row)


@pytest.mark.parametrize("path", ROWS)
def test_dry_run_predicts_the_row(path: str) -> None:
    (recipe, model), row = recipe_and_model(path), ROWS[path]
    planned = plan_for_model(recipe, model, model.backbone.form.text_tokens)
    suffix = "_as_published" if row["count"] == "as_published" else ""
    gmacs = describe_plan(recipe, model, planned)[f"trimmed_gmacs{suffix}"] / row["passes"]
    assert gmacs == pytest.approx(row["paper_gmacs"], rel=0.03)
    assert gmacs == pytest.approx(row_costs(path, typical(row))["trimmed"], rel=1e-3)


@pytest.mark.parametrize("path", ["recipes/blip/nlvr2_288_2.0x.yaml", "recipes/blip/vqa_288_2.0x.yaml"])
def test_a_dry_run_is_such_a_plan(path: str) -> None:
    recipe, model = recipe_and_model(path)
    planned = plan_for_model(recipe, model, model.backbone.form.text_tokens)
    assert plan(recipe) == describe_plan(recipe, model, planned)


@pytest.mark.parametrize("path", ROWS)
def test_row_for_the_instances_that_the_paper_counts(path: str) -> None:
    """Untrimmed rows within 1 %, trimmed ones to the figure that is printed."""
    row = ROWS[path]
    costs = row_costs(path, row)
    if path.endswith("_1.0x.yaml"):
        assert costs["trimmed"] == costs["full"] == pytest.approx(row["paper_gmacs"], rel=0.01)
    else:
        assert round(costs["trimmed"], 1) == row["paper_gmacs"]


def test_parts_of_meter_are_those_of_the_official_code() -> None:
    _, model = recipe_and_model(METER)
    assert meter_parts(model.backbone) == pytest.approx(OFFICIAL_PARTS, abs=1e-3)


def test_results_are_up_to_date() -> None:
    stored = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert stored["untrimmed"].keys() == UNTRIMMED.keys()
    assert stored["recipes"].keys() == ROWS.keys()
    for path, row in ROWS.items():
        line = stored["recipes"][path]
        assert {key: line[key] for key in row} == row
        assert line["gmacs"] == pytest.approx(row_costs(path, row)["trimmed"], rel=1e-3)
        assert line["dry_run_gmacs"] == pytest.approx(row_costs(path, typical(row))["trimmed"], rel=1e-3)
    for path, line in stored["untrimmed"].items():
        assert line["torchprofile_gmacs"] == pytest.approx(line["cost_model_gmacs"], rel=5e-3)
        assert line["paper_gmacs"] == ROWS[path]["paper_gmacs"]
        assert abs(line["difference"]) < 0.01


@pytest.fixture
def one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full-size models are slow here, and their latency is not the point."""
    monkeypatch.setattr(profiling, "WARMUP", 0)
    monkeypatch.setattr(profiling, "REPEATS", 1)


def check_profile(path: str, tmp_path: Path) -> None:
    """``smarttrim profile RECIPE --random-weights --single-instance`` gives the row's GMACs."""
    row, file = ROWS[path], tmp_path / "profile.json"
    options = ["--random-weights", "--single-instance", "--num-instances", str(UNTRIMMED[path])]
    where = ["--device", "cpu", "--output", str(file)]
    result = CliRunner().invoke(app, ["profile", str(ROOT / path), *options, *where])
    assert result.exit_code == 0, result.stderr
    full = json.loads(file.read_text(encoding="utf-8"))["full"]
    assert full["gmacs_from"] == "torchprofile"
    assert full["gmacs"] == pytest.approx(full["gmacs_cost_model"], rel=5e-3)
    counted = full["gmacs_as_published" if row["count"] == "as_published" else "gmacs"]
    assert counted == pytest.approx(row["paper_gmacs"], rel=0.01)


def test_untrimmed_meter_profiled(tmp_path: Path, one_run: None) -> None:
    check_profile(METER, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in UNTRIMMED if path != METER])
def test_untrimmed_models_profiled(path: str, tmp_path: Path, one_run: None) -> None:
    check_profile(path, tmp_path)

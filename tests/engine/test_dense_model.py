"""The shipped model of the dense scenes answers them, at every density that the study uses."""

from __future__ import annotations

from pathlib import Path

import pytest

from smarttrim_cli.engine.artifact import load_model, resolve_checkpoint
from smarttrim_cli.engine.inference import batches, predict
from smarttrim_cli.engine.report import SilentReporter
from smarttrim_cli.recipe import load_recipe
from smarttrim_cli.tasks.base import Task

RECIPE = Path(__file__).parents[2] / "recipes" / "scenes" / "study" / "pretrain_dense.yaml"


@pytest.mark.parametrize(("fewest", "most"), [(60, 64), (28, 36)], ids=["dense", "middle"])
def test_answers_questions(fewest: int, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTTRIM_CACHE", str(tmp_path))
    section = load_recipe(RECIPE).task.options_dict()
    data = {
        **section["data"],
        "seed": 11,
        "min_objects": fewest,
        "max_objects": most,
        "num_images": {"train": 1, "calibration": 1, "val": 1, "test": 40},
    }
    task = {"name": "vqa", "types": "question_type", "data": data}
    bundle = load_model(resolve_checkpoint("builtin:scenes_meter_dense"), task, lambda line: None)
    assert bundle.model.backbone.token_counts(5)["vision"] == 65
    loader = batches(bundle, "test", 40)
    (result,) = predict(bundle, loader, ("full",), SilentReporter(), "").values()
    scored: Task = bundle.task
    assert scored.summarize(result.records)["accuracy"] >= 0.97

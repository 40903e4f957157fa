"""Every recipe on the embedded scenes, shortened: it trains, trims, calibrates, evaluates and ships."""

from __future__ import annotations

from pathlib import Path

import pytest

from smarttrim_cli.engine.evaluate import evaluate
from smarttrim_cli.engine.finetune import finetune
from smarttrim_cli.recipe import load_recipe

FOLDER = Path(__file__).parents[2] / "recipes" / "scenes"
RECIPES = sorted(
    path
    for path in FOLDER.glob("*/*.yaml")
    if path.parent.name != "study" and not path.stem.startswith("pretrain")
)
SHORT = (
    "task.data.num_images={train: 24, calibration: 8, val: 8, test: 8}",
    "train.max_steps=3",
    "train.per_device_train_batch_size=4",
    "train.eval_steps=null",
    "evaluate={split: test, batch_size: 8, max_instances: 8}",
    "pruning.calibrate={split: calibration, max_instances: 8}",
)


def test_there_is_one_for_every_task_of_both_backbones() -> None:
    tasks = {"vqa", "nlvr2", "snli_ve", "retrieval"}
    assert {path.relative_to(FOLDER).with_suffix("").as_posix() for path in RECIPES} == {
        *(f"meter/{task}" for task in tasks),  # METER has no decoder: it writes no captions
        *(f"blip/{task}" for task in (*tasks, "captioning")),
    }


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_few_steps(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTTRIM_CACHE", str(tmp_path / "cache"))
    recipe = load_recipe(path, [*SHORT, f"output_dir={tmp_path / 'run'}"])
    summary = finetune(recipe)
    assert summary["steps"] == 3
    assert recipe.pruning is not None
    assert summary["calibration"]["target"] == pytest.approx(recipe.pruning.target_speedup, rel=0.01)
    report = evaluate(str(tmp_path / "run"))
    metric = report["metric"]
    for side in ("full", "trimmed"):
        assert 0.0 <= report[side][metric] <= 10.0 and f"{metric}_se" in report[side]
    assert report["speedup"]["macs"] > 1.0

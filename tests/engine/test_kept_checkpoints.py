from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from smarttrim_cli.engine import ending, validation
from smarttrim_cli.engine.checkpoint import prune_checkpoints
from smarttrim_cli.engine.finetune import finetune
from smarttrim_cli.engine.runs import Run
from smarttrim_cli.engine.trainer import Trainer
from tests.engine.tiny_run import tiny_recipe


def test_oldest_checkpoints_go_but_not_the_best(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in (2, 4, 6, 8, 10):
        (tmp_path / f"checkpoints/step-{step}").mkdir(parents=True)
    prune_checkpoints(run, 2, best_step=4)
    assert [path.name for path in run.checkpoints()] == ["step-4", "step-8", "step-10"]


def test_save_total_limit(tmp_path: Path) -> None:
    finetune(tiny_recipe(tmp_path, "train.max_steps=5", "train.save_steps=1", "train.save_total_limit=2"))
    assert [path.name for path in Run(tmp_path / "run").checkpoints()] == ["step-4", "step-5"]


@pytest.mark.parametrize(
    ("overrides", "kept"),
    [
        ((), [(6, "best"), (8, "best"), (10, "model")]),
        (
            ("strategy.curriculum={enabled: false, start_ratio: 0.4}",),
            [(6, "best"), (8, "best"), (10, "model")],
        ),
    ],
)
def test_best_is_kept_only_at_the_full_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], kept: list[Any]
) -> None:
    """Before the curriculum ends a model trims less, before it starts not at all: its score says nothing."""
    scores = iter([0.9, 0.8, 0.3, 0.5, 0.4])

    def scored(task: Any, result: Any) -> dict[str, Any]:
        return {"accuracy": next(scores), "accuracy_se": 0.1, "count": 40}

    monkeypatch.setattr("smarttrim_cli.engine.validation.score_summary", scored)
    saved = []
    keep = validation.save

    def noted(trainer: Trainer, path: Path) -> None:
        saved.append((trainer.progress.step, path.name))
        keep(trainer, path)

    for module in (validation, ending):
        monkeypatch.setattr(module, "save", noted)
    settings = ("train.max_steps=10", "train.eval_steps=2", "evaluate.max_instances=8", *overrides)
    finetune(tiny_recipe(tmp_path, *settings))
    assert saved == kept

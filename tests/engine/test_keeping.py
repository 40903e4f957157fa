"""What was trained outlives what fails on the way and at the end, and goes on to what would have been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from smarttrim_cli.engine import ending, trainer, validation
from smarttrim_cli.engine.finetune import finetune
from smarttrim_cli.engine.trainer import Trainer
from smarttrim_cli.errors import UserError
from tests.engine.tiny_run import tiny_recipe, tree

pytestmark = pytest.mark.usefixtures("settings")


def test_what_was_trained_outlives_a_calibration_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(trainer: Trainer) -> None:
        raise UserError("the image is damaged")

    recipe = tiny_recipe(tmp_path, "train.max_steps=2", "evaluate.max_instances=8")
    with monkeypatch.context() as patch, pytest.raises(UserError, match="the image is damaged"):
        patch.setattr(ending, "calibrate_budget", broken)
        finetune(recipe)
    assert not (tmp_path / "run/model").exists()
    summary = finetune(recipe, resume="auto")
    assert summary["steps"] == 2 and (tmp_path / "run/model/config.json").exists()


def test_what_was_trained_outlives_a_bad_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = ("train.max_steps=4", "evaluate.max_instances=8")
    next_batch = Trainer.next_batch

    def third_fails(self: Trainer, loader: Any) -> Any:
        if self.progress.step == 2:
            raise UserError("the image is damaged")
        return next_batch(self, loader)

    with monkeypatch.context() as patch, pytest.raises(UserError, match="the image is damaged"):
        patch.setattr(Trainer, "next_batch", third_fails)
        finetune(tiny_recipe(tmp_path, *steps))
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-2"]
    finetune(tiny_recipe(tmp_path, *steps), resume="auto")
    (tmp_path / "other").mkdir()
    finetune(tiny_recipe(tmp_path / "other", *steps))
    assert tree(tmp_path / "run/model") == tree(tmp_path / "other/run/model")


def test_what_was_trained_outlives_a_bad_sample_in_the_ranking_of_heads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> int:
        raise UserError("the image is damaged")

    late = (
        "train.max_steps=4",
        "strategy.curriculum.start_ratio=0.5",
        "pruning.head_trimmer={name: saliency_head}",
    )
    monkeypatch.setattr(trainer, "rank_heads", broken)
    with pytest.raises(UserError, match="the image is damaged"):
        finetune(tiny_recipe(tmp_path, *late))
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-2"]


@pytest.mark.parametrize(("every", "step"), [(1, 1), (None, 2)])
def test_what_was_trained_outlives_an_evaluation_that_fails(
    every: int | None, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Amid training, and at its end, where the model is there already."""
    steps = ("train.max_steps=2", "evaluate.max_instances=8", f"train.eval_steps={every or 'null'}")

    def broken(*arguments: Any, **more: Any) -> None:
        raise UserError("the image is damaged")

    recipe = tiny_recipe(tmp_path, *steps)
    with monkeypatch.context() as patch, pytest.raises(UserError, match="the image is damaged"):
        patch.setattr(validation, "predict", broken)
        finetune(recipe)
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == [f"step-{step}"]
    assert (tmp_path / "run/model").exists() is (every is None)
    finetune(recipe, resume="auto")
    (tmp_path / "other").mkdir()
    finetune(tiny_recipe(tmp_path / "other", *steps))
    assert tree(tmp_path / "run/model") == tree(tmp_path / "other/run/model")


def test_trimmers_outlive_a_calibration_that_fails_after_taking_them_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = "pruning.calibrate={remove_unprofitable: true, call_macs: 1.0e+4, tolerance: 0.02}"
    recipe = tiny_recipe(tmp_path, "train.max_steps=2", "train.save_steps=2", settings)
    calls, calibrate = [], ending.calibrate

    def second_fails(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return calibrate(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ending, "calibrate", second_fails)
        finetune(recipe)
    finetune(recipe, resume="auto")
    (tmp_path / "other").mkdir()
    whole = tiny_recipe(tmp_path / "other", "train.max_steps=2", "train.save_steps=2", settings)
    finetune(whole)
    assert tree(tmp_path / "run/model") == tree(tmp_path / "other/run/model")

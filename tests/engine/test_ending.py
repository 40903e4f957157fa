"""What the end of a training says where it cannot do all that was asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from smarttrim_cli.engine import ending
from smarttrim_cli.engine.finetune import finetune
from smarttrim_cli.pruning.calibrate import Calibration
from tests.engine.tiny_run import Recorder, tiny_recipe


@pytest.mark.parametrize(
    ("speedup", "remedy"),
    [
        (1.47, "more instances decide more finely (pruning.calibrate.max_instances; or raise its tolerance)"),
        (1.2, "no threshold drops enough: ask for less, or trim in more places (keys of pruning)"),
        (1.8, "no threshold drops so little: ask for more, or trim in fewer places (keys of pruning)"),
    ],
)
def test_a_missed_budget_says_what_to_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speedup: float, remedy: str
) -> None:
    def missing(_model: Any, _few: Any, target: float, _tolerance: float) -> Calibration:
        return Calibration(0.0, speedup, target, reached=False, trained_speedup=speedup)

    monkeypatch.setattr(ending, "calibrate", missing)
    reporter = Recorder()
    short = ("train.max_steps=2", "evaluate.max_instances=8")
    finetune(tiny_recipe(tmp_path, *short, "pruning.target_speedup=1.5"), reporter=reporter)
    assert f"the budget of 1.50x was not met exactly: {speedup:.3f}x; {remedy}" in reporter.warnings


@pytest.mark.parametrize(("trained", "is_said"), [(1.76, True), (1.2, True), (1.6, False)])
def test_a_training_that_ended_off_its_budget_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: float, is_said: bool
) -> None:
    """Thresholds that lie far from those of the training reach the budget, but cost score."""

    def off(_model: Any, _few: Any, target: float, _tolerance: float) -> Calibration:
        return Calibration(-79.0, 1.5, target, reached=True, trained_speedup=trained)

    monkeypatch.setattr(ending, "calibrate", off)
    reporter = Recorder()
    short = ("train.max_steps=2", "evaluate.max_instances=8")
    result = finetune(tiny_recipe(tmp_path, *short, "pruning.target_speedup=1.5"), reporter=reporter)
    said = [text for text in reporter.warnings if text.startswith(f"training ended at {trained:.3f}x")]
    assert len(said) == is_said and result["calibration"]["trained_speedup"] == trained

"""Every task with every backbone that has a form for it, from training to the exported folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from smarttrim_cli.engine.evaluate import evaluate
from smarttrim_cli.engine.export import export
from smarttrim_cli.engine.finetune import finetune
from smarttrim_cli.engine.profile import profile
from smarttrim_cli.engine.visualize import visualize
from smarttrim_cli.recipe import Recipe
from tests.engine.tiny_run import metrics, tiny_recipe, tree
from tests.tasks.test_with_backbones import MORE, PAIRS, SCENES
from tests.tiny import BACKBONES


def recipe_of(folder: Path, backbone: str, form: str) -> Recipe:
    """The tiny recipe for another backbone and task."""
    host = {"name": backbone, **next(iter(BACKBONES[backbone].values())), "tokenizer": "train"}
    task: dict[str, Any] = {"name": form, "data": SCENES, **MORE.get(form, {})}
    folder.mkdir(exist_ok=True)
    return tiny_recipe(
        folder,
        f"backbone={json.dumps(host)}",
        f"task={json.dumps(task)}",
        "pruning.target_speedup=1.2",
        *("train.max_steps=4", "train.save_steps=2", "train.per_device_train_batch_size=2"),
        *("evaluate.batch_size=2", "evaluate.max_instances=4"),
    )


@pytest.mark.parametrize(("backbone", "form"), PAIRS)
def test_from_training_to_export(backbone: str, form: str, tmp_path: Path) -> None:
    """Its checkpoints resume bit-identically, and what is exported answers as the run does."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    finetune(recipe_of(whole, backbone, form))
    shutil.copytree(whole, parts)
    torch.manual_seed(999)
    checkpoint = parts / "run/checkpoints/step-2"
    summary = finetune(recipe_of(parts, backbone, form), resume=str(checkpoint))
    assert metrics(parts / "run") == metrics(whole / "run")
    assert tree(parts / "run/model") == tree(whole / "run/model")
    report = evaluate(str(parts / "run"))
    assert report["metric"] in report["trimmed"] and report["metric"] in summary["eval"]
    assert report["speedup"]["macs"] > 1
    measured = profile(str(parts / "run"), single_instance=True, num_instances=2, device="cpu")
    for side in ("full", "trimmed"):  # also where each writes a text of its own
        counted, modelled = (measured[side][name] for name in ("gmacs", "gmacs_cost_model"))
        assert counted == pytest.approx(modelled, rel=5e-3)
    assert visualize(str(parts / "run"), num_instances=1)[-1].name == "index.html"
    assert export(str(parts / "run"), out=tmp_path / "out")["largest_difference"] <= 1e-5

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from smarttrim_cli.engine.artifact import load_model
from smarttrim_cli.engine.finetune import finetune
from smarttrim_cli.engine.runs import Run
from smarttrim_cli.errors import UserError
from smarttrim_cli.recipe import load_recipe, resolved_yaml
from tests.engine.tiny_run import Recorder, tiny_recipe, tree

SHORT = ("train.max_steps=2", "evaluate.max_instances=8")
GROUPS = {"token.vision", "token.text", "head.vision", "head.text", "cross_head.vision", "cross_head.text"}


def test_run_directory(trained: Path) -> None:
    expected = {"recipe.yaml", "metrics.jsonl", "checkpoints", "best", "model", "summary.json"}
    assert expected <= {path.name for path in trained.iterdir()}
    assert [path.name for path in Run(trained).checkpoints()] == ["step-20", "step-40"]
    assert not list(trained.rglob("*.tmp"))


def test_resolved_recipe_is_the_recipe(trained: Path, tmp_path: Path) -> None:
    stored = load_recipe(trained / "recipe.yaml")
    assert stored == load_recipe(trained / "recipe.yaml", ["seed=42"])
    assert resolved_yaml(stored) == (trained / "recipe.yaml").read_text(encoding="utf-8")
    overrides = ("train.max_steps=40", "train.eval_steps=20", "train.save_steps=20")
    original = tiny_recipe(tmp_path, *overrides, f"output_dir={trained}")
    assert resolved_yaml(original) == resolved_yaml(stored)


def test_resolved_recipe_of_a_checkpoint_says_its_sizes_and_runs(trained: Path, tmp_path: Path) -> None:
    """Defaults of the backbone (METER-base) used to be written there, which the checkpoint contradicts."""
    recipe = load_recipe(
        trained / "recipe.yaml",
        [f"output_dir={tmp_path / 'a'}", f"backbone={{name: meter, checkpoint: '{trained}'}}", *SHORT],
    )
    finetune(recipe)
    stored = yaml.safe_load((tmp_path / "a/recipe.yaml").read_text(encoding="utf-8"))
    assert stored["backbone"]["checkpoint"] == str(trained)
    assert (stored["backbone"]["image_size"], stored["backbone"]["hidden_size"]) == (32, 32)
    finetune(load_recipe(tmp_path / "a/recipe.yaml", [f"output_dir={tmp_path / 'b'}"]))
    assert tree(tmp_path / "a/model") == tree(tmp_path / "b/model")


def test_starts_from_the_weights_of_the_checkpoint(trained: Path, tmp_path: Path) -> None:
    section = f"backbone={{name: meter, checkpoint: '{trained}'}}"
    frozen = "optimizer.multipliers={vision_encoder: 0, text_encoder: 0, cross_modal: 0, head: 0}"
    finetune(tiny_recipe(tmp_path, section, frozen, *SHORT))
    before, after = (load_file(run / "model/model.safetensors") for run in (trained, tmp_path / "run"))
    torch.testing.assert_close(after, before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("hidden_size: 64", "hidden_size is 64 in the recipe but 32 in the checkpoint"),
        ("vision: {model: vit_base_patch16_224}", "vision is"),
    ],
)
def test_recipe_may_not_contradict_the_checkpoint(
    trained: Path, tmp_path: Path, section: str, message: str
) -> None:
    recipe = tiny_recipe(tmp_path, f"backbone={{name: meter, checkpoint: '{trained}', {section}}}")
    with pytest.raises(UserError, match=message) as caught:
        finetune(recipe)
    assert caught.value.where == f"backbone.{section.split(':')[0]}"
    assert not (tmp_path / "run").exists()


def test_dry_run_writes_nothing_and_returns_the_plan(tmp_path: Path) -> None:
    sparsity = "pruning.target_sparsity={token: {vision: 0.5, text: 0.2}, head: {vision: 0.25, cross: 0.5}}"
    plan = finetune(tiny_recipe(tmp_path, sparsity, "pruning.target_speedup=null"), dry_run=True)
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.yaml"}
    assert set(plan["groups"]) == GROUPS - {"head.text"}
    assert plan["groups"]["token.vision"] == {"target_sparsity": 0.5, "kept": 0.5}
    assert plan["groups"]["cross_head.text"] == {"target_sparsity": 0.5, "kept": 0.5}
    assert plan["full_gmacs"] > plan["trimmed_gmacs"] > 0
    assert plan["speedup"] == pytest.approx(plan["full_gmacs"] / plan["trimmed_gmacs"])


def test_dry_run_solves_the_speedup(tmp_path: Path) -> None:
    plan = finetune(tiny_recipe(tmp_path, "pruning.target_speedup=1.8"), dry_run=True)
    assert plan["speedup"] == pytest.approx(1.8, abs=1e-3)
    with pytest.raises(UserError, match="50.0x cannot be reached"):
        finetune(tiny_recipe(tmp_path, "pruning.target_speedup=50"), dry_run=True)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("optimizer.multipliers.haed=5",), "no part named 'haed'"),
        (("pruning.straight_through=false",), "scores would learn nothing"),
        (
            ("pruning.token_trimmer={name: tome}", "strategy.guidance_warmup.enabled=true"),
            "TomeTrimmer has no scores that could learn",
        ),
    ],
)
def test_dry_run_finds_what_training_refuses(
    overrides: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    recipe, reporter = tiny_recipe(tmp_path, *overrides), Recorder()
    plan = finetune(recipe, dry_run=True, reporter=reporter)
    assert plan["speedup"] == pytest.approx(1.5, abs=1e-3)  # all the same
    assert [message in text for text in reporter.warnings] == [True]
    assert reporter.warnings[0].startswith("this would stop the training: ")
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.yaml"}
    with pytest.raises(UserError, match=message):
        finetune(recipe)


def test_calibrated_threshold_is_saved_and_used(trained: Path) -> None:
    config = json.loads((trained / "model/config.json").read_text(encoding="utf-8"))
    summary = json.loads((trained / "summary.json").read_text(encoding="utf-8"))
    assert config["threshold"] == pytest.approx(summary["calibration"]["threshold"]) != 0
    bundle = load_model(trained / "model")
    assert float(bundle.model.threshold) == pytest.approx(config["threshold"])
    inputs = bundle.model.backbone.example_inputs(8, batch=4)
    calibrated = bundle.model(inputs, "packed").output
    with bundle.model.at_threshold(config["threshold"] - 30):
        assert not torch.equal(bundle.model(inputs, "packed").output, calibrated)
    with bundle.model.at_threshold(config["threshold"]):
        assert torch.equal(bundle.model(inputs, "packed").output, calibrated)


def test_split_without_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the official test splits: they can be answered, not trained on or scored."""
    from smarttrim_cli.data.scenes import build as build_scenes
    from smarttrim_cli.registry import options

    data = tiny_recipe(tmp_path).task.options_dict()["data"]
    build_scenes(tmp_path / "data", options("data", data), log=lambda text: None)
    os.remove(tmp_path / "data/v2_mscoco_val_annotations.json")
    files = f"task.data={{name: vqa_v2, data_dir: '{tmp_path / 'data'}'}}"
    with pytest.raises(UserError, match="split val has no reference answers"):
        finetune(tiny_recipe(tmp_path, *SHORT, files))
    assert not (tmp_path / "run").exists()  # it is found before the training
    with pytest.raises(UserError, match="split val has questions but no answers"):
        finetune(tiny_recipe(tmp_path, *SHORT, files, "task.splits.train=val"))

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from smarttrim_cli.engine.artifact import load_model
from smarttrim_cli.engine.checkpoint import prune_checkpoints
from smarttrim_cli.engine.finetune import finetune
from smarttrim_cli.engine.report import SilentReporter
from smarttrim_cli.engine.runs import Run
from smarttrim_cli.engine.trainer import Trainer
from smarttrim_cli.errors import SmartTrimError, UserError
from smarttrim_cli.pruning.objective import Objective
from smarttrim_cli.recipe import load_recipe, resolved_yaml
from tests.engine.tiny_run import metrics, tiny_recipe, tree

SHORT = ("train.max_steps=2", "evaluate.max_instances=8")
GROUPS = {"token.vision", "token.text", "head.vision", "head.text", "cross_head.vision", "cross_head.text"}


class Recorder(SilentReporter):
    def __init__(self) -> None:
        self.messages: list[str] = []
        self.warnings: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def test_run_directory(trained: Path) -> None:
    expected = {"recipe.yaml", "metrics.jsonl", "checkpoints", "best", "model", "summary.json"}
    assert expected <= {path.name for path in trained.iterdir()}
    assert [path.name for path in Run(trained).checkpoints()] == ["step-20", "step-40"]
    assert not list(trained.rglob("*.tmp"))


def test_metrics_have_losses_and_each_group_beside_its_target(trained: Path) -> None:
    records = [record for record in metrics(trained) if "loss" in record]
    assert [record["step"] for record in records] == list(range(2, 41, 2))
    for record in records:
        names = {"loss", "task", "distillation", "cost", "learning_rate"}
        names |= {f"{kind}/{group}" for kind in ("kept", "target") for group in GROUPS}
        assert names | {"step"} <= set(record)
        total = record["task"] + record["distillation"] + 20 * record["cost"]
        assert record["loss"] == pytest.approx(total, rel=1e-4)
    last = records[-1]
    cost = sum((last[f"kept/{group}"] - last[f"target/{group}"]) ** 2 for group in GROUPS) / len(GROUPS)
    assert last["cost"] == pytest.approx(cost, abs=0.01)  # means over two steps
    assert records[0]["target/token.vision"] > records[5]["target/token.vision"] > last["target/token.vision"]
    assert records[-8]["target/token.vision"] == last["target/token.vision"]  # the curriculum ends at 0.6
    assert records[-1]["loss"] < records[0]["loss"]


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


def test_taken_directory_is_refused_and_overwrite_replaces_it(tmp_path: Path) -> None:
    finetune(tiny_recipe(tmp_path, *SHORT))
    before = tree(tmp_path / "run")
    with pytest.raises(UserError, match="there is a run") as caught:
        finetune(tiny_recipe(tmp_path, *SHORT))
    assert caught.value.exit_code == 2 and "--overwrite" in str(caught.value)
    assert tree(tmp_path / "run") == before
    finetune(tiny_recipe(tmp_path, *SHORT, "seed=1"), overwrite=True)
    after = tree(tmp_path / "run")
    assert after["model/model.safetensors"] != before["model/model.safetensors"]
    assert len(metrics(tmp_path / "run")) == 2  # one of training, one of evaluation: nothing of the old run


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("entries", [("recipe.yaml",), ("recipe.yaml", "config.json", "model.safetensors")])
def test_users_own_recipe_and_model_folders_are_never_replaced(
    entries: tuple[str, ...], overwrite: bool, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    for name in entries:
        (tmp_path / "run" / name).write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match=f"holds other things than a run: {sorted(entries)[0]}"):
        finetune(tiny_recipe(tmp_path, *SHORT), overwrite=overwrite)
    assert all((tmp_path / "run" / name).read_text(encoding="utf-8") == "mine" for name in entries)


def test_overwrite_refuses_what_no_run_has_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(tmp_path, *SHORT)
    finetune(recipe)
    note = tmp_path / "run/notes.txt"
    note.write_text("mine", encoding="utf-8")
    (tmp_path / "run/.model.77.tmp").mkdir()  # of a killed process
    with pytest.raises(UserError, match="holds other things than a run: notes.txt") as caught:
        finetune(recipe, overwrite=True)
    assert note.read_text(encoding="utf-8") == "mine" and (tmp_path / "run/model").is_dir()
    assert caught.value.exit_code == 2
    note.unlink()
    monkeypatch.chdir(tmp_path / "run")
    finetune(tiny_recipe(tmp_path, *SHORT, "output_dir=."), overwrite=True)
    assert (tmp_path / "run/model").is_dir() and not (tmp_path / "run/.model.77.tmp").exists()


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": "auto"}])
def test_directory_with_other_things_is_left_alone(tmp_path: Path, options: dict[str, Any]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(UserError, match="holds other things than a run"):
        finetune(tiny_recipe(tmp_path, *SHORT), **options)
    assert tree(tmp_path / "run") == {"thesis.tex": b"years of work"}


def test_a_mistake_in_the_recipe_does_not_cost_the_old_run(trained: Path, tmp_path: Path) -> None:
    finetune(tiny_recipe(tmp_path, *SHORT))
    before = tree(tmp_path / "run")
    with pytest.raises(UserError, match="no part named 'trimers'") as caught:
        finetune(tiny_recipe(tmp_path, "optimizer.multipliers={trimers: 2}"), overwrite=True)
    assert caught.value.where == "optimizer.multipliers.trimers"
    assert "trimmers" in str(caught.value.hint)
    assert tree(tmp_path / "run") == before


def test_output_dir_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="is a file, not a folder") as caught:
        finetune(tiny_recipe(tmp_path, f"output_dir={tmp_path / 'file/run'}"))
    assert str(caught.value.where).startswith("output_dir ")


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

    monkeypatch.setattr("smarttrim_cli.engine.trainer.score_summary", scored)
    saved = []
    keep = Trainer._save
    monkeypatch.setattr(
        Trainer, "_save", lambda self, path: (saved.append((self.progress.step, path.name)), keep(self, path))
    )
    settings = ("train.max_steps=10", "train.eval_steps=2", "evaluate.max_instances=8", *overrides)
    finetune(tiny_recipe(tmp_path, *settings))
    assert saved == kept


def test_means_are_over_the_steps_that_have_a_loss(tmp_path: Path) -> None:
    """Trimming begins amid the steps between two logs."""
    late = "strategy.curriculum={start_ratio: 0.375}"
    settings = ("train.max_steps=8", "logging.logging_steps=4", "pruning.gumbel_noise=false", late)
    finetune(tiny_recipe(tmp_path, *settings))
    first = metrics(tmp_path / "run")[0]
    assert first["step"] == 4 and first["kept/token.vision"] == 1.0 and first["macs_ratio"] >= 1.0


@pytest.mark.parametrize(
    ("overrides", "logged"),
    [
        ("strategy.self_distillation.enabled=false", lambda r: r[-1]["distillation"] == 0),
        (
            "strategy.curriculum.enabled=false",
            lambda r: r[0]["target/token.vision"] == r[1]["target/token.vision"],
        ),
        ("strategy.stable_init.enabled=false", lambda r: r[0]["kept/token.vision"] < 0.9),
        (
            "strategy.stable_init={keep_logit: 1.0, grow_noise: true}",
            lambda r: r[0]["kept/token.vision"] == 1,
        ),
        (
            "strategy.stable_init={keep_logit: 1.0, grow_noise: false}",
            lambda r: r[0]["kept/token.vision"] < 0.9,
        ),
        (
            "strategy.curriculum.end_ratio=1",
            lambda r: r[0]["target/token.vision"] > r[1]["target/token.vision"],
        ),
        ("pruning.token_trimmer=null", lambda r: not any("token" in name for name in r[0])),
        ("pruning.head_trimmer=null", lambda r: not any("head" in name for name in r[0])),
        ("pruning.gumbel_noise=false", lambda r: r[0]["kept/token.vision"] == 1),
    ],
)
def test_switches(tmp_path: Path, overrides: str, logged: Callable[[list[dict[str, Any]]], bool]) -> None:
    speedup = "pruning.target_speedup=1.2"
    often = "logging.logging_steps=1"
    finetune(tiny_recipe(tmp_path, *SHORT, overrides, speedup, often, "pruning.calibrate=null"))
    records = metrics(tmp_path / "run")
    assert logged(records[:2]), records


def test_cost_on_macs_is_the_squared_distance_of_the_ratio(tmp_path: Path) -> None:
    """With everything kept the ratio is 1 plus the share of the trimmers."""
    finetune(
        tiny_recipe(
            tmp_path,
            *SHORT,
            "train.max_steps=1",
            "strategy.cost_loss.on=macs",
            "strategy.curriculum.enabled=false",
            "pruning.gumbel_noise=false",
            "strategy.stable_init.keep_logit=30",
            "pruning.calibrate=null",
        )
    )
    record = metrics(tmp_path / "run")[0]
    assert record["kept/token.vision"] == record["kept/head.text"] == 1
    assert (1 - 1 / 1.5) ** 2 < record["cost"] < (1.1 - 1 / 1.5) ** 2


def test_plain_fine_tuning(tmp_path: Path) -> None:
    result = finetune(tiny_recipe(tmp_path, *SHORT, "pruning=null"))
    assert "calibration" not in result
    assert not (tmp_path / "run/model/trimmers.safetensors").exists()
    record = metrics(tmp_path / "run")[0]
    assert record["loss"] == record["task"] and not any(name.startswith("kept/") for name in record)
    assert load_model(tmp_path / "run/model").model.sites == {}


def test_precision_can_change_within_a_process(tmp_path: Path) -> None:
    """The accelerator keeps global state, which used to make the second run fail."""
    losses = []
    for precision in ("no", "bf16"):
        folder = tmp_path / precision
        folder.mkdir()
        finetune(tiny_recipe(folder, *SHORT, f"train.mixed_precision={precision}"))
        losses.append(metrics(folder / "run")[0]["loss"])
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.05)


def test_multipliers_scale_the_learning_rate_of_their_part(tmp_path: Path) -> None:
    section = "optimizer.multipliers={trimmers: 10, head: 0.5}"
    finetune(
        tiny_recipe(
            tmp_path,
            *SHORT,
            section,
            "optimizer.lr_scheduler_type=constant",
            "train.save_steps=2",
            "optimizer.warmup_steps=0",
        )
    )
    state = torch.load(tmp_path / "run/checkpoints/step-2/state.pt", weights_only=True)
    rates = {group["part"]: group["lr"] for group in state["optimizer"]["param_groups"]}
    assert rates == pytest.approx(
        {"vision_encoder": 1e-4, "text_encoder": 1e-4, "cross_modal": 1e-4, "head": 5e-5, "trimmers": 1e-3}
    )


@pytest.mark.parametrize("what", ["loss", "gradient norm"])
def test_divergence_stops_training_and_keeps_good_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    calls = 0
    forward = Objective.forward

    def diverging(self: Objective, *arguments: Any) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        losses = forward(self, *arguments)
        if calls == 4:
            bad = losses["loss"] * float("nan")
            if what == "gradient norm":  # a finite loss whose gradient is not
                bad = losses["loss"] + (losses["loss"] * 0).sqrt()
            losses["loss"] = bad
        return losses

    monkeypatch.setattr(Objective, "forward", diverging)
    with pytest.raises(SmartTrimError, match=f"diverged: the {what} is nan at step 4") as caught:
        finetune(tiny_recipe(tmp_path, "train.save_steps=1"))
    assert caught.value.exit_code == 1 and "learning_rate" in str(caught.value.hint)
    run = Run(tmp_path / "run")
    assert [path.name for path in run.checkpoints()] == ["step-2", "step-3"]
    weights = load_file(run.path / "checkpoints/step-3/weights.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    assert not run.model.exists()


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


@pytest.mark.parametrize(("constant", "warned"), [(True, True), (False, False)])
def test_collapse_is_warned_about(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, constant: bool, warned: bool
) -> None:
    from smarttrim_cli.tasks.vqa import VqaTask

    def predict(self: Any, logits: torch.Tensor, batch: Any, processor: Any) -> list[dict[str, Any]]:
        answers = ["yes" if constant else sample.major_answer for sample in batch.samples]
        return [self.record(sample, answer) for sample, answer in zip(batch.samples, answers, strict=True)]

    monkeypatch.setattr(VqaTask, "predict", predict)
    reporter = Recorder()
    finetune(tiny_recipe(tmp_path, "train.max_steps=2"), reporter=reporter)
    assert bool(reporter.warnings) == warned
    if warned:
        assert "collapsed: 100% of its predictions are 'yes'" in reporter.warnings[0]
        assert metrics(tmp_path / "run")[-1]["warning"] in reporter.warnings[0]


def test_full_disk_leaves_earlier_files_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second checkpoint cannot be written: the first stays, nothing else is left, the file is named."""
    real = os.replace

    def full(source: Any, target: Any) -> None:
        if str(target).endswith("step-4"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError) as caught:
        finetune(tiny_recipe(tmp_path, "train.save_steps=2"))
    assert caught.value.errno == errno.ENOSPC and str(caught.value.filename).endswith("step-4")
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-2"]
    monkeypatch.undo()
    finetune(tiny_recipe(tmp_path, "train.save_steps=2"), resume="auto")
    assert (tmp_path / "run/model/config.json").exists()


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
    assert (tmp_path / "run/model/config.json").exists()  # the training is not lost
    with pytest.raises(UserError, match="split val has questions but no answers"):
        finetune(tiny_recipe(tmp_path, *SHORT, files, "task.splits.train=val"), overwrite=True)


def test_trimming_can_begin_later(tmp_path: Path) -> None:
    """Until then the full model is trained alone; the curriculum runs over the rest."""
    recipe = tiny_recipe(
        tmp_path,
        "train.max_steps=8",
        "logging.logging_steps=1",
        "strategy.curriculum={start_ratio: 0.5, end_ratio: 0.5}",
    )
    finetune(recipe)
    rows = [row for row in metrics(tmp_path / "run") if "task" in row]
    assert ["cost" in row for row in rows] == [False] * 4 + [True] * 4
    targets = [row.get("target/token.vision", 1.0) for row in rows]
    assert targets[:3] == [1.0] * 3 and targets[4] < 1.0 and targets[-1] == targets[-2] == targets[5]

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from smarttrim_cli.engine.artifact import load_model
from smarttrim_cli.engine.evaluate import evaluate
from smarttrim_cli.engine.finetune import finetune
from smarttrim_cli.engine.runs import Run
from smarttrim_cli.engine.trainer import Trainer
from smarttrim_cli.errors import SmartTrimError, UserError
from smarttrim_cli.pruning import attention
from smarttrim_cli.pruning.objective import Objective
from tests.engine.tiny_run import Recorder, metrics, tiny_recipe

SHORT = ("train.max_steps=2", "evaluate.max_instances=8")
GROUPS = {"token.vision", "token.text", "head.vision", "head.text", "cross_head.vision", "cross_head.text"}


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


def test_gradients_of_masks_are_clipped_at_the_size_that_they_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses are divided among accumulated batches, and multiplied where float16 needs it."""
    limits = set()
    key_bias = attention.key_bias

    def noted(keep: Any, valid: Any, limit: float, dropped: float) -> Any:
        limits.add(limit)
        return key_bias(keep, valid, limit, dropped)

    monkeypatch.setattr(attention, "key_bias", noted)
    finetune(tiny_recipe(tmp_path, *SHORT, "train.gradient_accumulation_steps=4"))
    assert limits == {0.25}
    limits.clear()
    monkeypatch.setattr(Trainer, "_stop_if_nothing_is_done", lambda self: None)
    with scaled(monkeypatch, 1024.0):
        finetune(tiny_recipe(tmp_path, *SHORT), overwrite=True)
    assert limits == {1024.0}


class Scaler:
    """Stands for float16's, which needs a GPU."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def get_scale(self) -> float:
        return self.factor

    def scale(self, loss: Any) -> Any:
        return loss

    def state_dict(self) -> dict[str, float]:
        return {}


@contextmanager
def scaled(monkeypatch: pytest.MonkeyPatch, factor: float) -> Iterator[None]:
    start = Trainer.__init__

    def with_scaler(trainer: Trainer, *arguments: Any) -> None:
        start(trainer, *arguments)
        trainer.accelerator.scaler = Scaler(factor)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "__init__", with_scaler)
        yield


def test_steps_that_are_all_left_out_end_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accelerator, "optimizer_step_was_skipped", True)
    recipe = tiny_recipe(tmp_path, "train.max_steps=60", "evaluate.max_instances=8")
    with scaled(monkeypatch, 1.0), pytest.raises(SmartTrimError, match="diverged: the gradient norm is inf"):
        finetune(recipe)
    assert metrics(tmp_path / "run")[-1]["step"] == 50


def test_float16_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not train in float16"):
        finetune(tiny_recipe(tmp_path, "train.mixed_precision=fp16"))
    assert not (tmp_path / "run").exists()


def test_trimmers_that_cost_more_than_they_save_are_warned_of(tmp_path: Path) -> None:
    little = ("pruning.target_speedup=null", "pruning.target_sparsity={token: {text: 0.05}}")
    little += ("pruning.token_trimmer={name: cross_modal}",)
    for dry_run in (True, False):
        reporter = Recorder()
        finetune(tiny_recipe(tmp_path, *SHORT, *little), dry_run=dry_run, reporter=reporter)
        assert "the trimmers will cost more than they save: 0." in reporter.warnings[0]
    reporter = Recorder()
    evaluate(str(tmp_path / "run"), max_instances=8, reporter=reporter)
    assert any("the trimmed model costs more than the full one: 0." in text for text in reporter.warnings)


def test_all_trimmers_taken_out_is_said(tmp_path: Path) -> None:
    reporter = Recorder()
    all_go = "pruning.calibrate={remove_unprofitable: true, call_macs: 1.0e+12}"
    summary = finetune(tiny_recipe(tmp_path, *SHORT, all_go), reporter=reporter)
    assert any("no trimmer is left: the model is not trimmed" in text for text in reporter.warnings)
    assert summary["calibration"]["speedup"] == 1.0 and not summary["calibration"]["reached"]
    assert "trimmed" not in evaluate(str(tmp_path / "run"), max_instances=8)


@pytest.mark.parametrize("targets", ["{}", "{token: {vision: 0}, head: {text: 0}}"])
def test_sparsities_of_0_are_plain_fine_tuning(tmp_path: Path, targets: str) -> None:
    finetune(tiny_recipe(tmp_path, *SHORT, f"pruning={{target_sparsity: {targets}}}"))
    record = metrics(tmp_path / "run")[0]
    assert record["loss"] == record["task"]
    assert load_model(tmp_path / "run/model").model.sites == {}


def test_logged_learning_rates_are_those_of_the_steps_done(tmp_path: Path) -> None:
    """Of parts without a multiplier: that of the first part is 0 here."""
    reporter = Recorder()
    schedule = ("optimizer.lr_scheduler_type=linear", "optimizer.multipliers={vision_encoder: 0}")
    few = ("train.max_steps=4", "logging.logging_steps=1", "evaluate.max_instances=8", "pruning=null")
    finetune(tiny_recipe(tmp_path, *few, *schedule, "optimizer.warmup_steps=1"), reporter=reporter)
    rates = [row["learning_rate"] for row in metrics(tmp_path / "run") if "task" in row]
    assert rates == pytest.approx([0.5e-4, 1e-4, 1e-4 * 2 / 3, 1e-4 / 3])
    assert not any("peak" in text for text in reporter.warnings)


def test_a_peak_that_is_never_reached_is_warned_of(tmp_path: Path) -> None:
    reporter = Recorder()
    finetune(tiny_recipe(tmp_path, *SHORT, "pruning=null", "optimizer.warmup_steps=2"), reporter=reporter)
    assert any("does not reach its peak in 2 steps" in text for text in reporter.warnings)


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
    assert targets[:5] == [1.0] * 5 and 1.0 > targets[5] > targets[6] == targets[7]


TRIPS = ("pruning.token_trimmer={name: trips}", "pruning.calibrate=null", "pruning.target_speedup=null")
TRIPS += ("pruning.target_sparsity={token: {vision: 0.5}}", "pruning.head_trimmer=null")


def test_trimmers_that_follow_a_schedule_end_at_its_end(tmp_path: Path) -> None:
    finetune(tiny_recipe(tmp_path, *SHORT, *TRIPS, "strategy.curriculum={end_ratio: 1.0}"))
    weights = load_file(tmp_path / "run/model/trimmers.safetensors")
    shares = {float(value) for name, value in weights.items() if name.endswith("keep_fraction")}
    assert shares == {0.5}


def test_a_training_in_which_no_step_trims_is_warned_of(tmp_path: Path) -> None:
    reporter = Recorder()
    recipe = tiny_recipe(tmp_path, *SHORT, "strategy.curriculum={start_ratio: 0.95}")
    finetune(recipe, reporter=reporter)
    assert any("none of the 2 steps trims" in text for text in reporter.warnings)


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
    uncalibrated = "pruning.calibrate=null"  # two steps end far from the budget, which is said, too
    finetune(tiny_recipe(tmp_path, "train.max_steps=2", uncalibrated), reporter=reporter)
    assert bool(reporter.warnings) == warned
    if warned:
        assert "collapsed: 100% of its predictions are 'yes'" in reporter.warnings[0]
        assert metrics(tmp_path / "run")[-1]["warning"] in reporter.warnings[0]

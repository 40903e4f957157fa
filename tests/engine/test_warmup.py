"""The warm start of a run: its log and learning rates, what training finds after it, resuming, errors."""

from __future__ import annotations

import json
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from smarttrim_cli.engine.build import build
from smarttrim_cli.engine.finetune import finetune
from smarttrim_cli.engine.inference import batches
from smarttrim_cli.engine.stopping import Stopped
from smarttrim_cli.engine.trainer import Trainer
from smarttrim_cli.errors import UserError
from smarttrim_cli.pruning.cost import saved_by_a_token
from smarttrim_cli.pruning.saliency import (
    Probe,
    Warmup,
    mean_log_saliency,
    mean_log_total,
    own_answer,
    probe,
    score_quantiles,
    share_quantile,
)
from smarttrim_cli.pruning.sites import Site
from tests.engine.tiny_run import metrics, tiny_recipe, tree

WARM = (
    "strategy.guidance_warmup={enabled: true, steps: 6}",
    "train.max_steps=4",
    "train.save_steps=2",
    "train.save_total_limit=9",
    "logging.logging_steps=2",
    "task.data.num_images={train: 20, calibration: 20, val: 5, test: 5}",
)


class Interrupted(Exception):
    """Stands for whatever ends a run."""


@pytest.fixture(scope="module")
def warm(settings: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a warm start; not to be changed."""
    folder = tmp_path_factory.mktemp("warm")
    finetune(tiny_recipe(folder, *WARM))
    return folder / "run"


def test_log_checkpoints_and_summary(warm: Path) -> None:
    rows = metrics(warm)
    warmup = [row for row in rows if row.get("phase") == "warmup"]
    assert [(row["step"], row["warmup_step"]) for row in warmup] == [(0, 2), (0, 4), (0, 6)]
    for row in warmup:
        assert row["loss"] == pytest.approx(row["task"] + row["guidance"], rel=1e-5)
        assert row["guidance/token.vision"] > 0 and row["guidance/token.text"] > 0
    assert [row["step"] for row in rows[3:]] == [2, 4, 4]  # max_steps is without the warm start
    assert {path.name for path in (warm / "checkpoints").iterdir()} == {
        *(f"warmup-{step}" for step in (2, 4, 6)),
        *(f"step-{step}" for step in (2, 4)),
    }
    summary = json.loads((warm / "summary.json").read_text(encoding="utf-8"))
    assert summary["steps"] == 4 and summary["warmup_steps"] == 6


def test_learning_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, dict[str, float]]] = []
    optimize = Trainer.optimize

    def noted(trainer: Trainer, loader: Any, target: Any) -> dict[str, float]:
        rates = {group["part"]: group["lr"] for group in trainer.optimizer.param_groups}
        seen.append((isinstance(target, Warmup), rates))
        steps = [float(state["step"]) for state in trainer.optimizer.state.values()]
        assert not steps or max(steps) == len([warm for warm, _ in seen[:-1] if warm == seen[-1][0]])
        return optimize(trainer, loader, target)

    monkeypatch.setattr(Trainer, "optimize", noted)
    recipe = tiny_recipe(tmp_path, *WARM)
    finetune(recipe)
    warm, main = [rates for is_warm, rates in seen if is_warm], [r for is_warm, r in seen if not is_warm]
    assert len(warm) == 6 and len(main) == 4
    assert warm[0]["trimmers"] == pytest.approx(5e-3) and warm[0]["vision_encoder"] == pytest.approx(1e-4)
    assert warm[3]["trimmers"] == pytest.approx(2.5e-3) and warm[3]["vision_encoder"] == pytest.approx(5e-5)
    seen.clear()
    finetune(tiny_recipe(tmp_path, *WARM, "strategy.guidance_warmup.enabled=false"), overwrite=True)
    assert [rates for _, rates in seen] == main


@torch.no_grad()
def probed(trainer: Trainer) -> Probe:
    """Scores of the model as it is, on a batch of training."""
    batch = next(iter(batches(trainer.bundle, "train", 60, 60)))
    return probe(trainer.bundle.model.eval(), batch.inputs)


def test_training_begins_with_everything_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first: list[dict[str, float]] = []
    at_target: list[float] = []
    step = Trainer._step

    def noted(trainer: Trainer, loader: Any) -> dict[str, float]:
        if not first:
            found = probed(trainer)
            for name in found.scores:
                kept = trainer.plan.kept[Site.parse(name).group]
                at_target.extend(score_quantiles(found, name, (1 - kept,)))
        terms = step(trainer, loader)
        first.append(terms)
        return terms

    monkeypatch.setattr(Trainer, "_step", noted)
    finetune(tiny_recipe(tmp_path, *WARM, "strategy.guidance_warmup.steps=20", "pruning.gumbel_noise=false"))
    kept = {name: value for name, value in first[0].items() if name.startswith("kept/")}
    assert kept["kept/token.vision"] > 0.99 and kept["kept/token.text"] > 0.99
    assert len(at_target) == 6 and min(at_target) > 1.0  # the margin
    assert max(at_target) - min(at_target) < 0.2  # one threshold will do


@pytest.mark.parametrize("align", ["probability", "group"])
def test_scores_of_all_layers_may_mean_the_same(
    align: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over all sites, or within a group, whose tokens together then reach its target where others do."""
    levels: dict[str, dict[str, float]] = {}
    reached: list[float] = []
    kept: list[float] = []
    step = Trainer._step

    def noted(trainer: Trainer, loader: Any) -> dict[str, float]:
        if not levels:
            found = probed(trainer)
            for name in found.scores:
                levels.setdefault(Site.parse(name).group, {})[name] = mean_log_total(found, name)
            for group, own in levels.items():
                sites = dict.fromkeys(own, 0.0)
                reached.append(share_quantile(found, sites, 1 - trainer.plan.kept[group]))
        terms = step(trainer, loader)
        kept.append(min(value for name, value in terms.items() if name.startswith("kept/token")))
        return terms

    monkeypatch.setattr(Trainer, "_step", noted)
    chosen = f"strategy.guidance_warmup.align={align}"
    finetune(
        tiny_recipe(
            tmp_path, *WARM, "strategy.guidance_warmup.steps=20", "pruning.gumbel_noise=false", chosen
        )
    )
    vision, text = (list(levels[f"token.{modality}"].values()) for modality in ("vision", "text"))
    spread = max(max(sites) - min(sites) for sites in (vision, text))
    assert len(vision + text) == 6 and spread < 0.2  # .6 where quantiles are aligned
    apart = max(vision + text) - min(vision + text)
    assert (apart < 0.2) == (align == "probability")
    assert (max(reached) - min(reached) < 0.2) == (align == "group")
    assert kept[0] > 0.99


def test_scores_may_mean_what_a_token_is_worth_per_mac(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shares of a row's saliency times what the row has, over MACs: up to a constant that all sites share."""
    constants: list[float] = []
    step = Trainer._step

    def noted(trainer: Trainer, loader: Any) -> dict[str, float]:
        if not constants:
            model, task = trainer.bundle.model.eval(), trainer.bundle.task
            batch = next(iter(batches(trainer.bundle, "train", 60, 60)))
            found = probe(model, batch.inputs)
            worth = mean_log_saliency(found, own_answer(found.output, task.logits(found.output, batch)))
            for name in found.scores:
                macs = saved_by_a_token(model.architecture, trainer.plan.tokens, name)
                constants.append(mean_log_total(found, name) - worth[name] + math.log(macs))
        return step(trainer, loader)

    monkeypatch.setattr(Trainer, "_step", noted)
    chosen = (
        "strategy.guidance_warmup={enabled: true, steps: 20, align: worth}",
        "pruning.gumbel_noise=false",
    )
    finetune(tiny_recipe(tmp_path, *WARM, *chosen))
    assert len(constants) == 6
    assert max(constants) - min(constants) < 0.3


def interrupted(monkeypatch: pytest.MonkeyPatch, recipe: Any, after: int, resume: str | None = None) -> None:
    """A run that ends in the middle of the optimizer step after so many, those of the warm start included."""
    optimize = Trainer.optimize

    def stop(trainer: Trainer, loader: Any, target: Any) -> dict[str, float]:
        done = trainer.progress.step + trainer.progress.warmup_step
        terms = optimize(trainer, loader, target)
        if done == after:
            raise Interrupted
        return terms

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Trainer, "optimize", stop)
        finetune(recipe, resume=resume)


def test_a_signal_amid_the_warm_start_leaves_a_checkpoint(
    warm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimize = Trainer.optimize

    def signalled(trainer: Trainer, loader: Any, target: Any) -> dict[str, float]:
        if trainer.progress.warmup_step == 2:
            signal.raise_signal(signal.SIGTERM)
        return optimize(trainer, loader, target)

    recipe = tiny_recipe(tmp_path, *WARM)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Trainer, "optimize", signalled)
        finetune(recipe)
    assert (tmp_path / "run/checkpoints/warmup-3").is_dir()
    finetune(recipe, resume="auto")
    assert tree(tmp_path / "run/model") == tree(warm / "model")


@pytest.mark.parametrize(("stops", "left"), [((5, 3), "warmup-4"), ((7,), "warmup-6"), ((9,), "step-2")])
def test_resumed_run_ends_bit_identically(
    stops: tuple[int, ...], left: str, warm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(tmp_path, *WARM)
    first, *others = sorted(stops)
    interrupted(monkeypatch, recipe, after=first)
    for after in others:
        interrupted(monkeypatch, recipe, after=after, resume="auto")
    checkpoints = tmp_path / "run/checkpoints"
    assert (checkpoints / left).is_dir() and not (checkpoints / "step-4").exists()
    torch.manual_seed(999)
    finetune(recipe, resume="auto")
    assert metrics(tmp_path / "run") == metrics(warm)
    for name in ("model", "best", "checkpoints/warmup-6", "checkpoints/step-4"):
        one, two = tree(tmp_path / "run" / name), tree(warm / name)
        assert one.keys() == two.keys()
        assert {file for file in one if one[file] != two[file]} <= {"state.json"}, name


@pytest.mark.parametrize("after", [1, 5, 8])
def test_full_model_first(after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The warm start comes between the full model's own steps and trimming; so it does in a resumed run."""
    late = (*WARM, "strategy.curriculum.start_ratio=0.5", "logging.logging_steps=3")
    for folder in ("whole", "again"):
        (tmp_path / folder).mkdir()
    finetune(tiny_recipe(tmp_path / "whole", *late))
    whole = metrics(tmp_path / "whole/run")
    places = [(row["step"], row.get("warmup_step")) for row in whole if "eval" not in row]
    assert places == [(2, 3), (2, 6), (3, None), (4, None)]
    assert {path.name for path in (tmp_path / "whole/run/checkpoints").iterdir()} == {"step-2", "step-4"}
    recipe = tiny_recipe(tmp_path / "again", *late)
    interrupted(monkeypatch, recipe, after=after)
    torch.manual_seed(999)
    finetune(recipe, resume="auto")
    assert metrics(tmp_path / "again/run") == whole
    one, two = tree(tmp_path / "again/run/model"), tree(tmp_path / "whole/run/model")
    assert one.keys() == two.keys()
    assert {file for file in one if one[file] != two[file]} <= {"state.json"}


@pytest.mark.parametrize("how", ["signal", "broken sample"])
def test_a_warm_start_amid_training_that_ends_early_keeps_what_was_before(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no checkpoint is due there; one that the warm start leaves behind goes with it."""
    late = (*WARM, "strategy.curriculum.start_ratio=0.5", "logging.logging_steps=3", "train.save_steps=3")
    for folder in ("whole", "again"):
        (tmp_path / folder).mkdir()
    finetune(tiny_recipe(tmp_path / "whole", *late))
    next_batch, warmed_up = Trainer.next_batch, list[int]()

    def amid(trainer: Trainer, loader: Any) -> Any:
        if trainer.progress.step == 2:
            warmed_up.append(trainer.progress.warmup_step)
            if warmed_up[-1] == 2:
                if how != "signal":
                    raise UserError("an image is broken")
                signal.raise_signal(signal.SIGTERM)
        return next_batch(trainer, loader)

    recipe = tiny_recipe(tmp_path / "again", *late)
    with monkeypatch.context() as patch, pytest.raises(Stopped if how == "signal" else UserError):
        patch.setattr(Trainer, "next_batch", amid)
        finetune(recipe)
    checkpoints = tmp_path / "again/run/checkpoints"
    assert warmed_up == [0, 1, 2] and [path.name for path in checkpoints.iterdir()] == ["step-2"]
    finetune(recipe, resume="auto")
    assert metrics(tmp_path / "again/run") == metrics(tmp_path / "whole/run")
    assert {path.name for path in checkpoints.iterdir()} == {"step-3", "step-4"}
    one, two = tree(tmp_path / "again/run/model"), tree(tmp_path / "whole/run/model")
    assert {file for file in one if one[file] != two[file]} <= {"state.json"}


@pytest.mark.parametrize(("steps", "checkpoint"), [(5, "warmup-6"), (7, "step-2")])
def test_another_warm_start_is_refused(warm: Path, steps: int, checkpoint: str, tmp_path: Path) -> None:
    shutil.copytree(warm, tmp_path / "warm")
    resume = str(tmp_path / "warm/checkpoints" / checkpoint)
    recipe = tiny_recipe(tmp_path, *WARM, f"strategy.guidance_warmup.steps={steps}")
    with pytest.raises(UserError, match=f"strategy.guidance_warmup.steps is {steps}.0 and was 6.0"):
        finetune(recipe, resume=resume)
    (tmp_path / "warm/recipe.yaml").unlink()  # then the checkpoint tells
    with pytest.raises(UserError, match=f"6 warm-up steps behind it, this run has {steps}"):
        finetune(recipe, resume=resume)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pruning=null", "there are no token trimmers"),
        (
            "pruning={target_sparsity: {head: {vision: 0.3}}, token_trimmer: null}",
            "there are no token trimmers",
        ),
        ("pruning.token_trimmer={name: random_token}", "RandomTokenTrimmer has no scores"),
        ("pruning.token_trimmer={name: trips}", "has no scores"),
        ("pruning.token_trimmer={name: tome}", "has no scores"),
    ],
)
def test_what_cannot_be_warm_started(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        finetune(tiny_recipe(tmp_path, *WARM, override))
    assert caught.value.where == "strategy.guidance_warmup.enabled" and message in caught.value.message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "overrides",
    [
        ("pruning.token_trimmer={name: local, hidden_dim: 8}",),
        (
            "pruning.gumbel_noise=false",
            "pruning.temperature=3",
            "strategy.cost_loss={on: macs, one_sided: true, weight: 20}",
            "strategy.budget_controller={enabled: true, gain: 0.5}",
            "train.gradient_accumulation_steps=2",
            "train.mixed_precision=bf16",
        ),
    ],
)
def test_with_other_switches(overrides: tuple[str, ...], tmp_path: Path) -> None:
    result = finetune(tiny_recipe(tmp_path, *WARM, *overrides))
    rows = metrics(tmp_path / "run")
    assert result["calibration"]["reached"] and 0 < rows[2]["guidance"] < 1


def test_the_guided_preset_runs(tmp_path: Path) -> None:
    """A warm start of a share of the steps; heads pruned for all, by the answer's gradient."""
    recipe = tiny_recipe(tmp_path, "preset=guided", *WARM[1:], "train.max_steps=20", "train.save_steps=null")
    result = finetune(recipe)
    assert result["warmup_steps"] == 3 and result["steps"] == 20
    assert result["calibration"]["reached"]
    config = json.loads((tmp_path / "run/model/config.json").read_text(encoding="utf-8"))
    assert config["trimmers"]["head"]["name"] == "saliency_head"


def test_the_guided_preset_trims_tokens_alone_where_heads_are_left_out(tmp_path: Path) -> None:
    """There are no heads to hold then."""
    tokens = ("pruning.head_trimmer=null", "train.max_steps=20", "train.save_steps=null")
    result = finetune(tiny_recipe(tmp_path, "preset=guided", *WARM[1:], *tokens))
    assert result["calibration"]["reached"]
    config = json.loads((tmp_path / "run/model/config.json").read_text(encoding="utf-8"))
    assert config["trimmers"]["groups"] and all(g.startswith("token") for g in config["trimmers"]["groups"])


@pytest.mark.parametrize(
    ("overrides", "told"),
    [((), True), (("strategy.curriculum.start_ratio=0.4",), False), (("preset=paper",), False)],
)
def test_a_head_that_knows_nothing_is_no_guide(
    overrides: tuple[str, ...], told: bool, tmp_path: Path
) -> None:
    said: list[str] = []
    build(tiny_recipe(tmp_path, *WARM, *overrides), said.append)
    assert any("the head is new" in line for line in said) is told


def test_a_model_of_the_task_is_a_guide(warm: Path, tmp_path: Path) -> None:
    said: list[str] = []
    start = f"backbone={{name: meter, checkpoint: '{warm / 'model'}'}}"
    build(tiny_recipe(tmp_path, *WARM, start), said.append)
    assert not any("the head is new" in line for line in said)

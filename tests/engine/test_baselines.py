"""Baselines by name at equal MACs, heads ranked by importance in training and in evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from smarttrim_cli.engine import baselines
from smarttrim_cli.engine.artifact import load_model
from smarttrim_cli.engine.baselines import baseline_trimmers, known
from smarttrim_cli.engine.evaluate import evaluate
from smarttrim_cli.engine.finetune import finetune
from smarttrim_cli.engine.trainer import Trainer
from smarttrim_cli.errors import UserError
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.recipe import Recipe
from smarttrim_cli.trimmers._fixed import FixedTrimmer
from tests import tiny
from tests.engine.test_resume import interrupted
from tests.engine.tiny_run import Recorder, tiny_recipe, tree

HEADS_ALONE = (
    "pruning.token_trimmer=null",
    "pruning.target_speedup=null",
    "pruning.target_sparsity={head: {vision: 0.5, text: 0.5, cross: 0.5}}",
)


def head_recipe(folder: Path, name: str, *overrides: str) -> Recipe:
    """Of a short run with heads alone trimmed by importance."""
    short = ("train.max_steps=4", f"pruning.head_trimmer={{name: {name}}}", *HEADS_ALONE)
    return tiny_recipe(folder, *short, *overrides)


def head_run(folder: Path, name: str, *overrides: str) -> dict[str, Any]:
    """Such a run."""
    return finetune(head_recipe(folder, name, *overrides))


def importances(run: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(str(run / "model/trimmers.safetensors"))
    return {name: value for name, value in tensors.items() if name.endswith("importance_H")}


def test_names_of_baselines() -> None:
    assert {"random", "tome", "grad_all", "grad_layer"} <= set(known())
    assert not {"local", "trips", "pumer", "cross_modal", "global"} & set(known())


def test_every_baseline_costs_what_the_run_costs(trained: Path) -> None:
    names = ("grad_all", "grad_layer", "tome", "random_head")
    report = evaluate(str(trained), baselines=names, split="calibration", max_instances=120)
    for name in names:
        other = report["baselines"][name]
        # few heads and few tokens in a tiny model: its steps of MACs are coarse
        assert other["speedup"] == pytest.approx(report["speedup"]["macs"], rel=0.06), name
        mean = report["trimmed"]["accuracy"] - other["accuracy"]
        assert other["trimmed_minus_this"]["mean"] == pytest.approx(mean)


def test_a_baseline_that_costs_something_else_here_is_said(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is calibrated on another split, on which both may cost the same while they do not on this one."""
    monkeypatch.setattr(baselines, "_UNLIKE", -1.0)
    reporter = Recorder()
    evaluate(str(trained), baselines=["random"], max_instances=20, reporter=reporter)
    assert any("these scores are not of the same cost" in warning for warning in reporter.warnings)


def test_a_baseline_of_one_kind_leaves_the_other_as_it_was() -> None:
    """Whatever the threshold of the baseline is, until what is trimmed before differs."""
    model = tiny.paper_model()
    model.threshold.fill_(0.3)
    inputs = tiny.ragged_inputs(model.backbone)
    own = model(inputs, "packed", instance_ids=tiny.ids()).decisions
    for name, kind, first in (("tome", "token", "text.0.self_head"), ("grad_all", "head", "text.0.token")):
        trimmers = baseline_trimmers(model, name)
        for site, trimmer in trimmers.items():
            assert isinstance(trimmer, FixedTrimmer) == (not site.endswith(kind))
        other = TrimmedModel(model.backbone, trimmers).eval()
        other.set_targets(dict.fromkeys(other.groups, 0.5))
        for threshold in (-2.0, 2.0):
            other.threshold.fill_(threshold)
            for mode in ("masked", "packed"):
                keep = other(inputs, mode, instance_ids=tiny.ids()).decisions.keep
                assert torch.equal(keep[first], own.keep[first])
                assert not keep[first].all()


def test_a_fixed_trimmer_costs_and_rewrites_like_its_own() -> None:
    host = tiny.meter()
    model = tiny.attach(host, "tome", "global_head", kept=0.6)
    model.threshold.fill_(0.2)
    fixed = TrimmedModel(host, {name: FixedTrimmer(t, 0.2) for name, t in model.sites.items()}).eval()
    fixed.threshold.fill_(5.0)
    inputs = tiny.ragged_inputs(host)
    one, two = (m(inputs, "packed", instance_ids=tiny.ids()) for m in (model, fixed))
    torch.testing.assert_close(one.output, two.output)
    for name, keep in one.decisions.keep.items():
        assert torch.equal(keep, two.decisions.keep[name])
    for name, trimmer in model.sites.items():
        wrapped = fixed.sites[name]
        for cost in ("fixed_macs", "token_macs", "pair_macs"):
            assert getattr(wrapped, cost)() == getattr(trimmer, cost)()


@pytest.mark.parametrize("name", ["local", "trips", "pumer", "cross_modal", "global"])
def test_what_needs_training_is_refused(name: str, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smarttrim_cli.engine.evaluate.predict", lambda *_: pytest.fail("the model was run"))
    with pytest.raises(UserError, match=f"{name}(_head)? needs training") as caught:
        evaluate(str(trained), baselines=(name,))
    assert f"_trimmer={{name: {name}" in str(caught.value.hint)


def test_a_baseline_for_what_a_run_does_not_trim_is_refused(tmp_path: Path) -> None:
    head_run(tmp_path, "grad_layer_head", "train.max_steps=1", "pruning.calibrate=null")
    with pytest.raises(UserError, match="tome trims tokens, and the run has no trimmers of that kind"):
        evaluate(str(tmp_path / "run"), baselines=("tome",))


@pytest.mark.parametrize("name", ["grad_all_head", "grad_layer_head"])
def test_a_share_of_the_heads_is_kept_at_once(name: str, tmp_path: Path) -> None:
    """Exactly the share without a calibration; with one it is moved a little, to meet the MACs."""
    result = head_run(tmp_path, name, "pruning.calibrate=null")
    report = evaluate(str(tmp_path / "run"), max_instances=8)
    model = load_model(tmp_path / "run/model").model
    places = torch.cat([trimmer.place_H for trimmer in model.sites.values()])
    assert "calibration" not in result and int((places < 0.5).sum()) == len(places) / 2
    if name == "grad_layer_head":
        assert all(value == pytest.approx(0.5) for value in report["trimmed"]["kept"].values())


@pytest.mark.parametrize("name", ["grad_all_head", "grad_layer_head"])
def test_heads_alone_are_calibrated(name: str, tmp_path: Path) -> None:
    calibration = head_run(tmp_path, name)["calibration"]
    assert 1.02 < calibration["target"] < 1.4
    assert calibration["speedup"] == pytest.approx(calibration["target"], rel=0.02)  # to a head or so


def test_importances_are_measured_once_when_trimming_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the weights of that step; a resumed run has them from its checkpoint and ends bit-identically."""
    steps: list[int] = []
    measure = Trainer._rank_heads

    def noting(trainer: Trainer) -> None:
        steps.append(trainer.progress.step)
        measure(trainer)

    monkeypatch.setattr(Trainer, "_rank_heads", noting)
    late = ("train.max_steps=6", "strategy.curriculum={start_ratio: 0.3}", "train.save_steps=3")
    head_run(tmp_path, "grad_all_head", *late)
    assert steps == [2]
    measured = importances(tmp_path / "run")
    assert len(measured) == len(load_model(tmp_path / "run/model").model.sites)
    assert all((value > 0).all() for value in measured.values())
    (tmp_path / "again").mkdir()
    recipe = head_recipe(tmp_path / "again", "grad_all_head", *late)
    interrupted(monkeypatch, recipe, after=4)
    finetune(recipe, resume="auto")
    assert steps == [2, 2]
    first, second = (tree(tmp_path / folder / "model") for folder in ("run", "again/run"))
    assert first == second

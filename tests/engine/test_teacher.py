"""FTKD through the engine: students that follow a teacher, resumed runs, and teachers that do not fit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from smarttrim_cli import registry
from smarttrim_cli.engine.artifact import load_model, save_model
from smarttrim_cli.engine.build import build, plan_for
from smarttrim_cli.engine.evaluate import evaluate
from smarttrim_cli.engine.finetune import finetune
from smarttrim_cli.engine.report import SilentReporter
from smarttrim_cli.engine.runs import Run
from smarttrim_cli.engine.teacher import teaching_of
from smarttrim_cli.engine.trainer import Trainer
from smarttrim_cli.errors import UserError
from smarttrim_cli.recipe import Recipe
from tests import tiny
from tests.engine.test_resume import interrupted
from tests.engine.test_student import BLIP, DATA
from tests.engine.tiny_run import metrics, tiny_recipe, tree

METER = ("backbone.vision.args.depth=3", "backbone.num_cross_layers=2", "pruning=null")
TASKS = {
    "meter vqa": "vqa, min_answer_count: 1",
    "meter nlvr2": "nlvr2",
    "meter retrieval": "retrieval, num_false_texts: 2",
    "blip vqa": "vqa, min_answer_count: 1",
    "blip captioning": "captioning, max_length: 8, min_length: 2",
}
KEEP = {"meter": "{vision: [0, 2], cross: [1]}", "blip": "{vision: [1, 2], text: [0, 3]}"}
SETTINGS = ("logging.logging_steps=5", "evaluate.batch_size=8")


def full(folder: Path, *overrides: str, where: str = "full") -> Path:
    """A full model with random weights, good enough to be followed."""
    bundle = build(tiny_recipe(folder, *overrides), lambda text: None)
    tiny.enliven(bundle.model.backbone, 3)
    (folder / where).mkdir()
    save_model(folder / where, bundle)
    return folder / where


def student(folder: Path, *overrides: str, keep: str = KEEP["meter"], name: str = "meter") -> Recipe:
    """The recipe of a student of ``folder/full``."""
    start = folder / "full"
    return tiny_recipe(
        folder,
        f"backbone={{name: {name}, checkpoint: '{start}', keep_layers: {keep}}}",
        f"strategy.teacher={{checkpoint: '{start}'}}",
        "pruning=null",
        *SETTINGS,
        *overrides,
    )


def parts_of(case: str) -> tuple[str, list[str]]:
    """Backbone of a case, and the overrides that make its full model."""
    backbone = case.split()[0]
    task = f"task={{name: {TASKS[case]}, {DATA}}}"
    return backbone, [task, *(METER if backbone == "meter" else (f"backbone={{{BLIP}}}", "pruning=null"))]


@pytest.mark.parametrize("case", TASKS)
def test_a_student_comes_nearer_to_its_teacher(case: str, tmp_path: Path) -> None:
    backbone, overrides = parts_of(case)
    full(tmp_path, *overrides)
    recipe = student(
        tmp_path,
        overrides[0],
        f"strategy.teacher={{checkpoint: '{tmp_path / 'full'}', logits: 20, hidden: 20, attention: 20}}",
        "train.max_steps=16",
        "logging.logging_steps=4",
        "optimizer.learning_rate=3e-3",
        keep=KEEP[backbone],
        name=backbone,
    )
    finetune(recipe)
    logged = [record for record in metrics(tmp_path / "run") if "loss" in record]
    first, last = logged[0], logged[-1]
    for term in ("hidden", "attention", "logits"):
        assert last[f"teacher/{term}"] < 0.95 * first[f"teacher/{term}"], term
    assert first["loss"] == pytest.approx(
        first["task"] + 20 * (first["teacher/logits"] + first["teacher/hidden"] + first["teacher/attention"]),
        rel=1e-4,
    )


def test_the_map_of_layers(tmp_path: Path) -> None:
    full(tmp_path, *METER)
    recipe = student(tmp_path)
    teaching = teaching_of(recipe, build(recipe, lambda text: None), lambda text: None)
    assert teaching is not None
    pairs = [(own.stream, own.index, its.index) for own, its in teaching.pairs]
    # The text encoder has 2 layers; the vision encoders 2 of 3, so cross-modal layer 0 of 1 is layer 1 of 2.
    assert sorted(pairs) == [
        ("text", 0, 0),
        ("text", 1, 1),
        ("text", 2, 3),
        ("vision", 0, 0),
        ("vision", 1, 2),
        ("vision", 2, 4),
    ]


def test_a_run_of_a_student_is_one_like_others(tmp_path: Path) -> None:
    full(tmp_path, *METER)
    recipe = student(tmp_path, "train.max_steps=4", "train.save_steps=2")
    finetune(recipe)
    shutil.rmtree(tmp_path / "full")
    loaded = load_model(tmp_path / "run" / "model", log=lambda text: None)
    assert loaded.model.architecture.depth("vision") == 3 and loaded.model.architecture.depth("text") == 3
    saved = load_file(str(tmp_path / "run" / "checkpoints" / "step-4" / "weights.safetensors"))
    backbone = loaded.model.backbone.state_dict()
    assert {name.removeprefix("model.backbone.") for name in saved} - {"model.threshold"} == set(backbone)
    result = evaluate(str(tmp_path / "run"), split="test")
    assert result["full"]["count"] == 120


def test_an_interrupted_run_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full(tmp_path, *METER)
    overrides = ("train.max_steps=4", "train.save_steps=2")
    once, again = (student(tmp_path, *overrides, f"output_dir={tmp_path / name}") for name in ("a", "b"))
    finetune(once)
    interrupted(monkeypatch, again, after=3)
    finetune(again, resume="auto")
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    assert tree(tmp_path / "a" / "model") == tree(tmp_path / "b" / "model")


def test_a_teacher_in_an_official_file(tmp_path: Path) -> None:
    clip = "backbone.vision.model=vit_base_patch16_clip_quickgelu_224"
    folder = full(tmp_path, *METER, clip)
    bundle = load_model(folder, log=lambda text: None)
    file = tmp_path / "official.ckpt"
    registry.load("backbones", "meter").save_official(bundle.model.backbone, file)
    recipe = tiny_recipe(
        tmp_path, *METER, clip, f"backbone.checkpoint={file}", f"backbone.keep_layers={KEEP['meter']}",
        f"strategy.teacher={{checkpoint: '{file}'}}",
    )  # fmt: skip
    teaching = teaching_of(recipe, build(recipe, lambda text: None), lambda text: None)
    assert teaching is not None and not teaching.model.training
    own, its = bundle.model.backbone.state_dict(), teaching.model.state_dict()
    assert all(torch.equal(own[name], its[name]) for name in own)
    tensors = {name: value for name, value in torch.load(file, weights_only=True)["state_dict"].items()}
    headless = {name: value for name, value in tensors.items() if "vqa_classifier" not in name}
    torch.save({"state_dict": headless}, file)
    with pytest.raises(UserError, match="not trained for this task"):
        teaching_of(recipe, build(recipe, lambda text: None), lambda text: None)


def refused(folder: Path, *overrides: str, message: str, keep: str = KEEP["meter"]) -> None:
    recipe = student(folder, *overrides, keep=keep)
    bundle = build(recipe, lambda text: None)
    with pytest.raises(UserError, match=message) as caught:
        teaching_of(recipe, bundle, lambda text: None)
    assert "strategy.teacher" in str(caught.value) or "task.name" in str(caught.value)


def test_teachers_that_do_not_fit(tmp_path: Path) -> None:
    full(tmp_path, *METER)
    nlvr2 = full(tmp_path, *METER, f"task={{name: nlvr2, {DATA}}}", where="nlvr2")
    words = full(tmp_path, *METER, "task.data.num_images.train=3", where="words")
    wide = full(tmp_path, *METER, "backbone.hidden_size=48", where="wide")
    coarse = full(tmp_path, *METER, "backbone.image_size=24", where="coarse")

    def other(folder: Path, **weights: float) -> str:
        settings: dict[str, Any] = {"checkpoint": str(folder), **weights}
        return f"strategy.teacher={settings}"

    refused(tmp_path, other(nlvr2), message="the model is for nlvr2")
    refused(tmp_path, other(words), message="another vocabulary|other labels")
    refused(tmp_path, other(wide), message="layer text.2 is 32 wide with 4 heads, the teacher's 48 with 4")
    refused(tmp_path, other(coarse), message="sees images otherwise")
    refused(tmp_path, "pruning={target_speedup: 1.5}", message="for runs without trimming")
    small = full(tmp_path, "pruning=null", where="small")
    recipe = tiny_recipe(tmp_path, "pruning=null", f"backbone.checkpoint={small}", other(tmp_path / "full"))
    bundle = build(recipe, lambda text: None)
    with pytest.raises(UserError, match="the teacher has 4 text layers, and it is not said which"):
        teaching_of(recipe, bundle, lambda text: None)
    recipe = tiny_recipe(
        tmp_path,
        "pruning=null",
        f"backbone.checkpoint={small}",
        other(tmp_path / "full", hidden=0, attention=0),
    )
    found = teaching_of(recipe, build(recipe, lambda text: None), lambda text: None)
    assert found is not None and found.pairs == () and found.hidden == 0


def test_a_task_with_losses_of_its_own(tmp_path: Path) -> None:
    task = f"task={{name: retrieval, {DATA}}}"
    full(tmp_path, task, f"backbone={{{BLIP}}}", "pruning=null")
    recipe = student(tmp_path, task, keep=KEEP["blip"], name="blip")
    bundle = build(recipe, lambda text: None)
    plan = plan_for(recipe, bundle)
    with pytest.raises(UserError, match="losses of its own"):
        Trainer(recipe, Run(tmp_path / "run"), bundle, plan, Accelerator(cpu=True), SilentReporter())


def test_a_dry_run_looks_for_the_teacher(tmp_path: Path) -> None:
    full(tmp_path, *METER)
    said: list[str] = []

    class Reporter(SilentReporter):
        def warn(self, text: str) -> None:
            said.append(text)

    recipe = student(tmp_path, f"strategy.teacher={{checkpoint: '{tmp_path / 'nowhere'}'}}")
    plan = finetune(recipe, dry_run=True, reporter=Reporter())
    assert plan["full_gmacs"] > 0 and any("no model there" in text for text in said)

"""What a user sees of each mistake: what is wrong, where, what to do; the exit code; nothing lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from typer.testing import CliRunner

from smarttrim_cli.cli.app import app
from tests.engine.tiny_run import RECIPE, recipe_file, trained_run, tree

QUICK = ["train.max_steps=2", "evaluate.max_instances=4"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the tiny recipe."""
    monkeypatch.chdir(tmp_path)
    recipe_file(tmp_path)
    return tmp_path


@pytest.fixture
def run_here(here: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a trained run."""
    shutil.copytree(trained_run(tmp_path_factory), "runs/tiny")
    return here


def smarttrim(*arguments: str, code: int) -> str:
    """What a command prints on stderr; results stay off a failure's stdout, unless a check failed."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output and "internal error" not in result.output
    return str(result.stderr if code else result.stdout)


def test_unknown_key(here: Path) -> None:
    Path("bad.yaml").write_text(RECIPE.replace("pruning:", "prunning:"), encoding="utf-8")
    line = RECIPE.splitlines().index("pruning:") + 1
    text = smarttrim("finetune", "bad.yaml", code=2)
    assert f"bad.yaml:{line}" in text and "prunning" in text and "pruning" in text.replace("prunning", "")
    text = smarttrim("finetune", "tiny.yaml", "optimizer.learning_rat=1", code=2)
    assert "optimizer.learning_rat" in text and "learning_rate" in text
    assert not Path("runs").exists()


def test_missing_recipe(here: Path) -> None:
    text = smarttrim("finetune", "quikstart", code=2)
    assert text.startswith("error: quikstart: no such recipe") and "quickstart" in text


@pytest.mark.parametrize("damage", ["missing", "truncated", "not an image"])
def test_bad_image(run_here: Path, damage: str) -> None:
    smarttrim("data", "scenes", "--out", "data", *_scenes(), code=0)
    image = sorted(Path("data/test").iterdir())[0]
    if damage == "missing":
        image.unlink()
    else:
        image.write_bytes(image.read_bytes()[:70] if damage == "truncated" else b"hello")
    before = tree(run_here / "runs")
    data = "task.data={name: vqa_v2, data_dir: data}"
    text = smarttrim("evaluate", "runs/tiny", data, code=2)
    expected = {"missing": "is missing", "truncated": "is damaged", "not an image": "is not an image"}
    lines = text.splitlines()
    error = next(line for line in lines if line.startswith("error: "))
    assert expected[damage] in error and "sample " in error and str(image) in error
    assert lines[-1].startswith("  ")  # what to do
    assert tree(run_here / "runs") == before
    text = smarttrim("evaluate", "runs/tiny", data, "task.on_bad_sample=skip", "--json", code=0)
    assert '"skipped": 4' in text


def _scenes() -> list[str]:
    return ["image_size=32", "grid=2", "cell_size=16", "object_sizes=[9, 13]", "max_objects=4",
            "num_images={train: 2, calibration: 2, val: 2, test: 3}"]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: None, "no model there: config.json is missing"),
        (lambda: Path("ck").write_text("hello"), "not a checkpoint"),
        (lambda: _copy(("model.safetensors", None)), "model.safetensors: the weights are missing"),
        (lambda: _copy(("model.safetensors", b"hello")), "model.safetensors: the weights cannot be read"),
        (lambda: _copy(("config.json", b"{}")), "config.json: not the configuration of a smarttrim-model"),
        (lambda: _other_weights(), "the weights do not fit the model"),
    ],
)
def test_wrong_checkpoint(run_here: Path, make: Any, message: str) -> None:
    make()
    text = smarttrim(
        "finetune",
        "tiny.yaml",
        "backbone={name: meter, checkpoint: ck}",
        "output_dir=runs/new",
        *QUICK,
        code=2,
    )
    assert message in text and "ck" in text
    assert not Path("runs/new").exists()


def _copy(change: tuple[str, bytes | None]) -> None:
    shutil.copytree("runs/tiny/model", "ck")
    name, content = change
    if content is None:
        (Path("ck") / name).unlink()
    else:
        (Path("ck") / name).write_bytes(content)


def _other_weights() -> None:
    import torch

    shutil.copytree("runs/tiny/model", "ck")
    save_file({"classifier.weight": torch.zeros(2, 2)}, "ck/model.safetensors")


def test_checkpoint_of_another_architecture(run_here: Path) -> None:
    section = "backbone={name: meter, checkpoint: runs/tiny, num_cross_layers: 3}"
    text = smarttrim("finetune", "tiny.yaml", section, "output_dir=runs/new", code=2)
    assert "backbone.num_cross_layers: num_cross_layers is 3 in the recipe but 1 in the checkpoint" in text
    assert "leave it out" in text


def test_answers_outside_the_vocabulary(run_here: Path) -> None:
    Path("answers.json").write_text('{"zebra": 0, "giraffe": 1}', encoding="utf-8")
    text = smarttrim(
        "finetune", "tiny.yaml", "task.answers=answers.json", "output_dir=runs/new", *QUICK, code=2
    )
    assert "none of the 160 questions of split train has an answer in the vocabulary" in text
    assert not Path("runs/new").exists()
    Path("answers.json").write_text('{"yes": 0, "no": 1}', encoding="utf-8")
    result = CliRunner().invoke(
        app, ["finetune", "tiny.yaml", "task.answers=answers.json", "output_dir=runs/new", *QUICK]
    )
    assert result.exit_code == 0
    assert "of 160 questions of split train have no answer in the vocabulary" in result.stderr


def test_taken_and_unwritable_output_dir(run_here: Path) -> None:
    before = tree(run_here / "runs")
    text = smarttrim("finetune", "tiny.yaml", code=2)
    assert text.startswith("error: runs/tiny: there is a run in this directory already")
    for way_out in ("--resume auto", "--overwrite", "output_dir="):
        assert way_out in text
    assert tree(run_here / "runs") == before
    text = smarttrim("finetune", "tiny.yaml", "output_dir=tiny.yaml/run", code=2)
    assert text.startswith("error: output_dir tiny.yaml/run: cannot write there") and "is a file" in text
    text = smarttrim("export", "runs/tiny", "--out", "tiny.yaml/x", code=2)
    assert "is a file" in text


@pytest.mark.parametrize("call", ["replace", "write"])
def test_full_disk(run_here: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = tree(run_here / "runs")
    if call == "replace":
        monkeypatch.setattr(os, "replace", full)
    else:
        monkeypatch.setattr(Path, "write_text", full)
        monkeypatch.setattr(Path, "write_bytes", full)
    text = smarttrim(
        "evaluate", "runs/tiny", "evaluate.max_instances=4", "--predictions-out", "p.jsonl", code=1
    )
    assert "error: the disk is full: p.jsonl" in text and "free some space" in text
    text = smarttrim("export", "runs/tiny", "--out", "exported", code=1)
    assert "the disk is full: exported" in text
    assert sorted(path.name for path in run_here.iterdir()) == ["runs", "tiny.yaml"]
    assert tree(run_here / "runs") == before


@pytest.mark.parametrize("key", ["task.splits.eval", "task.splits.calibration", "task.splits.train"])
def test_unknown_split_is_found_before_training(here: Path, key: str) -> None:
    text = smarttrim("finetune", "tiny.yaml", f"{key}=nope", code=2)
    assert "no questions for split nope" in text and "Splits there: calibration, test, train, val" in text
    assert not Path("runs").exists()


def test_not_a_run(run_here: Path) -> None:
    text = smarttrim("evaluate", "runs/tyni", code=2)
    assert text.startswith(
        "error: runs/tyni: no such run directory or recipe\n  runs here: runs/tiny; recipes: "
    )
    Path("empty").mkdir()
    for command in ("evaluate", "profile", "summary"):
        text = smarttrim(command, "empty", code=2)
        assert text.startswith("error: empty: not a run directory: it has no recipe.yaml")
    text = smarttrim("evaluate", "tiny.yaml", "output_dir=runs/none", code=2)
    assert "no trained model there yet" in text and "smarttrim finetune tiny.yaml" in text
    for checkpoints, way in ((False, "--overwrite"), (True, "--resume auto")):
        begun = Path("runs/begun")
        begun.mkdir(exist_ok=True)
        shutil.copy("runs/tiny/recipe.yaml", begun)
        if checkpoints:
            (begun / "checkpoints/step-1").mkdir(parents=True)
        text = smarttrim("evaluate", "runs/begun", code=2)
        assert f"smarttrim finetune {begun / 'recipe.yaml'} {way}" in text
    shutil.rmtree(begun)
    text = smarttrim("evaluate", "runs/tiny", "--split", "tset", code=2)
    assert "no questions for split tset" in text and "test" in text


def test_require(run_here: Path) -> None:
    target = ["evaluate", "runs/tiny", "--max-instances", "8", "--quiet"]
    smarttrim(*target, "--require", "trimmed.accuracy>=0", "--require", "speedup.macs>1", code=0)
    text = smarttrim(*target, "--require", "trimmed.accuracy>1", code=1)
    assert "failed: required trimmed.accuracy>1, but it is " in text
    text = smarttrim(*target, "--require", "trimmed.acuracy>=0", code=2)
    assert "the result has no trimmed.acuracy; did you mean trimmed.accuracy" in text


def test_predictions_that_are_none(run_here: Path) -> None:
    Path("p.jsonl").write_text('{"id": 1, "prediction": "a"}\n{"id": ', encoding="utf-8")
    text = smarttrim("evaluate", "runs/tiny", "--from-predictions", "p.jsonl", code=2)
    assert text.splitlines()[-1].startswith("error: p.jsonl:2: not JSON")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that takes no files")
def test_output_that_cannot_be_written_is_refused_before_the_work(run_here: Path) -> None:
    text = smarttrim("evaluate", "runs/tiny", "--output", "/proc/x.json", code=2)
    assert text.startswith("error: --output /proc/x.json: cannot write there: /proc takes no files")
    assert "evaluating" not in text
    for option in ("--predictions-out", "--submission-out"):
        text = smarttrim("evaluate", "runs/tiny", option, "/proc/x.json", code=2)
        assert (
            text.startswith(f"error: {option} /proc/x.json: cannot write there") and "evaluating" not in text
        )
    text = smarttrim("finetune", "tiny.yaml", "output_dir=/proc/foo/bar", *QUICK, code=2)
    assert text.startswith("error: output_dir /proc/foo/bar: cannot write there: /proc takes no files")


def test_output_is_printed_though_its_disk_is_full(run_here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    result = CliRunner().invoke(app, ["recipes", "list", "--json", "--output", "o.json"])
    assert result.exit_code == 1 and "the disk is full: o.json" in result.stderr
    assert '"quickstart"' in result.stdout and not list(run_here.glob("*o.json*"))


def test_output_may_be_a_device_or_a_link(here: Path) -> None:
    smarttrim("recipes", "list", "--output", os.devnull, code=0)
    assert not Path(os.devnull).is_file()
    Path("link.json").symlink_to("file.json")
    Path("file.json").write_text("old", encoding="utf-8")
    smarttrim("recipes", "list", "--output", "link.json", code=0)
    assert Path("link.json").is_symlink() and "quickstart" in Path("file.json").read_text(encoding="utf-8")


def test_recipe_that_is_not_utf8(here: Path) -> None:
    Path("latin.yaml").write_bytes("description: Größe\n".encode("latin-1"))
    for command in ("show", "validate"):
        text = smarttrim("recipes", command, "latin.yaml", code=2)
        assert "latin.yaml" in text
    assert "not UTF-8" in smarttrim("recipes", "show", "latin.yaml", code=2)


def test_model_folder_with_a_damaged_configuration(run_here: Path) -> None:
    file = Path("runs/tiny/model/config.json")
    config = json.loads(file.read_text(encoding="utf-8"))
    for key, value in (("trimmers", None), ("form", {"nope": 1}), ("task", {})):
        file.write_text(json.dumps({**config, key: value}), encoding="utf-8")
        text = smarttrim("evaluate", "runs/tiny", code=2)
        assert f"error: {file}: damaged: " in text


def test_question_with_half_a_character(run_here: Path) -> None:
    Path("own").mkdir()
    line = json.dumps({"image": "a.png", "question": "is it \ud83d?", "answer": "yes"})
    for split in ("train", "val", "test", "calibration"):
        Path(f"own/{split}.jsonl").write_text(line + "\n", encoding="utf-8")
    text = smarttrim("evaluate", "runs/tiny", "task.data={name: jsonl, data_dir: own}", code=2)
    assert "own/test.jsonl:1" in text and "half of a character at 6" in text


def test_profile_of_broken_images(run_here: Path) -> None:
    smarttrim("data", "scenes", "--out", "data", *_scenes(), code=0)
    for image in Path("data/test").iterdir():
        image.write_bytes(b"hello")
    data = ("task.data={name: vqa_v2, data_dir: data}", "task.on_bad_sample=skip")
    text = smarttrim("profile", "runs/tiny", *data, code=2)
    assert "nothing to measure: none of the instances can be used" in text


def test_damaged_checkpoint(run_here: Path) -> None:
    state = Path("runs/tiny/checkpoints/step-40/state.pt")
    state.write_bytes(state.read_bytes()[:1000])
    text = smarttrim("finetune", "runs/tiny/recipe.yaml", "output_dir=runs/tiny", "--resume", "auto", code=2)
    assert f"error: {state}: the checkpoint is damaged" in text and "--resume" in text


def test_divergence(here: Path) -> None:
    text = smarttrim("finetune", "tiny.yaml", "optimizer.learning_rate=1e30", "-q", code=1)
    assert "failed: runs/tiny: training has diverged: the loss is " in text and "at step 2" in text
    assert "lower optimizer.learning_rate" in text


HUGE = 10**20


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("backbone.vision.args.num_heads=-1", "must be at least 1, found -1"),
        ("backbone.vision.args.num_heads=true", "expected a whole number, found true"),
        ("backbone.vision.args.depth=1000000000000", "must be at most 128"),
        ("backbone.text.config.num_attention_heads=-1", "must be at least 1, found -1"),
        ("backbone.text.config.num_hidden_layers=1000000000000", "must be at most 128"),
        ("backbone.num_cross_layers=1000000000000", "must be at most 128"),
        ("backbone.hidden_size=1000000000000", "must be at most 100000"),
        (f"backbone.intermediate_size={HUGE}", "must be at most 100000"),
        (f"task.num_answers={HUGE}", "must be at most 1000000"),
        (f"pruning.token_trimmer.hidden_dim={HUGE}", "must be at most 100000"),
        (f"pruning.token_trimmer.local_dim={HUGE}", "must be at most 100000"),
        (f"pruning.head_trimmer.hidden_dim={HUGE}", "must be at most 100000"),
    ],
)
def test_sizes_that_no_model_has(here: Path, override: str, message: str) -> None:
    result = CliRunner().invoke(app, ["recipes", "validate", "tiny.yaml", override])
    assert result.exit_code == 2 and "internal error" not in result.output
    key = override.partition("=")[0]
    assert f'override "{override}": {key}: {message}' in result.stdout


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["pruning=null", "strategy.guidance_warmup.enabled=true"],
            "there are no token trimmers to warm-start",
        ),
        (["pruning.straight_through=false"], "scores would learn nothing"),
    ],
)
def test_validate_refuses_what_training_would(here: Path, overrides: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["recipes", "validate", "tiny.yaml", *overrides])
    assert result.exit_code == 2 and message in result.stdout
    assert message in smarttrim("finetune", "tiny.yaml", *overrides, *QUICK, code=2)


def test_what_a_part_cannot_be_built_of(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from smarttrim_cli.backbones import meter
    from smarttrim_cli.trimmers import global_head

    def fail(*_: Any) -> Any:
        raise ZeroDivisionError("modulo by zero")

    monkeypatch.setattr(global_head, "build", fail)
    text = smarttrim("finetune", "tiny.yaml", *QUICK, code=2)
    assert "error: pruning: cannot be used: ZeroDivisionError: modulo by zero" in text
    monkeypatch.setattr(meter, "build", fail)
    for command in (["finetune", "tiny.yaml"], ["finetune", "tiny.yaml", "--dry-run"]):
        text = smarttrim(*command, *QUICK, code=2)
        assert "error: backbone: cannot be used: ZeroDivisionError: modulo by zero" in text

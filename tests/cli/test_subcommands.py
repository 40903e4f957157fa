from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from smarttrim_cli.cli.app import app
from smarttrim_cli.cli.console import Console
from smarttrim_cli.errors import naming

Install = Callable[[str, Callable[..., Any]], None]
RESULT = {
    "full": {"accuracy": 0.98, "gmacs": 0.02, "accuracy_by_type": {"count": 0.9}},
    "trimmed": {
        "accuracy": 0.95,
        "gmacs": 0.01,
        "accuracy_by_type": {"count": 0.8},
        "kept": {"token.vision": 0.5},
    },
    "speedup": {"macs": 2.0, "latency": None},
}


class Recorder:
    """An engine function that notes its arguments."""

    def __init__(self, result: Any) -> None:
        self.result = result
        self.arguments: dict[str, Any] = {}

    def __call__(self, target: Any, **arguments: Any) -> Any:
        reporter = arguments.get("reporter")
        if reporter is not None:
            reporter.message("working")
            reporter.warn("careful")
        self.arguments = {"target": target, **arguments}
        return self.result


def run(*arguments: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.stderr
    assert "\x1b" not in result.stdout + result.stderr
    return result


def test_finetune(fake_engine: Install, recipe_file: Path) -> None:
    engine = Recorder({"run_dir": Path("runs/x"), **RESULT})
    fake_engine("finetune", engine)
    result = run("finetune", "r.yaml", "seed=7", "--resume", "auto", "--overwrite")
    assert engine.arguments["target"].seed == 7
    assert isinstance(engine.arguments.pop("reporter"), Console)
    assert {k: v for k, v in engine.arguments.items() if k != "target"} == {
        "resume": "auto",
        "dry_run": False,
        "overwrite": True,
    }
    assert "run_dir: runs/x" in result.stdout
    assert result.stderr == "working\nwarning: careful\n"


def test_finetune_dry_run_prints_the_plan(fake_engine: Install, recipe_file: Path) -> None:
    plan = {"full_gmacs": 2.0, "trimmed_gmacs": 1.0, "speedup": 2.0}
    fake_engine(
        "finetune", Recorder({**plan, "groups": {"token.vision": {"target_sparsity": 0.7, "kept": 0.3}}})
    )
    lines = run("finetune", "r.yaml", "--dry-run").stdout.splitlines()
    assert lines[2].split() == ["token.vision", "0.7", "0.3"]
    assert lines[3] == "predicted GMACs per instance: full 2, trimmed 1 (2x fewer)"


def test_evaluate_passes_everything_on(fake_engine: Install, tmp_path: Path) -> None:
    engine = Recorder(RESULT)
    fake_engine("evaluate", engine)
    options = ["--split", "val", "--max-instances", "5", "--baseline", "random", "--baseline", "local"]
    run("evaluate", "runs/x", "seed=1", *options, "--predictions-out", "p", "--submission-out", "s")
    del engine.arguments["reporter"]
    assert engine.arguments == {
        "target": "runs/x",
        "overrides": ["seed=1"],
        "split": "val",
        "max_instances": 5,
        "baselines": ["random", "local"],
        "predictions_out": Path("p"),
        "from_predictions": None,
        "submission_out": Path("s"),
    }


def test_profile_defaults(fake_engine: Install) -> None:
    engine = Recorder(RESULT)
    fake_engine("profile", engine)
    run("profile", "task.x=1")
    del engine.arguments["reporter"]
    assert engine.arguments == {
        "target": None,
        "overrides": ["task.x=1"],
        "single_instance": False,
        "num_instances": 50,
        "batch_size": None,
        "random_weights": False,
        "sparsity_from": None,
        "device": None,
        "threads": None,
        "host_kernels": False,
        "by_layer": False,
    }


def test_profile_shows_counts_when_asked(fake_engine: Install) -> None:
    counted = {"full": {"cost_model": 2.0}, "trimmed": {"cost_model": 0.8}}
    engine = Recorder({**RESULT, "macs_counts": counted})
    fake_engine("profile", engine)
    assert "cost_model" not in run("profile", "--single-instance", "--by-layer", "--host-kernels").stdout
    assert engine.arguments["by_layer"] and engine.arguments["host_kernels"]
    assert "cost_model" in run("profile", "--single-instance", "--counts").stdout
    assert json.loads(run("profile", "--json").stdout)["macs_counts"] == counted
    assert "cost_model" in run("profile", "--batch-size", "1", "--counts").stdout
    for arguments in ([], ["--batch-size", "2"]):
        assert "add --single-instance" in run("profile", "--counts", *arguments, code=2).stderr


def test_visualize_and_export(fake_engine: Install) -> None:
    pictures, export = Recorder([Path("a.png"), Path("b.html")]), Recorder({"path": Path("out")})
    fake_engine("visualize", pictures)
    fake_engine("export", export)
    result = run(
        "visualize", "runs/x", "--instance", "3", "--instance", "0", "--image", "i.png", "--question", "why?"
    )
    assert result.stdout == "a.png\nb.html\n"
    assert (pictures.arguments["instances"], pictures.arguments["questions"]) == ([3, 0], ["why?"])
    assert run("export", "runs/x", "--out", "out").stdout == "path: out\n"
    assert (export.arguments["out"], export.arguments["overwrite"]) == (Path("out"), False)


def test_two_targets_are_refused(fake_engine: Install) -> None:
    fake_engine("profile", Recorder(RESULT))
    assert "expected one recipe or run directory, found a, b" in run("profile", "a", "b", code=2).stderr


def test_an_override_may_be_longer_than_a_name(fake_engine: Install) -> None:
    fake_engine("summary", lambda run: RESULT)
    profile = Recorder(RESULT)
    fake_engine("profile", profile)
    long = f"task.data={{data_dir: {'d' * 300}}}"
    run("profile", "runs/a", long)
    assert profile.arguments["overrides"] == [long]


def test_json_is_alone_on_stdout_and_output_is_the_same(fake_engine: Install, tmp_path: Path) -> None:
    fake_engine("evaluate", Recorder({**RESULT, "bad": float("nan")}))
    file = tmp_path / "new" / "result.json"
    result = run("evaluate", "--json", "--output", str(file))
    assert json.loads(result.stdout) == {**RESULT, "bad": None}
    assert file.read_bytes() == result.stdout.encode()
    assert "working" in result.stderr


def test_one_file_is_not_written_over_another(tmp_path: Path) -> None:
    same = str(tmp_path / "r.json")
    options = ("--predictions-out", same, "-o", str(tmp_path / "." / "r.json"))
    assert "--output and --predictions-out would write one file" in run("evaluate", *options, code=2).stderr


def test_output_that_cannot_be_written_is_refused_before_the_work(
    fake_engine: Install, tmp_path: Path
) -> None:
    engine = Recorder(RESULT)
    fake_engine("evaluate", engine)
    assert "is a directory, not a file" in run("evaluate", "--output", str(tmp_path), code=2).stderr
    (tmp_path / "file").touch()
    below = run("evaluate", "--output", str(tmp_path / "file" / "x"), code=2).stderr
    assert "file is a file, not a folder" in below
    assert engine.arguments == {}


def test_output_is_written_where_stdout_cannot_be(
    fake_engine: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_engine("evaluate", Recorder(RESULT))
    file = tmp_path / "result.json"

    def full(*_: Any) -> None:
        with naming("standard output"):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Console, "result", full)
    assert "the disk is full: standard output" in run("evaluate", "-o", str(file), code=1).stderr
    assert json.loads(file.read_text(encoding="utf-8")) == RESULT


@pytest.mark.parametrize("arguments", [["--quiet", "evaluate"], ["evaluate", "-q"]])
def test_quiet_leaves_results_and_warnings(fake_engine: Install, arguments: list[str]) -> None:
    fake_engine("evaluate", Recorder(RESULT))
    result = run(*arguments)
    assert result.stderr == "warning: careful\n"
    assert "accuracy" in result.stdout


@pytest.mark.parametrize(
    ("requirement", "code", "message"),
    [
        ("trimmed.accuracy>=0.95", 0, ""),
        ("speedup.macs == 2", 0, ""),
        ("trimmed.kept.token.vision<0.6", 0, ""),
        ("trimmed.accuracy>0.95", 1, "failed: required trimmed.accuracy>0.95, but it is 0.95\n"),
        ("speedup.latency>1", 1, "failed: required speedup.latency>1, but it was not measured\n"),
        (
            "trimmed.acuracy>0",
            2,
            "error: --require 'trimmed.acuracy>0': the result has no trimmed.acuracy; did you mean ",
        ),
        ("zzz>0", 2, "error: --require 'zzz>0': the result has no zzz\n  it has: full.accuracy, "),
        ("trimmed.accuracy", 2, "error: --require 'trimmed.accuracy': expected a name, one of >= <= > < =="),
        ("a>=b", 2, "error: --require 'a>=b': expected a name"),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "profile", "summary"])
def test_require(fake_engine: Install, command: str, requirement: str, code: int, message: str) -> None:
    fake_engine(command, Recorder(RESULT))
    stderr = run(command, "-q", "--require", requirement, code=code).stderr
    assert stderr.removeprefix("warning: careful\n").startswith(message)


def test_all_unmet_requirements_are_named(fake_engine: Install) -> None:
    fake_engine("summary", lambda run: RESULT)
    result = run("summary", "--require", "trimmed.accuracy>1", "--require", "speedup.macs>3", code=1)
    assert "trimmed.accuracy>1" in result.stderr and "speedup.macs>3" in result.stderr
    assert "accuracy" in result.stdout


def test_recipes_show(recipe_file: Path) -> None:
    assert run("recipes", "show", "r.yaml").stdout == recipe_file.read_text()
    assert "seed: 3\n" in run("recipes", "show", "r.yaml", "seed=3").stdout


def test_recipes_validate(fake_engine: Install, recipe_file: Path) -> None:
    groups = {"token.vision": {"target_sparsity": 0.7, "kept": 0.3}}
    plan = {"full_gmacs": 2.0, "trimmed_gmacs": 1.0, "speedup": 2.0, "groups": groups}
    fake_engine("plan", lambda recipe, check: plan)
    assert run("recipes", "validate", "r.yaml").stdout.splitlines()[0] == "r.yaml: valid"
    Path("wrong.yaml").write_text(recipe_file.read_text() + "sed: 1\n", encoding="utf-8")
    result = run("recipes", "validate", "*.yaml", "--json", code=2)
    first, second = json.loads(result.stdout)
    assert first == {"file": "r.yaml", "valid": True, "problems": [], "plan": plan}
    assert second["problems"] == ["wrong.yaml:12: sed: unknown key; did you mean seed?"]
    assert "1 of 2 recipes not valid: wrong.yaml" in result.stderr
    assert "no file matches" in run("recipes", "validate", "nothing/*.yaml", code=2).stderr


def test_recipes_validate_takes_files_with_any_name(fake_engine: Install, recipe_file: Path) -> None:
    fake_engine("plan", lambda recipe, check: {"full_gmacs": 2.0})
    names = ["lr=1/[a].yaml", "lr=1/r.yaml"]
    Path("lr=1").mkdir()
    for name in names:
        Path(name).write_text(recipe_file.read_text(), encoding="utf-8")
    reports = json.loads(run("recipes", "validate", *names, "seed=3", "--json").stdout)
    assert [(report["file"], report["valid"]) for report in reports] == [(name, True) for name in names]


def test_data_scenes_refuses_wrong_options(tmp_path: Path) -> None:
    result = run("data", "scenes", "--out", str(tmp_path / "s"), "seeed=1", code=2)
    assert 'override "seeed=1": seeed: unknown key; did you mean seed?' in result.stderr
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("task", "file", "said"),
    [
        ("nlvr2", "val.json", "statements"),
        ("snli_ve", "snli_ve_val.jsonl", "hypotheses"),
        ("retrieval", "dataset_coco.json", "captions"),
        ("vqa", "v2_mscoco_val_annotations.json", "questions"),
    ],
)
def test_data_scenes_writes_the_data_of_a_task(tmp_path: Path, task: str, file: str, said: str) -> None:
    few = [f"num_images.{split}=2" for split in ("train", "calibration", "val", "test")]
    result = run("data", "scenes", "--task", task, "--out", str(tmp_path / "s"), "--json", *few)
    assert json.loads(result.stdout)["val"].keys() >= {"images", said}
    assert (tmp_path / "s" / file).is_file()


def test_data_scenes_refuses_an_unknown_task(tmp_path: Path) -> None:
    result = run("data", "scenes", "--task", "ocr", "--out", str(tmp_path / "s"), code=2)
    assert "no scenes for task ocr" in result.stderr
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    "command", ["recipes list", "recipes show", "recipes validate", "recipes schema", "data scenes"]
)
def test_help_has_an_example(command: str) -> None:
    result = run(*command.split(), "--help")
    assert f"Example: smarttrim {command}" in result.stdout
    above = run(command.split()[0], "--help").stdout.split("Commands:")[1]
    assert not any(line.endswith("...") for line in above.splitlines())

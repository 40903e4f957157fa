from __future__ import annotations

import errno
import importlib
import json
import math
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from smarttrim_cli.engine import evaluate as evaluate_module
from smarttrim_cli.engine.artifact import load_model
from smarttrim_cli.engine.compare import compare
from smarttrim_cli.engine.evaluate import evaluate
from smarttrim_cli.engine.finetune import finetune
from smarttrim_cli.engine.inference import batches, predict
from smarttrim_cli.engine.report import SilentReporter
from smarttrim_cli.engine.scores import score_summary
from smarttrim_cli.engine.summary import summary
from smarttrim_cli.errors import UserError
from smarttrim_cli.tasks.vqa import VqaTask
from tests.engine.tiny_run import Recorder, tiny_recipe, tree


@pytest.fixture(scope="module")
def evaluated(settings: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A copy of the trained run, evaluated, with its predictions beside it."""
    from tests.engine.tiny_run import trained_run

    folder = tmp_path_factory.mktemp("evaluated")
    shutil.copytree(trained_run(tmp_path_factory), folder / "run")
    report = evaluate(
        str(folder / "run"),
        baselines=("random",),
        predictions_out=folder / "p.jsonl",
        submission_out=folder / "s.json",
    )
    return report, folder


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def mean_and_error(values: list[float]) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def test_scores_follow_from_the_predictions(evaluated: tuple[dict[str, Any], Path]) -> None:
    report, folder = evaluated
    records = lines(folder / "p.jsonl")
    assert len(records) == len({record["id"] for record in records}) == report["count"] == 120
    full, trimmed = ([record[name] for record in records] for name in ("full_score", "score"))
    assert len({record["prediction"] for record in records}) > 1
    for side, scores in (("full", full), ("trimmed", trimmed)):
        mean, error = mean_and_error(scores)
        assert report[side]["accuracy"] == pytest.approx(mean)
        assert report[side]["accuracy_se"] == pytest.approx(error)
        assert report[side]["count"] == 120
    mean, error = mean_and_error([one - two for one, two in zip(trimmed, full, strict=True)])
    kept = sum(trimmed) / sum(full)
    assert kept != 1 and report["trimmed"]["retained"] == pytest.approx(kept)
    difference = report["difference"]
    assert (difference["mean"], difference["se"]) == pytest.approx((mean, error))
    assert difference["low"] == pytest.approx(mean - 1.959964 * error)
    assert difference["high"] == pytest.approx(mean + 1.959964 * error)
    for name, by_type in report["trimmed"]["accuracy_by_type"].items():
        own = [record["score"] for record in records if record["type"] == name]
        assert by_type["accuracy"] == pytest.approx(sum(own) / len(own)) and by_type["count"] == len(own)


def test_costs_follow_from_the_predictions(evaluated: tuple[dict[str, Any], Path]) -> None:
    report, folder = evaluated
    records = lines(folder / "p.jsonl")
    full, trimmed = (sum(record[name] for record in records) / 120 for name in ("full_gmacs", "gmacs"))
    assert report["full"]["gmacs"] == pytest.approx(full)
    assert report["trimmed"]["gmacs"] == pytest.approx(trimmed)
    assert report["speedup"]["macs"] == pytest.approx(full / trimmed)
    assert sum(report["trimmed"]["gmacs_by_part"].values()) == pytest.approx(trimmed, rel=1e-5)
    assert all(0 <= kept <= 1 for kept in report["trimmed"]["kept"].values())


def test_submission_is_in_the_official_format(evaluated: tuple[dict[str, Any], Path]) -> None:
    _, folder = evaluated
    expected = [{"question_id": r["id"], "answer": r["prediction"]} for r in lines(folder / "p.jsonl")]
    assert json.loads((folder / "s.json").read_text(encoding="utf-8")) == expected


def test_baseline_costs_the_same(evaluated: tuple[dict[str, Any], Path]) -> None:
    report, _ = evaluated
    baseline = report["baselines"]["random"]
    assert baseline["speedup"] == pytest.approx(report["speedup"]["macs"], rel=0.02)
    assert baseline["gmacs"] == pytest.approx(report["trimmed"]["gmacs"], rel=0.02)
    difference = report["trimmed"]["accuracy"] - baseline["accuracy"]
    assert baseline["trimmed_minus_this"]["mean"] == pytest.approx(difference)


def test_from_predictions_gives_the_same_scores(
    evaluated: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    report, folder = evaluated
    shutil.copytree(
        folder / "run", tmp_path / "run", ignore=shutil.ignore_patterns("model", "best", "step-*")
    )
    again = evaluate(str(tmp_path / "run"), from_predictions=folder / "p.jsonl")
    for side in ("full", "trimmed"):
        assert again[side] == {name: report[side][name] for name in again[side]}
        assert {"accuracy", "accuracy_se", "accuracy_by_type", "count"} == set(again[side])
    assert again["difference"] == report["difference"]
    records = lines(folder / "p.jsonl")
    records[0]["prediction"], records[0]["score"] = (
        "no such answer",
        1.0,
    )  # scores in the file are not believed
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    changed = evaluate(str(tmp_path / "run"), from_predictions=tmp_path / "p.jsonl")
    lost = lines(folder / "p.jsonl")[0]["score"] / 120
    assert changed["trimmed"]["accuracy"] == pytest.approx(report["trimmed"]["accuracy"] - lost)


def test_what_evaluate_writes_is_compared_as_its_run(
    evaluated: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    """Of the same task, data and recipe: repetitions with another seed are one row."""
    report, folder = evaluated
    for seed in (1, 2):
        recipe = {**report["recipe"], "seed": seed}
        (tmp_path / f"{seed}.json").write_text(json.dumps({**report, "recipe": recipe}), encoding="utf-8")
    found = compare([str(folder / "run"), str(tmp_path / "1.json"), str(tmp_path / "2.json")])
    (group,) = found["groups"]
    assert group["task"] == "meter/vqa" and group["data"] == "scenes"
    (row,) = group["rows"]
    assert row["seeds"] == 3


def test_part_of_the_predictions_is_said_to_be_a_part(
    evaluated: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    _, folder = evaluated
    first = (folder / "p.jsonl").read_text(encoding="utf-8").split("\n")[0]
    (tmp_path / "one.jsonl").write_text(first, encoding="utf-8")
    reporter = Recorder()
    submission = tmp_path / "s.json"
    report = evaluate(
        str(folder / "run"),
        from_predictions=tmp_path / "one.jsonl",
        submission_out=submission,
        reporter=reporter,
    )
    assert (report["count"], report["missing"], report["metric"]) == (1, 119, "accuracy")
    assert "119 of the 120 instances of test have no prediction" in reporter.warnings[0]
    assert len(json.loads(submission.read_text(encoding="utf-8"))) == 1


def test_instances_without_a_reference_are_counted(
    evaluated: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    _, folder = evaluated
    Image.new("RGB", (32, 32)).save(tmp_path / "1.png")
    entries = [
        {"image": "1.png", "question": "what color?", "answer": answer} for answer in ("red", None, "a")
    ]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, entries)), encoding="utf-8")
    reporter = Recorder()
    settings: dict[str, Any] = {
        "overrides": [f"task.data={{name: jsonl, data_dir: '{tmp_path}'}}"],
        "split": "own",
        "reporter": reporter,
    }
    report = evaluate(str(folder / "run"), predictions_out=tmp_path / "p.jsonl", **settings)
    stored = evaluate(str(folder / "run"), from_predictions=tmp_path / "p.jsonl", **settings)
    for one in (report, stored):
        assert (one["count"], one["unlabelled"], one["trimmed"]["count"]) == (3, 1, 2)
    said = [text for text in reporter.warnings if "reference" in text]
    assert said == ["1 of 3 instances have no reference: scores are of the others"] * 2


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"baselines": ("random",)}, "--baseline"),
        ({"predictions_out": Path("x.jsonl")}, "--predictions-out"),
        ({"max_instances": 3}, "--max-instances"),
    ],
)
def test_stored_predictions_run_no_model(
    evaluated: tuple[dict[str, Any], Path], options: dict[str, Any], where: str
) -> None:
    _, folder = evaluated
    with pytest.raises(UserError, match="--from-predictions runs none") as caught:
        evaluate(str(folder / "run"), from_predictions=folder / "p.jsonl", **options)
    assert caught.value.where == where


def test_baseline_without_a_calibration_split_is_refused_before_the_work(
    evaluated: tuple[dict[str, Any], Path],
) -> None:
    _, folder = evaluated
    reporter = Recorder()
    with pytest.raises(UserError, match="split nope"):
        evaluate(
            str(folder / "run"),
            overrides=["task.splits.calibration=nope"],
            baselines=("random",),
            reporter=reporter,
        )
    assert not reporter.messages or not any("evaluating" in text for text in reporter.messages)


def test_results_are_stored_before_a_baseline_can_fail(
    evaluated: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, folder = evaluated
    shutil.copytree(folder / "run", tmp_path / "run")
    (tmp_path / "run/summary.json").unlink()
    module = importlib.import_module("smarttrim_cli.engine.evaluate")

    def broken(*args: Any) -> dict[str, Any]:
        raise UserError("broken")

    monkeypatch.setattr(module, "evaluate_baseline", broken)
    with pytest.raises(UserError, match="broken"):
        evaluate(str(tmp_path / "run"), baselines=("random",))
    assert summary(str(tmp_path / "run"))["trimmed"]["accuracy"] == report["trimmed"]["accuracy"]


def test_an_evaluation_leaves_nothing_of_the_one_before(
    evaluated: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    """Such as images that were broken and are mended; what other commands stored stays."""
    report, folder = evaluated
    shutil.copytree(folder / "run", tmp_path / "run")
    file = tmp_path / "run/summary.json"
    side = {"skipped": 2, "spice": 0.5, "latency_ms": {"p50": 3.0}, "parameters": 7}
    before = {
        "run_dir": "x",
        "skipped": 2,
        "unlabelled": 1,
        "warning": "collapsed",
        "profile": {"instances": 3},
    }
    before |= {"full": side, "trimmed": {**side, "retained": 9.0}, "speedup": {"macs": 9.0, "latency": 2.0}}
    file.write_text(json.dumps({**before, "baselines": {"tome": {"accuracy": 0.5}}}), encoding="utf-8")
    evaluate(str(tmp_path / "run"))
    after = json.loads(file.read_text(encoding="utf-8"))
    assert not {"skipped", "unlabelled", "warning", "baselines"} & set(after)
    assert after["run_dir"] == "x" and after["profile"] == {"instances": 3}
    assert after["speedup"] == {**report["speedup"], "latency": 2.0}
    for name in ("full", "trimmed"):
        assert after[name] == {"latency_ms": {"p50": 3.0}, "parameters": 7, **report[name]}


def test_baselines_of_the_same_evaluation_stay(
    evaluated: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    _, folder = evaluated
    shutil.copytree(folder / "run", tmp_path / "run")
    before = summary(str(tmp_path / "run"))["baselines"]
    evaluate(str(tmp_path / "run"))
    assert summary(str(tmp_path / "run"))["baselines"] == before


@pytest.mark.parametrize("damage", ["[1]", '{"full": {"acc'])
def test_a_summary_that_takes_no_results_is_found_before_the_work(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    file = tmp_path / "run/summary.json"
    file.write_text(damage, encoding="utf-8")
    with monkeypatch.context() as patched, pytest.raises(UserError, match=r"summary\.json") as caught:
        patched.setattr("smarttrim_cli.engine.evaluate.predict", lambda *_: pytest.fail("the model was run"))
        evaluate(str(file.parent))
    assert caught.value.exit_code == 2 and caught.value.hint
    assert evaluate(str(file.parent), max_instances=2)["count"] == 2  # it is not stored


def test_results_that_cannot_be_stored_are_returned(
    evaluated: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, folder = evaluated
    shutil.copytree(folder / "run", tmp_path / "run")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("smarttrim_cli.engine.runs.write_json", full)
    reporter = Recorder()
    assert evaluate(str(tmp_path / "run"), reporter=reporter)["trimmed"] == report["trimmed"]
    text = f"the results are not stored in {tmp_path / 'run/summary.json'}: No space left on device"
    assert text in reporter.warnings


def test_results_of_a_model_that_was_replaced_meanwhile_are_not_stored(
    evaluated: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By `finetune --overwrite` in another process: they would stand in the summary of its model."""
    report, folder = evaluated
    shutil.copytree(folder / "run", tmp_path / "run")
    real = evaluate_module._predictions

    def slow(*arguments: Any) -> Any:
        shutil.rmtree(tmp_path / "run/model")
        shutil.copytree(folder / "run/model", tmp_path / "run/model", copy_function=shutil.copyfile)
        (tmp_path / "run/summary.json").write_text("{}", encoding="utf-8")
        return real(*arguments)

    monkeypatch.setattr(evaluate_module, "_predictions", slow)
    reporter = Recorder()
    assert evaluate(str(tmp_path / "run"), reporter=reporter)["trimmed"] == report["trimmed"]
    assert any("not stored" in text and "replaced meanwhile" in text for text in reporter.warnings)
    assert (tmp_path / "run/summary.json").read_text(encoding="utf-8") == "{}"


def test_overrides_of_training_are_said_to_have_no_effect(evaluated: tuple[dict[str, Any], Path]) -> None:
    _, folder = evaluated
    reporter = Recorder()
    overrides = ["pruning.target_speedup=3", "evaluate.batch_size=8"]
    evaluate(str(folder / "run"), overrides=overrides, max_instances=4, reporter=reporter)
    text = "of training, so without effect on the trained model: pruning.target_speedup=3"
    assert text in reporter.warnings


def test_predictions_of_another_split(evaluated: tuple[dict[str, Any], Path]) -> None:
    _, folder = evaluated
    with pytest.raises(
        UserError, match="120 of 120 predictions are for samples that split val does not have"
    ):
        evaluate(str(folder / "run"), from_predictions=folder / "p.jsonl", split="eval")


def test_summary_has_training_and_evaluation(evaluated: tuple[dict[str, Any], Path]) -> None:
    report, folder = evaluated
    result = summary(str(folder / "run"))
    assert {"calibration", "eval", "train_seconds"} <= set(result)  # of finetune
    assert result["full"] == report["full"] and result["difference"] == report["difference"]
    before = (folder / "run/summary.json").read_bytes()
    partial = evaluate(str(folder / "run"), max_instances=10)
    assert partial["count"] == 10
    evaluate(str(folder / "run"), split="eval", max_instances=4)
    assert (folder / "run/summary.json").read_bytes() == before


def test_evaluation_repeats_itself_at_any_batch_size(
    evaluated: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    _, folder = evaluated
    evaluate(str(folder / "run"), overrides=["evaluate.batch_size=7"], predictions_out=tmp_path / "p.jsonl")
    for one, two in zip(lines(folder / "p.jsonl"), lines(tmp_path / "p.jsonl"), strict=True):
        assert one == two


def test_default_target_is_the_newest_run(
    evaluated: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, folder = evaluated
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder / "run", "runs/newer")
    (tmp_path / "runs/other/model").mkdir(parents=True)  # not a run
    assert summary(None)["run_dir"] == "runs/newer"
    assert evaluate(None, max_instances=2)["count"] == 2


def test_unknown_baseline_and_unwritable_files_are_found_before_the_work(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> Any:
        pytest.fail("the model was run")

    monkeypatch.setattr("smarttrim_cli.engine.evaluate.predict", never)
    with pytest.raises(UserError, match="no baseline named 'rndom'") as caught:
        evaluate(str(trained), baselines=("rndom",))
    assert "random" in str(caught.value.hint)
    (tmp_path / "file").write_text("", encoding="utf-8")
    for option in ("predictions_out", "submission_out"):
        with pytest.raises(UserError, match="is a directory, not a file"):
            evaluate(str(trained), **{option: tmp_path})
        with pytest.raises(UserError, match="is a file, not a folder") as caught:
            evaluate(str(trained), **{option: tmp_path / "file/p.jsonl"})
        assert str(caught.value.where).startswith(f"--{option.replace('_', '-')} ")


def no_submission(task: Any, ids: Any) -> None:
    assert len(ids) > 0
    raise UserError("there is no official format", where="--submission-out")


def test_what_cannot_be_submitted_is_said_before_the_work(
    evaluated: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = evaluated
    monkeypatch.setattr("smarttrim_cli.engine.evaluate.predict", lambda *_: pytest.fail("the model was run"))
    monkeypatch.setattr(VqaTask, "check_submission", no_submission, raising=False)
    for options in ({}, {"from_predictions": folder / "p.jsonl"}):
        with pytest.raises(UserError, match="no official format"):
            evaluate(str(folder / "run"), submission_out=tmp_path / "s.json", **options)


def test_a_file_that_cannot_be_written_costs_no_result(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(task: Any, records: Any) -> None:
        raise UserError("the disk is full")

    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run/summary.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(VqaTask, "submission", broken)
    with pytest.raises(UserError, match="the disk is full"):
        evaluate(str(tmp_path / "run"), submission_out=tmp_path / "s.json")
    assert "accuracy" in json.loads((tmp_path / "run/summary.json").read_text(encoding="utf-8"))["trimmed"]


def test_untrimmed_run_has_no_trimmed_side(tmp_path: Path) -> None:
    finetune(tiny_recipe(tmp_path, "pruning=null", "train.max_steps=1"))
    reporter = Recorder()
    report = evaluate(str(tmp_path / "run"), max_instances=8, baselines=("random",), reporter=reporter)
    assert reporter.warnings == ["the run has no trimmers, so nothing is compared with --baseline"]
    assert set(report) == {"split", "count", "metric", "full", "recipe"}


def test_untrimmed_run_is_counted(tmp_path: Path) -> None:
    """As the full model of a trimmed run is, with the scores of the host itself."""
    finetune(tiny_recipe(tmp_path, "pruning=null", "train.max_steps=1"))
    bundle = load_model(tmp_path / "run/model")
    report = evaluate(str(tmp_path / "run"), max_instances=8)["full"]
    loader = batches(bundle, "test", 8, 8)
    host = predict(bundle, loader, ("full", "packed"), SilentReporter(), "")
    assert report["gmacs_from"] == "cost model"
    assert report["gmacs"] == pytest.approx(sum(host["packed"].full_macs) / 8 / 1e9, rel=1e-9)
    assert sum(report["gmacs_by_part"].values()) == pytest.approx(report["gmacs"], rel=1e-9)
    assert report["accuracy"] == score_summary(bundle.task, host["full"])["accuracy"]


@pytest.fixture
def broken(evaluated: tuple[dict[str, Any], Path], tmp_path: Path) -> tuple[Path, list[str], list[Path]]:
    """A run, overrides that name a copy of its data, and two images of the test split that are damaged."""
    from smarttrim_cli.engine.runs import Run
    from smarttrim_cli.registry import load, options

    _, folder = evaluated
    section = Run(folder / "run").recipe().task.options_dict()["data"]
    cache = load("data", "scenes").locate(options("data", section), lambda text: None)
    shutil.copytree(cache, tmp_path / "data")
    images = sorted((tmp_path / "data/test").iterdir())[:2]
    images[0].write_bytes(images[0].read_bytes()[:60])
    images[1].unlink()
    return folder / "run", [f"task.data={{name: vqa_v2, data_dir: '{tmp_path / 'data'}'}}"], images


def test_broken_image_names_sample_and_file(broken: tuple[Path, list[str], list[Path]]) -> None:
    run, overrides, images = broken
    before = tree(run)
    with pytest.raises(UserError, match="damaged") as caught:
        evaluate(str(run), overrides=overrides)
    question = str(caught.value.where)
    assert question.startswith("sample ") and question.endswith(str(images[0]))
    assert tree(run) == before


@pytest.mark.parametrize("batch_size", [64, 1])
def test_broken_images_are_skipped_and_counted(
    broken: tuple[Path, list[str], list[Path]], batch_size: int
) -> None:
    """Also where a batch has nothing else, as when instances are run one at a time."""
    run, overrides, images = broken
    reporter = Recorder()
    settings = ["task.on_bad_sample=skip", f"evaluate.batch_size={batch_size}"]
    report = evaluate(str(run), overrides=[*overrides, *settings], reporter=reporter)
    assert report["skipped"] == 8 and report["count"] == 112  # four questions about each image
    assert any("8 instances were skipped" in warning for warning in reporter.warnings)


def test_all_images_broken(broken: tuple[Path, list[str], list[Path]]) -> None:
    run, overrides, images = broken
    for image in images[0].parent.iterdir():
        image.write_bytes(b"")
    with pytest.raises(UserError, match="none of the 120 instances can be used"):
        evaluate(str(run), overrides=[*overrides, "task.on_bad_sample=skip"])


def test_broken_image_in_a_loading_process(
    broken: tuple[Path, list[str], list[Path]], tmp_path: Path
) -> None:
    """The message is that of the sample, not a traceback of the process."""
    _, overrides, _ = broken
    recipe = tiny_recipe(
        tmp_path,
        *overrides,
        "task.splits.train=test",
        "train.dataloader_num_workers=1",
        "train.max_steps=40",
        "pruning=null",
    )
    with pytest.raises(UserError) as caught:
        finetune(recipe)
    assert "Traceback" not in str(caught.value) and str(caught.value.where).startswith("sample ")
    assert not multiprocessing.active_children()  # also while the error, and with it its traceback, is there

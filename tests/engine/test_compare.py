from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from smarttrim_cli.engine.compare import compare
from smarttrim_cli.engine.pareto import _panel, front
from smarttrim_cli.engine.published import published_note, published_points
from smarttrim_cli.engine.report import SilentReporter
from smarttrim_cli.engine.results import distinct_names, result_name
from smarttrim_cli.errors import UserError

RECIPE: dict[str, Any] = {
    "seed": 1,
    "backbone": {"name": "meter"},
    "task": {"name": "vqa", "data": {"name": "scenes", "grid": 4}},
    "pruning": {
        "target_speedup": 2.0,
        "token_trimmer": {"name": "cross_modal"},
        "head_trimmer": {"name": "global_head"},
    },
    "strategy": {"curriculum": {"enabled": False}, "budget_controller": {"enabled": True}},
}


class Listener(SilentReporter):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def message(self, text: str) -> None:
        self.heard.append(text)

    def warn(self, text: str) -> None:
        self.heard.append(text)


def side(scores: str, gmacs: float, **more: Any) -> dict[str, Any]:
    mean = scores.count("1") / max(len(scores), 1)
    return {"accuracy": mean, "accuracy_se": 0.01, "gmacs": gmacs, "scores": scores, **more}


def result(method: str, seed: int, scores: str, full: str = "1111", **more: Any) -> dict[str, Any]:
    return {
        "method": method,
        "ratio": 2.0,
        "seed": seed,
        "task": "meter/vqa",
        "density": "ordinary",
        "metric": "accuracy",
        "split": "test",
        "count": len(scores) or len(full),
        "full": side(full, 4.0),
        "trimmed": side(scores, 2.0),
        "speedup": {"macs": 2.0},
        **more,
    }


def write(folder: Path, *results: dict[str, Any]) -> str:
    folder.mkdir(exist_ok=True)
    for number, content in enumerate(results):
        (folder / f"{number}.json").write_text(json.dumps(content), encoding="utf-8")
    return str(folder)


def run_folder(path: Path, recipe: dict[str, Any], content: dict[str, Any], scores: str | None = None) -> str:
    path.mkdir(parents=True)
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    (path / "summary.json").write_text(json.dumps(content), encoding="utf-8")
    if scores is not None:
        lines = [
            json.dumps({"id": 10 + n, "prediction": "a", "score": float(score), "full_score": 1.0})
            for n, score in enumerate(scores)
        ]
        (path / "predictions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def rows(report: dict[str, Any], group: int = 0) -> dict[str, dict[str, Any]]:
    return {f"{row['method']}@{row['level']}": row for row in report["groups"][group]["rows"]}


def test_means_over_seeds_and_paired_difference(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "r",
        result("ours", 0, "1101"),
        result("ours", 1, "1111"),
        result("local", 0, "1001"),
        result("local", 1, "0101"),
    )
    report = compare([folder], reference="local")
    ours, local = rows(report)["ours@2.0x"], rows(report)["local@2.0x"]
    assert (ours["seeds"], ours["score"], ours["full"], ours["retained"]) == (2, 0.875, 1.0, 0.875)
    over_seeds = 0.125  # .75 and 1: s = .25 / sqrt(2), over sqrt(2)
    assert ours["score_se"] == pytest.approx(math.hypot(over_seeds, 0.01))
    assert (ours["se_over"], ours["gmacs"], ours["speedup"]) == ("seeds and instances", 2.0, 2.0)
    # the differences of tests/metrics/test_seeds.py, instance by instance
    assert ours["difference"]["mean"] == pytest.approx(0.375)
    assert ours["difference"]["se"] == pytest.approx(0.125 * math.sqrt(2))
    assert ours["difference"]["paired"] is True
    assert local["difference"] is None
    assert (ours["on_front"], local["on_front"]) == (True, False)


def test_one_seed_has_the_error_of_its_instances(tmp_path: Path) -> None:
    report = compare([write(tmp_path / "r", result("ours", 0, "1101"))])
    row = rows(report)["ours@2.0x"]
    assert (row["score_se"], row["se_over"]) == (0.01, "instances")
    assert row["retained_se"] == 0.01  # over a full score of 1
    assert row["difference"]["mean"] == -0.25
    assert row["difference"]["se"] == pytest.approx(0.25)  # 0 0 -1 0: s = .5, over 2


def test_errors_on_relative_axes_are_shares_of_the_full_score(tmp_path: Path) -> None:
    """A full score of 3/4: .01 are a 75th of it, 4/3 %."""
    group = compare([write(tmp_path / "r", result("ours", 0, "1100", full="1101"))])["groups"][0]
    (row,) = group["rows"]
    assert (row["score"], row["score_se"]) == (0.5, 0.01)
    assert (row["retained"], row["retained_se"]) == pytest.approx((2 / 3, 1 / 75))
    (absolute,), (relative,) = (_panel(group, [], share, False).points for share in (False, True))
    assert (absolute.cost, absolute.score, absolute.error) == (2.0, 0.5, 0.01)
    assert (relative.cost, relative.score, relative.error) == pytest.approx((2.0, 200 / 3, 4 / 3))


def test_errors_of_shares_are_those_of_pairs_where_they_are_known(tmp_path: Path) -> None:
    """A trimmed model that says what its full model says keeps all of it, without an error."""
    same = {**result("ours", 0, "1100", full="1100"), "difference": {"mean": 0.0, "se": 0.0}}
    (row,) = compare([write(tmp_path / "r", same)])["groups"][0]["rows"]
    assert (row["score_se"], row["retained"], row["retained_se"]) == (0.01, 1.0, 0.0)


def test_errors_over_seeds_on_relative_axes_are_those_of_the_shares(tmp_path: Path) -> None:
    """Every seed has a full model of its own: shares of 2/3 and 1, half of their difference."""
    folder = write(
        tmp_path / "r", result("ours", 0, "1100", full="1101"), result("ours", 1, "1100", full="1010")
    )
    group = compare([folder])["groups"][0]
    (row,) = group["rows"]
    instances = 0.01 * math.sqrt(((4 / 3) ** 2 + 2**2) / 2)  # root of the mean square of the shares' errors
    error = math.hypot(1 / 6, instances)
    assert (row["retained"], row["retained_se"]) == pytest.approx((5 / 6, error))
    assert _panel(group, [], True, False).points[0].error == pytest.approx(100 * error)


def test_latencies_of_other_conditions_are_not_drawn_together(tmp_path: Path) -> None:
    def timed(method: str, threads: int) -> dict[str, Any]:
        content = result(method, 0, "1101", profile={"environment": {"device": "cpu", "threads": threads}})
        content["trimmed"]["latency_ms"] = {"p50": 2.0}
        return content

    listener = Listener()
    alike = write(tmp_path / "a", timed("ours", 1), timed("local", 1))
    assert compare([alike], reporter=listener)["groups"][0]["same_conditions"] and not listener.heard
    unlike = write(tmp_path / "b", timed("ours", 1), timed("local", 2))
    report = compare([unlike], reporter=listener, plot=tmp_path / "p.png")
    assert "threads 1, 2" in listener.heard[0] and not report["groups"][0]["same_conditions"]
    assert rows(report)["ours@2.0x"]["latency_ms"] == 2.0  # each is true by itself


def test_without_scores_of_instances_seeds_and_own_errors_are_used(tmp_path: Path) -> None:
    contents = [result(name, seed, s) for name, s in (("ours", "1101"), ("local", "1001")) for seed in (0, 1)]
    for content in contents:
        del content["trimmed"]["scores"], content["full"]["scores"]
    listener = Listener()
    report = compare([write(tmp_path / "r", *contents)], reference="local", reporter=listener)
    difference = rows(report)["ours@2.0x"]["difference"]
    assert (difference["mean"], difference["paired"]) == (0.25, False)
    assert difference["se_instances"] == pytest.approx(0.01 * math.sqrt(2))
    assert "predictions.jsonl" in listener.heard[0]


def test_errors_of_both_models_count_where_that_of_their_difference_is_not_known(tmp_path: Path) -> None:
    contents = [result("ours", seed, scores) for seed, scores in ((0, "1100"), (1, "1101"))]
    for content in contents:
        del content["trimmed"]["scores"], content["full"]["scores"]
    difference = rows(compare([write(tmp_path / "r", *contents)]))["ours@2.0x"]["difference"]
    assert (difference["mean"], difference["paired"]) == (-0.375, False)
    assert difference["se_instances"] == pytest.approx(0.01 * math.sqrt(2))


@pytest.mark.parametrize("more", ["ours", "local"])
def test_seeds_that_only_one_side_has_count(tmp_path: Path, more: str) -> None:
    """The difference is that of the means shown, not that of the seeds that happen to be shared."""
    contents = [result("ours", seed, "1101") for seed in (0, 1)]
    contents += [result("local", seed, "1001") for seed in (0, 1)]
    contents.append(result(more, 2, "0000"))
    listener = Listener()
    found = rows(compare([write(tmp_path / "r", *contents)], reference="local", reporter=listener))
    ours, local = found["ours@2.0x"], found["local@2.0x"]
    difference = ours["difference"]
    assert difference["mean"] == pytest.approx(ours["score"] - local["score"])
    assert (difference["paired"], difference["seeds"]) == (False, 2) and difference["p"] > 0.05
    assert len(listener.heard) == 1 and "the reference has other seeds, or more or fewer" in listener.heard[0]


@pytest.mark.parametrize("alone", ["ours", "local"])
def test_there_is_no_p_value_with_a_single_seed(tmp_path: Path, alone: str) -> None:
    contents = [result(name, 0, scores) for name, scores in (("ours", "1101"), ("local", "1001"))]
    one = rows(compare([write(tmp_path / "one", *contents)], reference="local"))["ours@2.0x"]["difference"]
    assert (one["mean"], one["paired"], one["seeds"], one["p"]) == (0.25, True, 1, None)
    contents += [result({"ours": "local", "local": "ours"}[alone], 1, "1001")]
    found = rows(compare([write(tmp_path / "r", *contents)], reference="local"))
    difference = found["ours@2.0x"]["difference"]
    assert difference["mean"] == pytest.approx(found["ours@2.0x"]["score"] - found["local@2.0x"]["score"])
    assert (difference["paired"], difference["seeds"], difference["p"]) == (False, 1, None)


def test_scores_that_belong_to_another_evaluation_are_not_used(tmp_path: Path) -> None:
    content = result("ours", 0, "1101", difference={"mean": -0.5, "se": 0.2})
    content["trimmed"]["accuracy"] = 0.5
    difference = rows(compare([write(tmp_path / "r", content)]))["ours@2.0x"]["difference"]
    assert (difference["mean"], difference["se"]) == (-0.5, 0.2)  # evaluate's own


def test_groups_are_tasks_data_and_splits(tmp_path: Path) -> None:
    contents = [
        result("ours", 0, "1101"),
        result("ours", 0, "1101", density="dense"),
        result("ours", 0, "1101", task="blip/vqa"),
        result("ours", 0, "1101", split="crowded"),
        result("ours", 0, "1101", ratio=3.0),
        result("learned_head", 0, "1101", ratio=None, retention=0.5),
    ]
    groups = compare([write(tmp_path / "r", *contents)])["groups"]
    found = [(group["task"], group["data"], group["split"]) for group in groups]
    assert found == [
        ("blip/vqa", "ordinary", "test"),
        ("meter/vqa", "dense", "test"),
        ("meter/vqa", "ordinary", "crowded"),
        ("meter/vqa", "ordinary", "test"),
    ]
    levels = [(row["method"], row["level"]) for row in groups[3]["rows"]]
    assert levels == [("ours", "2.0x"), ("ours", "3.0x"), ("learned_head", "0.5")]


def test_run_directories_are_named_by_their_recipes(tmp_path: Path) -> None:
    content = {key: result("", 0, "1101")[key] for key in ("metric", "split", "count", "full", "trimmed")}
    for part in ("full", "trimmed"):
        del content[part]["scores"]
    other = {**RECIPE, "seed": 2}
    run_folder(tmp_path / "runs" / "a", RECIPE, content, "1101")
    run_folder(tmp_path / "runs" / "b", other, content, "1101")
    report = compare([str(tmp_path / "runs"), str(tmp_path / "runs" / "a")])  # a counts once
    row = rows(report)["cross_modal+global_head-curriculum+budget_controller@2.0x"]
    assert (row["seeds"], row["speedup"]) == (2, 2.0)
    assert row["difference"]["paired"] is True  # from predictions.jsonl
    named = compare([f"mine={tmp_path / 'runs' / 'a'}"])
    assert list(rows(named)) == ["mine@2.0x"]
    assert (named["groups"][0]["task"], named["groups"][0]["data"]) == ("meter/vqa", "scenes")


def test_runs_on_other_data_or_with_the_same_seed_are_not_pooled(tmp_path: Path) -> None:
    content = result("", 0, "1101")
    del content["task"], content["method"], content["density"]
    dense = {**RECIPE, "task": {"name": "vqa", "data": {"name": "scenes", "grid": 8}}}
    run_folder(tmp_path / "a", RECIPE, content)
    run_folder(tmp_path / "b", RECIPE, content)
    run_folder(tmp_path / "c", dense, content)
    groups = compare([str(tmp_path)])["groups"]
    assert [group["data"] for group in groups] == ["scenes grid=4", "scenes grid=8"]
    assert [row["method"][-3:] for row in groups[0]["rows"]] == ["(a)", "(b)"]


@pytest.mark.parametrize(
    "task",
    [
        lambda place: {"name": "vqa", "data": {"name": "jsonl", "data_dir": place}},
        lambda place: {"name": "my.task", "data_dir": place},
    ],
)
def test_folders_of_own_data_are_other_data(task: Callable[[str], dict[str, Any]], tmp_path: Path) -> None:
    """Wherever they lie; a reader of an official layout finds the same in every folder."""
    content = result("", 0, "1101")
    del content["task"], content["method"], content["density"], content["seed"]
    for seed, place in enumerate(("here/birds", "there/birds", "here/cars")):
        run_folder(tmp_path / str(seed), {**RECIPE, "seed": seed, "task": task(place)}, content)
    groups = compare([str(tmp_path)])["groups"]
    assert [(group["data"].split("folder=")[1], group["rows"][0]["seeds"]) for group in groups] == [
        ("birds", 2),
        ("cars", 1),
    ]


def test_runs_of_other_recipes_are_no_repetitions(tmp_path: Path) -> None:
    """Two seeds of one method, but at another resolution and for more steps."""
    content = {**result("", 0, "1101"), "seed": None}
    del content["task"], content["method"], content["density"], content["seed"]
    longer = {**RECIPE, "seed": 2, "train": {"max_steps": 20}, "evaluate": {"batch_size": 2}}
    run_folder(tmp_path / "a", {**RECIPE, "train": {"max_steps": 10}, "evaluate": {"batch_size": 1}}, content)
    run_folder(tmp_path / "b", longer, content)
    listener = Listener()
    report = compare([str(tmp_path)], reporter=listener)
    assert [(row["method"][-3:], row["seeds"]) for row in report["groups"][0]["rows"]] == [
        ("(a)", 1),
        ("(b)", 1),
    ]
    assert any("not pooled, their recipes differ in train.max_steps" in text for text in listener.heard)


def test_a_name_before_a_long_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write(Path("r" * 255), result("ours", 0, "1101"))
    assert list(rows(compare([f"mine={folder}"]))) == ["mine@2.0x"]


def test_names_keep_what_follows_a_dot(tmp_path: Path) -> None:
    """Of run directories; a file loses its ending."""
    content = result("", 0, "1101")
    del content["task"], content["method"], content["density"]
    for rate in ("0.1", "0.3"):
        run_folder(tmp_path / f"vqa_lr{rate}", RECIPE, content)
    found = [row["method"] for row in compare([str(tmp_path)])["groups"][0]["rows"]]
    assert [name.partition("(")[2] for name in found] == ["vqa_lr0.1)", "vqa_lr0.3)"]
    assert result_name("results/a.b.json") == "a.b"


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for place, scores in (("a", "1101"), ("b", "0000")):
        write(tmp_path / place, result("ours", 0, scores))
    report = compare([str(tmp_path / "a"), str(tmp_path / "b")])
    assert list(rows(report)) == ["ours(a/0)@2.0x", "ours(b/0)@2.0x"]


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (["x/r", "y/s.json"], ["r", "s"]),
        (["r", "x/r"], ["r", "x/r"]),
        (["/x/a/r", "/y/a/r", "/y/b/r"], ["x/a/r", "y/a/r", "y/b/r"]),
        (["x/r", "x/r.json"], ["r 1", "r 2"]),
    ],
)
def test_names_have_as_much_of_the_path_as_it_takes(sources: list[str], names: list[str]) -> None:
    assert distinct_names(sources) == names


def test_a_reference_that_is_several_rows_is_said(tmp_path: Path) -> None:
    twice = [result("random", 1, scores) for scores in ("1100", "1000")]
    folder = write(tmp_path / "results", result("ours", 1, "1101"), result("ours", 2, "1111"), *twice)
    listener = Listener()
    report = compare([folder], reference="random", reporter=listener)
    assert all(row["difference"] is None for row in report["groups"][0]["rows"])
    assert any("--reference random is several rows" in text for text in listener.heard)


def test_a_model_without_trimming_is_compared_as_it_is(tmp_path: Path) -> None:
    content = {"metric": "accuracy", "split": "test", "count": 4, "full": {"accuracy": 0.9}}
    student = {**RECIPE, "pruning": None, "strategy": {"teacher": {"checkpoint": "x"}}}
    row = rows(compare([run_folder(tmp_path / "a", student, content)]))["ftkd@-"]
    assert (row["score"], row["full"], row["retained"], row["difference"]) == (0.9, None, None, None)


def test_failed_runs_and_other_files_are_left_out(tmp_path: Path) -> None:
    folder = write(tmp_path / "r", result("ours", 0, "1101"), {"error": "diverged"}, {"rates": [1, 2]})
    listener = Listener()
    report = compare([folder], reporter=listener)
    assert list(rows(report)) == ["ours@2.0x"]
    assert [text.split(":")[0] for text in listener.heard] == [
        "left out, the run failed",
        "left out, no result",
    ]


def test_further_splits_inside_a_result(tmp_path: Path) -> None:
    crowded = {key: result("", 0, "1000")[key] for key in ("metric", "count", "full", "trimmed", "speedup")}
    content = result("ours", 0, "1101", crowded={**crowded, "split": "crowded"})
    groups = compare([write(tmp_path / "r", content)])["groups"]
    found = [(group["split"], group["rows"][0]["method"], group["rows"][0]["score"]) for group in groups]
    assert found == [("crowded", "ours", 0.25), ("test", "ours", 0.75)]


def test_only_some_methods(tmp_path: Path) -> None:
    folder = write(tmp_path / "r", *(result(name, 0, "1101") for name in ("a", "b", "c")))
    report = compare([folder], reference="b", methods=["a"])
    assert list(rows(report)) == ["a@2.0x", "b@2.0x"]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("none", "no such run directory"),
        ("empty", "no results in it"),
        ("bad.json", "not valid JSON"),
        ("other.json", "no scores of a model"),
        ("run", "no results there yet"),
        ("failed.json", "no results there"),
    ],
)
def test_what_is_no_result(tmp_path: Path, target: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("seed: 1\n", encoding="utf-8")
    (tmp_path / "bad.json").write_text("{", encoding="utf-8")
    (tmp_path / "other.json").write_text("{}", encoding="utf-8")
    (tmp_path / "failed.json").write_text('{"error": "diverged"}', encoding="utf-8")
    with pytest.raises(UserError, match=message):
        compare([str(tmp_path / target)])


def test_unknown_methods_and_pictures_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "r", result("ours", 0, "1101"))
    with pytest.raises(UserError, match="methods: ours"):
        compare([folder], reference="theirs")
    with pytest.raises(UserError, match="no such method"):
        compare([folder], methods=["theirs"])
    with pytest.raises(UserError, match=r"ends in \.png or \.svg"):
        compare([folder], plot=tmp_path / "p.pdf")
    content = result("ours", 0, "1101", speedup={})
    del content["trimmed"]["gmacs"]
    with pytest.raises(UserError, match="nothing to draw"):
        compare([write(tmp_path / "x", content)], plot=tmp_path / "p.png")


def test_front() -> None:
    points: list[tuple[float | None, float]] = [
        (1, 0.5),
        (2, 0.6),
        (2, 0.55),
        (3, 0.6),
        (None, 1.0),
        (1, 0.5),
    ]
    assert front(points) == [True, True, False, False, False, True]


def test_the_full_model_counts_on_relative_axes(tmp_path: Path) -> None:
    """It beats what is slower and worse, beside published points, too."""
    group = compare([write(tmp_path / "results", result("ours", 1, "1101"))])["groups"][0]
    assert _panel(group, [], True, False).full == (1.0, 100.0)
    assert _panel(group, [], False, False).full == (4.0, 1.0)
    assert _panel(group, [], True, True).full is None  # nothing was timed


def test_latency_of_a_single_run_is_beside_that_of_its_full_model(tmp_path: Path) -> None:
    timed = result("ours", 1, "1101")
    for name, ms in (("full", 8.0), ("trimmed", 5.0)):
        timed[name]["latency_ms"] = {"p50": ms}
    group = compare([write(tmp_path / "one", timed)])["groups"][0]
    panel = _panel(group, [], False, True)
    assert [point.cost for point in panel.points] == [5.0] and panel.full == (8.0, 1.0)
    del timed["trimmed"], timed["speedup"]  # its full model is itself
    group = compare([write(tmp_path / "whole", timed)])["groups"][0]
    assert not _panel(group, [], False, True).points


def test_the_full_model_is_a_run_of_its_own_if_there_is_one(tmp_path: Path) -> None:
    """The best without trimming, but no student; else the mean of the runs, not of the rows."""
    trimmed = [result("ours", seed, "1101", full="1111") for seed in (1, 2, 3)]
    trimmed.append(result("local", 1, "1101", full="1000"))
    group = compare([write(tmp_path / "trimmed", *trimmed)])["groups"][0]
    panel = _panel(group, [], False, False)
    assert panel.full == pytest.approx((4.0, (3 * 1 + 0.25) / 4)) and panel.full_is_mean
    whole = [result(name, 1, "", full=full) for name, full in (("tuned", "1110"), ("before", "1000"))]
    student = result("ftkd", 1, "", full="1111") | {"full": side("1111", 2.0)}
    for content in (*whole, student):
        del content["trimmed"], content["speedup"]
    group = compare([write(tmp_path / "all", *trimmed, *whole, student)])["groups"][0]
    panel = _panel(group, [], False, False)
    assert panel.full == (4.0, 0.75) and not panel.full_is_mean


def test_runs_without_a_place_in_the_picture_are_named(tmp_path: Path) -> None:
    """A student has no full model of its own; the best run without trimming is the star."""
    student, tuned = (
        result(name, 1, "") | {"full": side("1110", cost)} for name, cost in (("ftkd", 2.0), ("tuned", 4.0))
    )
    nameless = result("old", 1, "1101", speedup={})
    for content in (student, tuned):
        del content["trimmed"], content["speedup"]
    del nameless["trimmed"]["gmacs"]
    folder = write(tmp_path / "results", result("ours", 1, "1101"), student, tuned, nameless)
    for published, said in (
        (True, "what they are relative to a full model of their own: ftkd, old"),
        (False, "what they cost: old"),
    ):
        listener = Listener()
        compare([folder], plot=tmp_path / "p.svg", published=published, reporter=listener)
        assert [text for text in listener.heard if "picture" in text] == [
            f"not in the picture, since it is not known {said}"
        ]
    with pytest.raises(UserError, match="no run has a cost relative to a full model of its own"):
        compare([write(tmp_path / "alone", student)], plot=tmp_path / "p.svg", published=True)


def test_published_points_are_those_of_the_paper() -> None:
    points = published_points({"meter/vqa", "blip/captioning"})
    assert {point["task"] for point in points} == {"meter/vqa", "blip/captioning"}
    found = {
        (p["method"], p["task"], p["ratio"]): (p["gmacs"], p["full_gmacs"], p["score"], p["full_score"])
        for p in points
    }
    assert found["SmartTrim", "meter/vqa", 2.0] == (26.2, 48.3, 76.44, 76.78)
    assert found["FTKD", "meter/vqa", 3.0] == (17.7, 48.3, 58.74, 76.78)
    assert found["SmartTrim", "blip/captioning", 1.5] == (173.5, 246.3, 129.1, 131.3)
    point = next(p for p in points if p["method"] == "SmartTrim" and p["ratio"] == 2.0)
    assert point["speedup"] == pytest.approx(1.84, abs=0.005)
    assert point["latency_speedup"] == pytest.approx(1.60, abs=0.005)
    assert not published_points({"meter/other"})
    assert "Table" in point["source"] and "torchprofile" in published_note()


def test_results_of_no_task_are_said_to_share_a_table(tmp_path: Path) -> None:
    contents = [result(name, 0, "1101") for name in ("a", "b")]
    for content in contents:
        del content["task"]
    listener = Listener()
    compare([write(tmp_path / "r", *contents)], reporter=listener)
    assert any("of which task they are" in text for text in listener.heard)


@pytest.mark.parametrize("published", [False, True])
def test_pictures(tmp_path: Path, published: bool) -> None:
    def with_latency(method: str, ratio: float) -> dict[str, Any]:
        content = result(method, 0, "1101", ratio=ratio)
        content["trimmed"] |= {"gmacs": 4 / ratio, "latency_ms": {"p50": 8 / ratio}}
        content["full"]["latency_ms"] = {"p50": 8.0}
        content["speedup"] = {"macs": ratio, "latency": ratio}
        return content

    contents = [with_latency(method, ratio) for method in ("smarttrim", "local") for ratio in (2.0, 3.0)]
    folder = write(tmp_path / "r", *contents, result("local", 0, "1001", task="meter/nlvr2"))
    picture = tmp_path / "new" / "p.png"
    report = compare([folder], plot=picture, published=published)
    assert report["plot"] == str(picture)
    assert Image.open(picture).width == 1440
    vector = tmp_path / "p.svg"
    compare([folder], plot=vector, published=published)
    assert "<svg" in vector.read_text(encoding="utf-8")


def test_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    name = r"_$\foo$"
    folder = write(tmp_path / "r", result(name, 0, "1101", density=name))
    picture = compare([folder], plot=tmp_path / "p.svg")["plot"]
    assert Path(picture).read_text(encoding="utf-8").count(f"<!-- {name} -->") == 1

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from smarttrim_cli.cli.app import app


def run(*arguments: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["compare", *arguments])
    assert result.exit_code == code, result.stderr
    return result


@pytest.fixture
def folder(tmp_path: Path) -> str:
    place = tmp_path / "results"
    place.mkdir()
    for method, score in (("ours", 0.95), ("a|b", 0.9)):
        content = {
            "method": method,
            "ratio": 2.0,
            "seed": 0,
            "task": "meter/vqa",
            "metric": "accuracy",
            "split": "test",
            "count": 400,
            "full": {"accuracy": 1.0, "gmacs": 0.02},
            "trimmed": {"accuracy": score, "accuracy_se": 0.011, "gmacs": 0.0099},
            "speedup": {"macs": 2.02},
            "difference": {"mean": score - 1, "se": 0.012},
        }
        (place / f"{method[0]}.json").write_text(json.dumps(content), encoding="utf-8")
    return str(place)


def test_text(folder: str) -> None:
    lines = run(folder).stdout.splitlines()
    assert lines[0] == "meter/vqa, test, 400 instances"
    assert lines[1].split("  ")[0] == "method" and "MMACs" in lines[1] and " ms" not in lines[1]
    cells = "ours 2.0x 1 9.9 2.02 1.0000 0.9500 ± 0.0110 95.0% -0.0500 ± 0.0120 1 seed *"
    assert " ".join(lines[4].split()) == cells


def test_markdown_and_file_by_its_ending(folder: str, tmp_path: Path) -> None:
    file = tmp_path / "new" / "table.md"
    run(folder, "-o", str(file))
    written = file.read_text(encoding="utf-8")
    assert written == run(folder, "--format", "markdown").stdout
    assert written.startswith("**meter/vqa, test, 400 instances**\n\n| method | level | seeds | MMACs |")
    assert r"| a\|b | 2.0x | 1 |" in written and "| 1 seed |" in written
    assert "no p where a side has 1 seed" in written


@pytest.mark.parametrize("form", ["text", "markdown"])
def test_several_seeds_have_errors_over_seeds_and_instances(folder: str, form: str) -> None:
    for file in Path(folder).glob("*.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        other = {**content, "seed": content["seed"] + 1}
        file.with_name(f"{file.stem}_again.json").write_text(json.dumps(other), encoding="utf-8")
    assert "score ± standard error over seeds and instances" in run(folder, "--format", form).stdout


def test_csv_and_json_are_unrounded(folder: str) -> None:
    rows = list(csv.DictReader(io.StringIO(run(folder, "--format", "csv").stdout)))
    assert [row["method"] for row in rows] == ["a|b", "ours"]
    assert (rows[1]["difference_p"], rows[1]["difference_seeds"]) == ("", "1")
    assert (rows[1]["score"], rows[1]["difference_se"], rows[1]["task"]) == ("0.95", "0.012", "meter/vqa")
    content = json.loads(run(folder, "--json").stdout)
    assert content == json.loads(run(folder, "--format", "json").stdout)
    assert content["groups"][0]["rows"][1]["gmacs"] == 0.0099
    assert content["groups"][0]["rows"][1]["difference"]["p"] is None


def test_published_and_reference(folder: str) -> None:
    text = run(folder, "--published", "--reference", "a|b", "--method", "ours").stdout
    assert "published, other data" in text and "minus a|b" in text
    assert "SmartTrim" in text and "Table 4" in text


def test_requirements(folder: str) -> None:
    run(folder, "--require", "ours@2.0x.retained>=0.94")
    failed = run(folder, "--require", "ours@2.0x.retained>=0.96", code=1)
    assert "it is 0.95" in failed.stderr


def test_requirements_of_groups_whose_names_have_signs_of_their_own(tmp_path: Path) -> None:
    for grid, score in ((4, 0.9), (8, 0.7)):
        content = {
            "method": "a < b == c",
            "task": "vqa",
            "recipe": {"task": {"data": {"name": "scenes", "grid": grid, "kinds": {"a": 1}}}},
            "trimmed": {"accuracy": score},
        }
        (tmp_path / f"{grid}.json").write_text(json.dumps(content), encoding="utf-8")
    for grid, score in ((4, 0.9), (8, 0.7)):
        name = f"vqa,scenes,grid={grid}:a_<_b_==_c@-.score"
        run(str(tmp_path), "--require", f"{name}>={score}", "--require", f"{name} == {score}")
        failed = run(str(tmp_path), "--require", f"{name}>{score}", code=1).stderr
        assert name in failed and f"it is {score}" in failed


@pytest.mark.parametrize("form", ["text", "markdown", "csv"])
def test_a_score_of_nothing_is_a_score(folder: str, form: str) -> None:
    for file in Path(folder).glob("*.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        content["trimmed"]["accuracy"] = 0.0
        file.write_text(json.dumps(content), encoding="utf-8")
    said = run(folder, "--format", form).stdout
    assert ("0.0%" in said) == (form != "csv")


def test_what_is_of_another_kind_deeper_inside(folder: str) -> None:
    file = next(Path(folder).glob("*.json"))
    content = json.loads(file.read_text(encoding="utf-8"))
    content["full"]["accuracy"] = "good"
    file.write_text(json.dumps(content), encoding="utf-8")
    assert f'error: {file}: full.accuracy is "good", not a number' in run(folder, code=2).stderr


def test_the_table_is_not_written_over_the_picture(folder: str, tmp_path: Path) -> None:
    same = str(tmp_path / "same.svg")
    said = run(folder, "--format", "text", "-o", same, "--plot", same, code=2).stderr
    assert "--output and --plot would write one file" in said and not Path(same).exists()


def test_mistakes(folder: str, tmp_path: Path) -> None:
    assert "no such run directory" in run(str(tmp_path / "none"), code=2).stderr
    assert "contradict" in run(folder, "--json", "--format", "csv", code=2).stderr
    assert "--reference x" in run(folder, "--reference", "x", code=2).stderr
    run(code=2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"full": 0.6}, "full is 0.6, not an object"),
        ({"speedup": 2.0}, "speedup is 2.0, not an object"),
        ({"speedup": {"macs": "2x"}}, 'speedup.macs is "2x", not a number'),
        ({"split": ["test"]}, 'split is ["test"], not a text'),
        ({"difference": [1]}, "difference is [1], not an object"),
        ({"seed": "one"}, 'seed is "one", not a whole number'),
        ({"trimmed": {"accuracy": 0.5, "scores": ["a", "b"]}}, 'trimmed.scores is ["a", "b"], not a list of'),
        ({"trimmed": {"accuracy": 0.5, "gmacs": -1}}, "trimmed.gmacs is -1, not a number of at least 0"),
        ({"trimmed": {"accuracy": float("nan")}}, "trimmed.accuracy is NaN, not a number"),
        ({"metric": ["a"]}, 'metric is ["a"], not a text'),
        ({"trimmed": {"accuracy": 0.5, "scores": "0x1"}}, 'trimmed.scores is "0x1", not a list of'),
    ],
)
def test_results_of_another_kind_are_refused_by_key(
    tmp_path: Path, content: dict[str, Any], message: str
) -> None:
    file = tmp_path / "r.json"
    file.write_text(json.dumps({"trimmed": {"accuracy": 0.5}, **content}), encoding="utf-8")
    assert run(str(file), code=2).stderr.startswith(f"error: {file}: {message}")


def test_an_ending_without_a_form(folder: str, tmp_path: Path) -> None:
    table = tmp_path / "table.xlsx"
    assert ".txt, .md, .csv, .json" in run(folder, "--output", str(table), code=2).stderr
    run(folder, "--output", str(table), "--format", "csv")
    assert table.read_text(encoding="utf-8").startswith("task,")


def test_a_plot_that_cannot_be_written_is_refused_first(folder: str) -> None:
    assert "--plot" in run(folder, "--plot", f"{folder}/o.json/x.png", code=2).stderr

"""What a command inherits: streams that take nothing, or not everything, and a notebook's environment."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

RESULT = {"full": {"accuracy": 0.9}, "trimmed": {"accuracy": 0.8, "accuracy_se": 0.01}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/recipe.yaml").write_text("seed: 1\n", encoding="utf-8")
    (tmp_path / "run/summary.json").write_text(json.dumps(RESULT), encoding="utf-8")
    return tmp_path


def shell(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    """A command line in which ``smarttrim`` is this one."""
    root = Path(__file__).parents[2]
    script = f'smarttrim() {{ PYTHONPATH="{root}" "{sys.executable}" -m smarttrim_cli "$@"; }}\n{command}'
    return subprocess.run(["sh", "-c", script], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams(folder: Path, closed: str) -> None:
    done = shell(folder, f"smarttrim summary run -o out.json {closed}")
    assert (done.returncode, done.stderr) == (0, "")
    assert ("accuracy" in done.stdout) == (closed == "2>&-")
    assert json.loads((folder / "out.json").read_text(encoding="utf-8"))["trimmed"] == RESULT["trimmed"]


def test_errors_on_a_closed_stream(folder: Path) -> None:
    done = shell(folder, "smarttrim summary none 2>&-")
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
@pytest.mark.parametrize("command", ["summary run -o out.json", "compare run -o out.json"])
def test_a_full_stdout_is_named_and_the_file_is_written(folder: Path, command: str) -> None:
    done = shell(folder, f"smarttrim {command} > /dev/full")
    assert done.returncode == 1 and done.stderr.startswith("error: the disk is full: standard output\n")
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert json.loads((folder / "out.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("command", ["summary run -o out.json", "compare run -o out.json"])
def test_the_file_is_written_when_the_reader_has_left(folder: Path, command: str) -> None:
    done = shell(folder, f"mkfifo pipe; true < pipe & smarttrim {command} > pipe; echo $?")
    assert "Traceback" not in done.stderr
    assert json.loads((folder / "out.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "environment", ["PYTHONIOENCODING=ascii", "LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0"]
)
def test_plain_ascii(folder: Path, environment: str) -> None:
    done = shell(folder, f"export {environment}; smarttrim compare run --format markdown")
    assert done.returncode == 0 and done.stdout.isascii()
    assert "0.8000 +/- 0.0100" in done.stdout


def test_a_notebooks_way_of_showing_pictures(folder: Path) -> None:
    environment = "MPLBACKEND=of_another_python"
    costs = {"full": {"gmacs": 2.0}, "trimmed": {"gmacs": 1.0}}
    result = {name: {**scores, **costs[name]} for name, scores in RESULT.items()}
    (folder / "run/summary.json").write_text(json.dumps(result), encoding="utf-8")
    done = shell(folder, f"export {environment}; smarttrim compare run --plot pareto.png")
    assert (done.returncode, done.stderr) == (0, "")
    assert (folder / "pareto.png").is_file()

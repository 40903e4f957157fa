"""The benchmark of counting runs on a small model and writes what it says; its figures mean nothing there."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    output, threads = tmp_path / "counting.json", torch.get_num_threads()
    importlib.import_module("costs_of_counting").main(
        ["--quick", "--rounds", "2", "--threads", str(threads), "--output", str(output)]
    )
    result = json.loads(output.read_text("utf-8"))
    assert {"device_name", "threads", "torch"} <= set(result["environment"])
    measured = result["quickstart"]
    assert set(measured["milliseconds"]) == {"forward", "noting", "computing", "per_batch"}
    assert all(value > 0 for value in measured["milliseconds"].values())
    assert measured["share"] == measured["shares"]["noting"] + measured["shares"]["computing"]
    assert "noting and computing" in capsys.readouterr().out
    assert set(result) == {"environment", "rounds", "quickstart"}

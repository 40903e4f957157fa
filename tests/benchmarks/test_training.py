"""The training benchmark runs on tiny models and writes what it says; its figures mean nothing there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import training

RATIOS = ("time_ratio", "cpu_ratio", "activations_ratio", "peak_ratio")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict:
    output: Path = tmp_path_factory.mktemp("benchmark") / "training.json"
    training.main(["--quick", "--batch-size", "2", "--rounds", "1", "--output", str(output)])
    return json.loads(output.read_text("utf-8"))


@pytest.mark.parametrize("name", ["meter", "blip"])
def test_what_it_was_measured_on(result: dict, name: str) -> None:
    known = {"device_name", "threads", "torch", "transformers", "timm"}
    assert known <= set(result[name]["environment"])
    assert (result[name]["batch_size"], result[name]["rounds"]) == (2, 1)


@pytest.mark.parametrize("name", ["meter", "blip"])
def test_every_step_has_its_figures(result: dict, name: str) -> None:
    steps = result[name]["steps"]
    assert list(steps) == ["plain", "trimmed", "distilled"]
    for values in steps.values():
        assert values["seconds"] > 0 and values["peak_mb"] >= values["activations_mb"] > 0
    assert all(steps["plain"][ratio] == 1.0 for ratio in RATIOS)
    held = [values["activations_mb"] for values in steps.values()]
    assert held[0] < held[1] < held[2]


@pytest.mark.parametrize("name", ["meter", "blip"])
def test_trimmers_drop_something(result: dict, name: str) -> None:
    groups = result[name]["groups"]
    assert "token.vision" in groups and "head.vision" in groups
    assert all(0 < one["target"] < 1 and 0 < one["kept"] <= 1 for one in groups.values())
    assert groups["token.vision"]["kept"] < 0.9

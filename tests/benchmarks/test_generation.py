"""The benchmark of generation on a tiny model: it runs, and what it compares writes the same texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import generation


def test_quick(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "generation.json"
    arguments = ["--quick", "--rounds", "1", "--image-size", "32", "--batch-size", "1", "3", "--beams", "3"]
    generation.main([*arguments, "--new-tokens", "4", "--output", str(file)])
    result = json.loads(file.read_text("utf-8"))
    assert result["environment"]["device"] and result["new_tokens"] == 4
    assert [case["batch"] for case in result["cases"]] == [1, 3]
    printed = capsys.readouterr().out
    for case in result["cases"]:
        assert set(case["texts_as_transformers"].values()) == {case["batch"]}
        found = case["contenders"]
        names = ["full", "1.5x", "2.0x"]
        assert list(found) == ["transformers", *names, *(f"{name}, prepared" for name in names)]
        assert all(name in printed for name in found)
        assert found["transformers"]["over_transformers"] == found["full"]["over_full"] == 1
        assert found["full"]["gmacs"] == found["full, prepared"]["gmacs"] > 0


def test_the_ratio_is_the_median_of_the_rounds() -> None:
    rounds = {
        "transformers": [(1.0, 8.0, 9.0), (1.0, 6.0, 9.0), (1.0, 9.0, 8.0)],
        "full": [(1.0, 4.0, 3.0), (1.0, 2.0, 9.0), (1.0, 9.0, 2.0)],
    }
    times = {name: [generation.Times(*each) for each in own] for name, own in rounds.items()}
    write = torch.zeros
    entered = {"transformers": generation.Contender(write), "full": generation.Contender(write, 2.0)}
    line = generation.line("full", times, entered, steps=4)
    assert line["over_transformers"] == 2.0  # of 2, 3 and 1
    assert line["cpu_over_transformers"] == 3.0  # of 3, 1 and 4
    assert line["ms"] == 4.0 and line["first_ms"] == 1.0 and line["step_ms"] == 1.0
    assert line["macs_ratio"] == 1.0 and line["over_full"] == 1.0

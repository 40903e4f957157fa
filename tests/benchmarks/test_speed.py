"""The benchmarks of latency and batches run on tiny models; their figures mean nothing there."""

from __future__ import annotations

import json
from pathlib import Path

import batch
import growth
import keep_all
import kernels
import latency
import pytest
import torch
import varying
from _full_size import in_proportion


@pytest.mark.parametrize("name", ["meter", "blip"])
def test_latency(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "latency.json"
    threads = str(torch.get_num_threads())
    latency.main(["--quick", "--backbone", name, "--threads", threads, "--output", str(file)])
    found = json.loads(file.read_text("utf-8"))["backbones"][name]
    rows = found["rows"]
    kinds = ("", ", static heads", ", few trimmers")
    with_oracle = {f"{speedup}x{kind}" for speedup in (1.3, 1.5) for kind in kinds}
    assert with_oracle == {label for label, row in rows.items() if "over_oracle" in row}
    decided = {f"{label}, decided" for label in ("keep all", "1.3x", "1.5x")}
    others = {"keep all", "no image", "tokens 1.3x", "tome 1.3x", "trips 1.3x"}
    assert set(rows) == with_oracle | decided | others
    assert rows["1.5x"]["macs"] > rows["1.3x"]["macs"] > 1
    assert rows["1.5x, decided"]["macs"] == rows["1.5x"]["macs"]
    assert rows["tome 1.3x"]["macs"] == pytest.approx(1.3, rel=0.1)
    assert rows["1.5x"]["promise"] == pytest.approx(rows["1.5x"]["speedup"] / rows["1.5x"]["macs"])
    assert rows["1.5x"]["in_proportion"] > 0 and "in_proportion" not in rows["no image"]
    assert rows["1.5x"]["over_oracle"] > 0
    assert rows["1.5x"]["oracle_promise"] > 0
    assert "over oracle" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["meter", "blip"])
def test_growth(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "growth.json"
    threads = str(torch.get_num_threads())
    growth.main(["--quick", "--backbone", name, "--threads", threads, "--output", str(file)])
    found = json.loads(file.read_text("utf-8"))["backbones"][name]
    assert list(found["sparsity"]) == ["0.0", "0.2"] and list(found["image_size"]) == ["32"]
    points = [*found["sparsity"].values(), *found["image_size"].values()]
    assert all(value > 0 for point in points for value in point.values())
    assert f"{name}, image_size" in capsys.readouterr().out


def test_batch(tmp_path: Path) -> None:
    file = tmp_path / "batch.json"
    threads = str(torch.get_num_threads())
    common = ["--quick", "--threads", threads, "--output", str(file)]
    batch.main(["--backbone", "meter", *common])
    rows = json.loads(file.read_text("utf-8"))["backbones"]["meter"]["3"]
    trimmed = ["1.3x", "tokens 1.3x", "1.3x, static heads", "1.3x, each alone"]
    assert set(rows) == {"full", "no image", *trimmed}
    assert all(rows[label]["in_proportion"] > 0 for label in trimmed)
    assert rows["no image"]["macs"] > rows["1.3x"]["macs"] and "in_proportion" not in rows["no image"]
    assert rows["1.3x"]["kept_tokens"]["fewest"] <= rows["1.3x"]["kept_tokens"]["most"]
    assert rows["1.3x"]["gmacs"] == pytest.approx(rows["1.3x, each alone"]["gmacs"])
    batch.main(["--backbone", "blip", "--few-trimmers", "--add", *common])
    both = json.loads(file.read_text("utf-8"))["backbones"]
    assert both["meter"]["3"] == rows
    assert set(both["blip"]["3"]) == {"full", "1.3x, few trimmers", "no image"}
    file.write_text(json.dumps({"environment": {}, "backbones": {}}), "utf-8")
    with pytest.raises(SystemExit, match="measured elsewhere"):
        batch.main(["--backbone", "blip", "--few-trimmers", "--add", *common])


@pytest.mark.parametrize("name", ["meter", "blip"])
def test_keep_all(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keep_all.json"
    threads = str(torch.get_num_threads())
    common = ["--quick", "--rounds", "2", "--threads", threads, "--output", str(file)]
    keep_all.main(["--backbone", name, *common])
    found = json.loads(file.read_text("utf-8"))["backbones"][name]
    few, paper = found["few trimmers"], found["paper's trimmers"]
    assert 0 < few["trimmers"] < paper["trimmers"]
    for row in (few, paper):
        assert row["quartiles"][0] <= row["share"] <= row["quartiles"][1]
    assert f"{name}, {few['trimmers']} few trimmers: " in capsys.readouterr().out


def test_unlike_instances_differ_in_their_images_alone() -> None:
    alike = [
        {"pixel_values": torch.zeros(1, 3, 8, 8), "input_ids": torch.tensor([[index]])} for index in range(5)
    ]
    made = varying.unlike(alike)
    assert [int(one["input_ids"]) for one in made] == [0, 1, 2, 3, 4]
    rows = [one["pixel_values"].std(dim=2).mean() for one in made]  # contrast, whatever the side's brightness
    assert all(later > 1.5 * before for before, later in zip(rows, rows[1:], strict=False))


def test_varying(tmp_path: Path) -> None:
    file = tmp_path / "varying.json"
    common = ["--quick", "--count", "6", "--parts", "2", "--threads", str(torch.get_num_threads())]
    varying.main(["--backbone", "meter", *common, "--output", str(file)])
    found = json.loads(file.read_text("utf-8"))["backbones"]["meter"]
    assert found["instances"] == 6 and len(found["first_over_again"]) == 2
    low, middle, high = found["gmacs"]
    assert 0 < low <= middle <= high


def test_in_proportion_by_hand() -> None:
    """The full model takes 100 and does 100; without an image it takes 40 and does 20."""
    without = {"speedup": 100 / 40, "macs": 100 / 20}
    assert in_proportion(without, 100 / 60) == pytest.approx((100 / 70) / (100 / 60))  # halfway
    assert in_proportion(without, 1.0) == pytest.approx(1.0)
    assert in_proportion(without, without["macs"]) == pytest.approx(without["speedup"] / without["macs"])


def test_kernels(tmp_path: Path) -> None:
    file = tmp_path / "kernels.json"
    threads = str(torch.get_num_threads())
    kernels.main(["--quick", "--repeats", "2", "--threads", threads, "--output", str(file)])
    found = json.loads(file.read_text("utf-8"))
    assert all(row["torch"] > 0 and row["prepared"] > 0 for row in found["linear"])
    assert [row["kept"] for row in found["heads"]] == [10, 8, 6]

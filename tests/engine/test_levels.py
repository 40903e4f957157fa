"""How far results are trimmed: levels that are named or measured, and which results are repetitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from smarttrim_cli.engine.compare import compare
from smarttrim_cli.engine.levels import Level, levels
from smarttrim_cli.engine.results import read_results
from tests.engine.test_compare import result, rows, write


def test_seeds_whose_measured_ratios_round_apart_are_one_row(tmp_path: Path) -> None:
    measured = []
    for seed, speedup in enumerate((1.948, 1.952, 1.949, 1.953, 2.9)):
        content = result("ours", seed, "1101", ratio=None, speedup={"macs": speedup})
        measured.append(content)
    folder = write(tmp_path / "results", *measured, result("trips", 1, "1100", ratio=2.0))
    report = compare([folder], reference="trips")
    found = rows(report)
    assert {name: row["seeds"] for name, row in found.items()} == {
        **{"ours@2.0x": 4, "ours@2.9x": 1, "trips@2.0x": 1},
        **{name: 1 for name in found if name.startswith("full")},
    }
    assert found["ours@2.0x"]["difference"] is not None


def test_measured_ratios_of_other_recipes_or_of_one_seed_stay_apart(tmp_path: Path) -> None:
    same = [result("ours", 1, "1101", ratio=None, speedup={"macs": speedup}) for speedup in (1.948, 1.952)]
    longer = result("ours", 2, "1101", ratio=None, speedup={"macs": 1.95}, recipe={"train": {"max_steps": 9}})
    shorter = result(
        "ours", 3, "1101", ratio=None, speedup={"macs": 1.96}, recipe={"train": {"max_steps": 8}}
    )
    assert [str(level) for level in levels_of(tmp_path / "same", *same)] == ["1.9x", "2.0x"]
    assert [str(level) for level in levels_of(tmp_path / "other", longer, shorter)] == ["1.9x", "2.0x"]


def levels_of(folder: Path, *contents: dict[str, Any]) -> list[Level]:
    found, _ = read_results([write(folder, *contents)])
    return levels(found)


@pytest.mark.parametrize(("one", "other", "near"), [(1.9, 2.0, True), (3.8, 4.0, True), (1.89, 2.0, False)])
def test_levels_within_five_percent_are_compared(one: float, other: float, near: bool) -> None:
    assert Level("ratio", one).near(Level("ratio", other)) is near
    assert not Level("retention", one).near(Level("ratio", other))

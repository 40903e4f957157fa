"""The study's scores against time: that of the full-size models at the same share of MACs (latency.json).

The scenes' models are so small that trimming saves them no time, so time is not measured on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from _study_cells import Cell, Cells
from _study_pool import read_json
from _study_table import ROOT
from _study_tables import markdown, with_error

LATENCY = ROOT / "docs/results/latency.json"
ROWS = {
    "smarttrim": "tokens {}x",  # the study trims no heads by it
    "steady": "tokens {}x",
    "ours": "tokens {}x",
    "ours_all": "{}x, static heads",
    "ours_half": "{}x, few trimmers",
    "tome": "tome {}x",
    "trips": "trips {}x",
}
"""Method to the row of ``latency.py`` that trims as it does."""
_BACKBONES = {"meter_vqa": "meter", "blip_vqa": "blip"}


class Timed(NamedTuple):
    """A method's score, and what the full-size model takes at its ratio."""

    cell: Cell
    time: float
    """Trimmed over full."""


def timed(cells: Cells, base: str, path: Path = LATENCY) -> Iterator[Timed]:
    """Methods of a base whose trimming has been timed at the same ratio.

    Args:
        cells: Results of the study.
        base: Base recipe; others than VQA have no times.
        path: JSON of ``latency.py``.
    """
    measured: dict[str, Any] = (read_json(path) or {}).get("backbones", {})
    rows = measured.get(_BACKBONES.get(base, ""), {}).get("rows", {})
    for cell in cells.of(base, ["method"]):
        row = rows.get(ROWS.get(cell.method, "").format(cell.at))
        if row is not None:
            yield Timed(cell, 1 / row["speedup"])


def latency_table(cells: Cells, base: str) -> list[str]:
    """Method, ratio, time of the full-size model, score; the fastest last."""
    rows = [
        (one.cell.first["label"], f"{one.cell.at}x", f"{one.time:.0%}", with_error(one.cell.score()))
        for one in sorted(timed(cells, base), key=lambda one: -one.time)
    ]
    return markdown(["method", "fewer MACs", "time", "score"], rows) if rows else []

"""The study's table in README.md: accuracy of every method at a few ratios, from the results."""

from __future__ import annotations

from pathlib import Path

from _study_cells import Cell, Cells
from _study_table import ROOT
from _study_tables import half_up, markdown

from smarttrim_cli.engine.files import write_text

README = ROOT / "README.md"
BEGIN, END = "<!-- study:begin -->", "<!-- study:end -->"
_COLUMNS = (("meter_vqa", 2.0), ("meter_vqa", 3.0), ("meter_vqa_dense", 2.5))
_NAMES = {"meter_vqa": "ordinary scenes", "meter_vqa_dense": "dense scenes"}
_SHOWN_TOO = ("ours_local", "smarttrim_long", "ours_long", "ours_words_long", "ours_all_long")
_NOT_SHOWN = ("checkpoint", "trips_plain", "low_resolution")


def write_readme(cells: Cells, path: Path = README) -> None:
    """Rewrite the table."""
    write_text(path, updated(path.read_text(encoding="utf-8"), cells))


def updated(readme: str, cells: Cells) -> str:
    """README with the current table."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return "\n".join([f"{before}{BEGIN}", *study_table(cells), f"{END}{after}"])


def study_table(cells: Cells) -> list[str]:
    """Methods by ratio: accuracy in percent with its standard error, and the number of seeds."""
    methods: dict[str, Cell] = {}
    for base, _ in _COLUMNS:
        for cell in cells.of(base, ["full", "method", "switch"]):
            wanted = cell.method not in _NOT_SHOWN and cell.first["kind"] != "switch"
            if wanted or cell.method in _SHOWN_TOO:
                methods.setdefault(cell.method, cell)
    rows = []
    for method, named in methods.items():
        full = named.at is None
        found = [cells.get(base, method, None if full else ratio) for base, ratio in _COLUMNS]
        if any(found):
            rows.append([named.first.get("label", method), *(_percent(cell) for cell in found)])
    head = [f"{_NAMES[base]}, {ratio:g}x fewer MACs" for base, ratio in _COLUMNS]
    return markdown(["accuracy, %", *head], rows) if rows else []


def _percent(cell: Cell | None) -> str:
    score = cell.score() if cell else None
    if cell is None or score is None:
        return "-"
    seeds = f", {len(cell.results)} seeds" if len(cell.results) > 1 else ""
    off = "" if cell.within else f" at {cell.speedup:.2f}x"
    mean, error = (100 * half_up(value) for value in (score.mean, score.standard_error))
    return f"{mean:.1f} ± {error:.1f}{seeds}{off}"

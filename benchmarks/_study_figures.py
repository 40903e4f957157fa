"""The study's pictures: score against MACs, heads kept against score, and what is kept layer by layer."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _study_cells import Cell, Cells
from _study_latency import timed

from smarttrim_cli.engine.figures.canvas import (
    BLUE,
    DPI,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    style,
)
from smarttrim_cli.engine.figures.pareto import Panel, Point, draw_pareto
from smarttrim_cli.engine.files import write_bytes

_COLORS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, MUTED, INK)
_KINDS = {"relevant": BLUE, "other": ORANGE, "background": MUTED}


def pareto(path: Path, cells: Cells, bases: dict[str, str]) -> bool:
    """A panel per base: score against GMACs.

    Args:
        path: PNG file.
        cells: The results.
        bases: Base to the title of its panel.

    Returns:
        Whether there was something to draw.
    """
    panels = []
    for base, title in bases.items():
        points = [
            Point(cell.first["label"], cell.gmacs, score.mean, _bar(score.standard_error))
            for cell in cells.of(base, ["method"])
            if cell.gmacs is not None and (score := cell.score()) is not None
        ]
        if points:
            panels.append(
                Panel(title, "GMACs per instance", _metric(cells, base), points, (), _full(cells, base))
            )
    if panels:
        draw_pareto(path, [panels[start : start + 2] for start in range(0, len(panels), 2)])
    return bool(panels)


def latency(path: Path, cells: Cells, bases: dict[str, str]) -> bool:
    """A panel per base: score against the time that the full-size model takes at the same ratio."""
    panels = []
    for base, title in bases.items():
        points = [
            Point(cell.first["label"], time, score.mean, _bar(score.standard_error))
            for cell, time in timed(cells, base)
            if (score := cell.score()) is not None
        ]
        if points:
            full = _full(cells, base)
            panels.append(
                Panel(
                    title,
                    "time of the full-size model, share of the whole",
                    _metric(cells, base),
                    points,
                    (),
                    full and (1.0, full[1]),
                )
            )
    if panels:
        draw_pareto(path, [panels])
    return bool(panels)


def _full(cells: Cells, base: str) -> tuple[float, float] | None:
    cell = cells.reference(base)
    score = cell.score() if cell else None
    return (cell.gmacs, score.mean) if cell and cell.gmacs is not None and score else None


def _metric(cells: Cells, base: str) -> str:
    return cells.of(base, ["method", "full"])[0].metric


def heads(path: Path, cells: Cells, base: str) -> bool:
    """Score against the share of heads kept, a line per method; without fine-tuning dashed."""
    there = cells.of(base, ["head"])
    methods = list(dict.fromkeys(cell.method for cell in there))
    if not there:
        return False
    figure, (axes,) = _figure(7.2, 4.2, 1)
    colors = dict(zip(dict.fromkeys(map(_plain, methods)), _COLORS, strict=False))
    for method in methods:
        own = sorted((cell for cell in there if cell.method == method), key=lambda cell: cell.at or 0.0)
        scores = [(cell.at, score) for cell in own if (score := cell.score()) is not None]
        axes.errorbar(
            [at for at, _ in scores],
            [score.mean for _, score in scores],
            yerr=[_bar(score.standard_error) for _, score in scores],
            label=own[0].first["label"],
            color=colors[_plain(method)],
            linestyle="-" if _plain(method) == method else (0, (4, 2)),
            marker="o",
            markersize=4.5,
            capsize=2,
        )
    full = _full(cells, base)
    if full is not None:
        axes.axhline(full[1], color=INK, linewidth=0.8, linestyle=(0, (1, 2)), label="full model")
    axes.set_xlabel("share of heads kept")
    axes.set_ylabel(there[0].metric)
    figure.legend(frameon=False, fontsize=8.5, loc="outside right upper", handlelength=3.5)
    _save(figure, path)
    return True


def _plain(method: str) -> str:
    return method.removesuffix("_free").removesuffix("_frozen")


def relevance(path: Path, cells: Cells, base: str, at: float, most: int = 9) -> list[str]:
    """Share kept of relevant, other-object and background patches by layer, a panel per method.

    Returns:
        Labels of the methods drawn: the first ``most`` that were measured.
    """
    there = [cell for cell in cells.of(base, ["method"]) if cell.at == at and "relevance" in cell.first][
        :most
    ]
    if not there:
        return []
    columns = min(len(there), 3)
    rows = math.ceil(len(there) / columns)
    figure, panels = _figure(3.4 * columns, 2.9 * rows, columns, rows)
    for cell, axes in zip(there, panels, strict=False):
        _curves(axes, cell)
        axes.set_title(textwrap.fill(cell.first["label"], 30), loc="left", fontsize=9.5, fontweight="bold")
    for axes in panels[len(there) :]:
        axes.set_visible(False)
    panels[0].set_ylabel("share of patches kept")
    panels[0].legend(frameon=False, fontsize=8.5)
    _save(figure, path)
    return [cell.first["label"] for cell in there]


def _curves(axes: Any, cell: Cell) -> None:
    layers = list(cell.first["relevance"])
    for kind, color in _KINDS.items():
        means = []
        for layer in layers:
            values = [result["relevance"].get(layer, {}).get(kind) for result in cell.results]
            known = [value for value in values if value is not None]
            means.append(sum(known) / len(known) if known else math.nan)
        axes.plot(range(len(layers)), means, color=color, label=kind, marker="o", markersize=3.5)
    axes.set_xticks(range(len(layers)), [layer.rpartition(".")[2] for layer in layers])
    axes.set_xlabel("vision layer")
    axes.set_ylim(-0.03, 1.03)


def _bar(error: float) -> float:
    return 0.0 if math.isnan(error) else error


def _figure(width: float, height: float, columns: int, rows: int = 1) -> tuple[Any, Sequence[Any]]:
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False)
        for axes in panels.flat:
            axes.grid(True)
    return figure, list(panels.flat)


def _save(figure: Any, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    with style():
        FigureCanvasAgg(figure)
        figure.savefig(buffer, format="png", metadata={"Software": None})
    write_bytes(path, buffer.getvalue())

"""Score against cost, a colour and a marker per method, with error bars and the Pareto front."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smarttrim_cli.engine.figures.canvas import (
    BLUE,
    DPI,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    PURPLE,
    SKY,
    VERMILION,
    style,
)
from smarttrim_cli.engine.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH, _HIGH, _ROW, _LEFT, _GAP, _MARGIN, _BELOW = 10.0, 3.3, 4.3, 0.75, 0.95, 0.3, 0.15
_MOST_COLUMNS, _LONG = 6, 45
_FRONT, _DASHES = "#c6cdd5", (0, (4, 3))
_COLORS = (VERMILION, BLUE, GREEN, ORANGE, PURPLE, SKY, "#882255", "#8c8a2b", "#332288", "#7a828c", "#117733")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
_FIRST = ("smarttrim", "ours")
_FONT = 10.5


@dataclass(frozen=True)
class Point:
    """A method at one cost; ``error`` is a standard error of the score."""

    method: str
    cost: float
    score: float
    error: float | None = None
    published: bool = False


@dataclass(frozen=True)
class Panel:
    """One plot.

    Attributes:
        published: Points of other data, drawn hollow; they do not count for the front.
        full: Cost and score of the full model.
        full_is_mean: Whether that is the mean of runs with their trimmers off, drawn hollow.
        less_is_better: Of the cost axis; else it is a reduction, and more is better.
    """

    title: str
    x_label: str
    y_label: str
    points: Sequence[Point]
    published: Sequence[Point] = field(default_factory=tuple)
    full: tuple[float, float] | None = None
    full_is_mean: bool = False
    less_is_better: bool = True


def draw_pareto(path: Path, rows: Sequence[Sequence[Panel]]) -> Path:
    """Draw rows of panels under one legend.

    Args:
        path: PNG or SVG file; it is complete or absent.
        rows: At least one panel, at most two in a row.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [panel for row in rows for panel in row]
    looks = _looks(panels)
    columns = max(map(len, rows))
    width = (_WIDTH - 2 * _MARGIN - columns * _LEFT - (columns - 1) * (_GAP - _LEFT)) / columns
    with style(), rc_context({"text.parse_math": False}):  # names are drawn as they are
        figure = Figure(figsize=(_WIDTH, 1.0), dpi=DPI, facecolor=PAPER)
        FigureCanvasAgg(figure)
        *legends, (_, end) = _legends(figure, looks, panels)
        top = end + 0.1
        height = top + len(rows) * _ROW + 0.05
        figure.set_size_inches(_WIDTH, height)
        for legend, y in legends:
            legend.set_bbox_to_anchor((_MARGIN / _WIDTH, 1 - y / height))
        for y, row in enumerate(rows):
            for x, panel in enumerate(row):
                left = _MARGIN + _LEFT + x * (width + _GAP)
                below = top + y * _ROW + 0.3 + _HIGH
                frame = (left / _WIDTH, 1 - below / height, width / _WIDTH, _HIGH / height)
                _draw(figure.add_axes(frame), panel, looks)
        kind = path.suffix.lower().removeprefix(".")
        buffer = io.BytesIO()
        metadata: dict[str, Any] = {"Software": None} if kind == "png" else {"Date": None}
        figure.savefig(buffer, format=kind, dpi=DPI, facecolor=PAPER, metadata=metadata)
    write_bytes(path, buffer.getvalue())
    return path


def _looks(panels: Sequence[Panel]) -> dict[str, tuple[str, str]]:
    """Colour and marker of every method; a published method looks like ours of the same name."""
    methods = dict.fromkeys(point.method for panel in panels for point in panel.points)
    methods |= dict.fromkeys(
        point.method
        for panel in panels
        for point in panel.published
        if point.method.lower() not in {method.lower() for method in methods}
    )
    names = sorted(methods, key=lambda name: (name not in _FIRST, name.lower()))
    cycle = zip(itertools.cycle(_COLORS), itertools.cycle(_MARKERS), strict=False)
    return {name.lower(): look for name, look in zip(names, cycle, strict=False)}


def _draw(axes: Axes, panel: Panel, looks: dict[str, tuple[str, str]]) -> None:
    axes.grid(True)
    axes.tick_params(length=0, labelsize=_FONT - 0.5)
    axes.set_title(panel.title, loc="left", fontsize=_FONT + 1, fontweight="bold", color=INK, pad=9)
    axes.set_xlabel(panel.x_label, fontsize=_FONT)
    axes.locator_params(axis="x", nbins=5)
    axes.set_ylabel(panel.y_label, fontsize=_FONT)
    _draw_front(axes, panel)
    if panel.full is not None:
        inside = PAPER if panel.full_is_mean else INK
        axes.plot(
            *panel.full,
            marker="*",
            markersize=14,
            color=INK,
            markerfacecolor=inside,
            linestyle="none",
            zorder=4,
        )
        axes.axhline(panel.full[1], color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    elif not panel.less_is_better:
        axes.axhline(100, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    for published, points in ((False, panel.points), (True, panel.published)):
        for method in dict.fromkeys(point.method for point in points):
            color, marker = looks[method.lower()]
            own = sorted((point for point in points if point.method == method), key=lambda p: p.cost)
            axes.errorbar(
                [point.cost for point in own],
                [point.score for point in own],
                yerr=[point.error or 0.0 for point in own] if not published else None,
                color=color,
                marker=marker,
                markersize=7.5,
                markerfacecolor=PAPER if published else color,
                markeredgecolor=color if published else PAPER,
                markeredgewidth=1.4 if published else 0.7,
                linewidth=0.9,
                linestyle=_DASHES if published else "-",
                alpha=0.95,
                capsize=2.5,
                zorder=3 if published else 5,
            )
    axes.margins(0.07, 0.08)


def _draw_front(axes: Axes, panel: Panel) -> None:
    """A step line below and right of which everything is beaten by a run shown."""
    points = [(point.cost, point.score) for point in panel.points]
    if panel.full is not None:
        points.append(panel.full)
    sign = 1 if panel.less_is_better else -1
    best: list[tuple[float, float]] = []
    for cost, score in sorted(points, key=lambda point: (sign * point[0], -point[1])):
        if not best or score > best[-1][1]:
            best.append((cost, score))
    axes.plot(
        *zip(*best, strict=True),
        color=_FRONT,
        linewidth=6,
        drawstyle="steps-post",
        zorder=2,
        solid_capstyle="round",
    )


def _handles(looks: dict[str, tuple[str, str]], panels: Sequence[Panel]) -> list[list[Any]]:
    """What the legends show: the runs, the full model and the front; long names; then published points."""
    from matplotlib.lines import Line2D

    def handle(label: str, color: str, **look: Any) -> Line2D:
        return Line2D([], [], label=label, color=color, **{"linestyle": "none", "markersize": 8, **look})

    ours = {point.method.lower(): point.method for panel in panels for point in panel.points}
    theirs = {point.method.lower(): point.method for panel in panels for point in panel.published}
    first = [
        handle(ours[name], color, marker=marker, markeredgecolor=PAPER)
        for name, (color, marker) in looks.items()
        if name in ours
    ]
    if any(panel.full and not panel.full_is_mean for panel in panels):
        first.append(handle("full model", INK, marker="*", markersize=13))
    if any(panel.full and panel.full_is_mean for panel in panels):
        label = "mean of the runs with trimmers off"
        first.append(handle(label, INK, marker="*", markersize=13, markerfacecolor=PAPER))
    first.append(handle("Pareto front", _FRONT, linewidth=6, linestyle="-"))
    second = [
        handle(
            f"{theirs[name]} (published, other data)",
            color,
            marker=marker,
            markerfacecolor=PAPER,
            markeredgewidth=1.4,
        )
        for name, (color, marker) in looks.items()
        if name in theirs
    ]
    long = [item for item in first if len(str(item.get_label())) > _LONG]  # would leave one column
    short = [item for item in first if item not in long]
    return [handles for handles in (short, long, second) if handles]


def _legends(
    figure: Any, looks: dict[str, tuple[str, str]], panels: Sequence[Panel]
) -> list[tuple[Any, float]]:
    """Legends with the inches from the upper edge at which each begins; the last entry is where they end."""
    placed: list[tuple[Any, float]] = []
    y = _MARGIN
    for handles in _handles(looks, panels):
        legend, high = _fitting_legend(figure, handles)
        placed.append((legend, y))
        y += high + _BELOW
    return [*placed, (None, y)]


def _fitting_legend(figure: Any, handles: list[Any]) -> tuple[Any, float]:
    """A legend of as many columns as fit, and its height in inches."""
    renderer = figure.canvas.get_renderer()
    for columns in range(min(len(handles), _MOST_COLUMNS), 0, -1):
        legend = figure.legend(
            handles=handles,
            loc="upper left",
            ncols=columns,
            frameon=False,
            fontsize=_FONT,
            borderaxespad=0,
            borderpad=0,
            handletextpad=0.5,
            handlelength=1.4,
            columnspacing=1.4,
        )
        extent = legend.get_window_extent(renderer)
        if columns == 1 or extent.width <= (_WIDTH - 2 * _MARGIN) * DPI:
            break
        legend.remove()
    return legend, extent.height / DPI

"""Which attention heads are kept how often: one heat map per stream and kind of attention."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from smarttrim_cli.engine.figures.canvas import BLUE, INK, MARGIN, MUTED, PAPER, Canvas, line_height
from smarttrim_cli.engine.figures.data import HeadTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

_GAP, _LABELS, _MOST_NUMBERED = 0.5, 0.75, 16
_CELL_HEIGHT = 0.3
_COLORS = ["#f4f6f8", "#9cc4e0", BLUE, "#003b5c"]


def draw_heads(path: Path, tables: Sequence[HeadTable], count: int, several: bool = False) -> Path:
    """Heat maps of the mean kept fraction per layer and head.

    Args:
        path: Where the picture goes.
        tables: One per stream and kind of attention.
        count: Number of instances that the means are over.
        several: Whether they are over several images or texts of an instance, too, which may differ.
    """
    canvas = Canvas()
    y = canvas.paragraph(MARGIN, MARGIN, "Attention heads that are kept", 11, 17, INK, "bold")
    note = f"Percentage of {count} instances in which the trimmed model runs the head"
    note += "; means over its images or texts" if several else ""
    _key(canvas, y + 0.02)
    y = canvas.paragraph(MARGIN, y + 0.02, note, 8, 10, MUTED) + 0.2
    columns = min(len(tables), 2)
    width = (canvas.right - MARGIN - (columns - 1) * _GAP) / columns
    for start in range(0, len(tables), columns):
        below = [
            _table(canvas, MARGIN + column * (width + _GAP), y, width, table)
            for column, table in enumerate(tables[start : start + columns])
        ]
        y = max(below) + 0.35
    return canvas.save(path, y - 0.35 + MARGIN)


def _colors() -> Colormap:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("kept", _COLORS)


def _key(canvas: Canvas, y: float) -> None:
    """The colour scale, at the right edge."""
    right = canvas.right - canvas.text(canvas.right, y, "100%", 9, MUTED, align="right") - 0.1
    axes = canvas.axes(right - 1.6, y + 0.03, 1.6, 0.13)
    axes.imshow([[step / 100 for step in range(101)]], aspect="auto", cmap=_colors(), vmin=0.0, vmax=1.0)
    axes.set_axis_off()
    canvas.text(right - 1.7, y, "0%", 9, MUTED, align="right")


def _table(canvas: Canvas, x: float, y: float, width: float, table: HeadTable) -> float:
    canvas.text(x, y, table.title, 11, INK, "bold")
    canvas.text(x + width, y + 0.02, f"mean {table.kept.mean():.0%}", 9, MUTED, align="right")
    layers = len(table.layers)
    wide = width - _LABELS
    top = y + line_height(11) + 0.28
    axes = canvas.axes(x + _LABELS, top, wide, layers * _CELL_HEIGHT)
    _cells(axes, table)
    return top + layers * _CELL_HEIGHT


def _cells(axes: Axes, table: HeadTable) -> None:
    layers, heads = table.kept.shape
    axes.imshow(table.kept, aspect="auto", cmap=_colors(), vmin=0.0, vmax=1.0)
    axes.set_yticks(range(layers), table.layers)
    step = 1 if heads <= _MOST_NUMBERED else 4
    axes.set_xticks(range(0, heads, step), ["head 1"] + [str(head + 1) for head in range(step, heads, step)])
    axes.tick_params(
        length=0, labelsize=8.5, top=False, labeltop=True, bottom=False, labelbottom=False, pad=3
    )
    axes.set_xticks([head - 0.5 for head in range(1, heads)], minor=True)
    axes.set_yticks([layer - 0.5 for layer in range(1, layers)], minor=True)
    axes.grid(which="minor", color=PAPER, linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)
    if heads > _MOST_NUMBERED:
        return
    for layer, row in enumerate(table.kept):
        for head, share in enumerate(row):
            color = PAPER if share > 0.55 else INK
            axes.text(head, layer, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=color)

"""How the cost varies over instances, with the cheapest and the dearest one beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from smarttrim_cli.engine.figures.canvas import (
    BLUE,
    INK,
    MARGIN,
    MUTED,
    PAPER,
    VERMILION,
    Canvas,
    line_height,
)
from smarttrim_cli.engine.figures.data import Instance, format_macs, format_reduction
from smarttrim_cli.engine.figures.trimming import answer_spans, fade

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PLOT, _GUTTER, _SIDE, _GAP, _MOST_BINS = 6.1, 0.5, 1.45, 0.14, 30
_CHEAP, _DEAR = BLUE, VERMILION


def draw_histogram(
    path: Path,
    reductions: Sequence[float],
    overall: float,
    cheapest: Sequence[Instance],
    dearest: Sequence[Instance],
    writes: bool = False,
) -> Path:
    """Histogram of the MACs reduction per instance.

    Args:
        path: Where the picture goes.
        reductions: Full over trimmed MACs, one per instance.
        overall: Full over trimmed MACs of all instances together.
        cheapest: The instance with the largest reduction, for each of its images.
        dearest: The one with the smallest.
        writes: Whether the model writes text, which takes the longer the more tokens there are.
    """
    canvas = Canvas()
    y = canvas.paragraph(
        MARGIN, MARGIN, "What an instance costs depends on the instance", 11, 17, INK, "bold"
    )
    note = f"{len(reductions)} instances, together {format_reduction(overall)} than the full model"
    note += ", were it to write as many tokens" if writes else ""
    top = canvas.paragraph(MARGIN, y + 0.02, note, 11, 10, MUTED) + 0.22
    x = MARGIN + _PLOT + _GUTTER
    width = canvas.right - x
    below = _card(canvas, x, top, width, "Cheapest instance", _CHEAP, cheapest)
    below = _card(canvas, x, below + 0.3, width, "Dearest instance", _DEAR, dearest)
    bottom = max(below, top + 4.2)
    axes = canvas.axes(MARGIN + 0.5, top + 0.3, _PLOT - 0.5, bottom - top - 0.85)
    _bars(axes, reductions, overall, cheapest[0].reduction, dearest[0].reduction)
    return canvas.save(path, bottom + MARGIN)


def _bars(axes: Axes, reductions: Sequence[float], overall: float, cheapest: float, dearest: float) -> None:
    from matplotlib.ticker import MaxNLocator

    values = np.asarray(reductions)
    bins = int(np.clip(np.sqrt(len(values)) * 1.5, 5, _MOST_BINS))
    low, high = float(values.min()), float(values.max())
    room = max(0.02 * (high - low), 0.005)
    axes.hist(
        values, bins=bins, range=(low - room, high + room), color="#9fb8cc", edgecolor="white", linewidth=0.8
    )
    axes.set_ylim(0, axes.get_ylim()[1] * 1.12)
    axes.grid(axis="y")
    axes.set_xlabel("full MACs / trimmed MACs of the instance", labelpad=8)
    axes.set_ylabel("instances", labelpad=8)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
    axes.tick_params(length=0)
    axes.axvline(
        overall, color=INK, linewidth=1.2, linestyle=(0, (4, 3)), label=f"all together {overall:.2f}×"
    )
    marks = ((dearest, _DEAR, f"dearest {dearest:.2f}×"), (cheapest, _CHEAP, f"cheapest {cheapest:.2f}×"))
    for value, color, label in marks:
        axes.plot(
            [value],
            [0.026],
            marker="v",
            markersize=10,
            color=color,
            markeredgecolor=PAPER,
            linestyle="none",
            label=label,
            transform=axes.get_xaxis_transform(),
            zorder=5,
        )
    digits = _digits(axes.get_xticks())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.{digits}f}×")
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=3,
        frameon=False,
        fontsize=9,
        borderaxespad=0.2,
        handletextpad=0.5,
    )


def _digits(ticks: npt.NDArray[np.float64]) -> int:
    """How many digits behind the point write all ticks as they are."""
    return next((count for count in range(4) if np.allclose(np.round(ticks, count), ticks, atol=1e-6)), 4)


def _card(
    canvas: Canvas, x: float, y: float, width: float, title: str, color: str, images: Sequence[Instance]
) -> float:
    """An instance: its images, patches kept at the last layer, question, answers, cost."""
    instance = images[0]
    canvas.text(x, y, title, 11, color, "bold")
    canvas.text(x + width, y, format_reduction(instance.reduction), 11, color, "bold", "right")
    y += line_height(11) + 0.04
    left, rest = x + 2 * (_SIDE + _GAP), width - 2 * (_SIDE + _GAP)
    for image in images:
        below = _kept(canvas, x, y, left, rest, image)
        if image is instance:
            below = canvas.paragraph(left, below, f"{format_macs(instance.macs)} MACs", rest, 9, MUTED)
            canvas.paragraph(left, below, f"full {format_macs(instance.full_macs)}", rest, 9, MUTED)
        y += _SIDE + 0.1
    if instance.question:
        y = canvas.paragraph(x, y, instance.question, width, 11, INK, "bold")
    answers = answer_spans(instance)
    return canvas.spans(x, y, answers, width, 9.5) if answers else y


def _kept(canvas: Canvas, x: float, y: float, left: float, rest: float, instance: Instance) -> float:
    """An image beside what is kept of it at the last layer; where the words about it end."""
    last = instance.patches[-1]
    height, wide = instance.image.shape[:2]
    scale = _SIDE / max(height, wide)
    canvas.image(x, y, wide * scale, height * scale, instance.image)
    canvas.image(x + _SIDE + _GAP, y, _SIDE, _SIDE, fade(instance.view, last.keep))
    below = canvas.paragraph(left, y - 0.02, f"{last.share:.0%}", rest, 20, INK, "bold")
    patches = f"patches of {instance.image_label}" if instance.image_number else "patches"
    return (
        canvas.paragraph(left, below - 0.06, f"of the {patches} kept at {last.label}", rest, 9, MUTED) + 0.08
    )

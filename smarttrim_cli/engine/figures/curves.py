"""Curves of a run: losses, score on the evaluation split, and kept fractions beside their targets."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smarttrim_cli.engine.figures.canvas import (
    BLUE,
    GREEN,
    INK,
    MARGIN,
    MUTED,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    Canvas,
    line_height,
)
from smarttrim_cli.engine.figures.data import History
from smarttrim_cli.engine.files import is_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS, _HEIGHT, _LEFT, _GAP = 3, 1.75, 0.6, 0.35
_LOG_ABOVE = 10
_KINDS = {"token": "tokens", "head": "self-attention heads", "cross_head": "cross-attention heads"}
_LOSSES = {"loss": INK, "task": BLUE, "distillation": ORANGE, "cost": PURPLE}
_OTHER_LOSSES = (GREEN, VERMILION, SKY, MUTED)
_NO_LOSSES = ("step", "seconds", "learning_rate", "macs_ratio", "threshold")


def draw_curves(path: Path, title: str, history: History, metric: str) -> Path:
    """Draw what a run logged, one small plot per quantity.

    Args:
        path: Where the picture goes.
        title: Name of the run.
        history: Lines of ``metrics.jsonl``.
        metric: Name of the task's score.
    """
    training = [record for record in history if "eval" not in record and "phase" not in record]
    scores = [
        (r["step"], r["eval"])
        for r in history
        if isinstance(r.get("eval"), dict) and is_number(r["eval"].get(metric))
    ]
    logged = {
        name.removeprefix("kept/") for record in training for name in record if name.startswith("kept/")
    }
    groups = sorted(logged, key=_group_order)
    last = max(record["step"] for record in history)
    canvas = Canvas()
    y = (
        canvas.paragraph(MARGIN, MARGIN, f"Training of {title}", canvas.right - MARGIN, 17, INK, "bold")
        + 0.15
    )
    half = (canvas.right - MARGIN - _GAP) / 2
    if training:
        width = half if scores else canvas.right - MARGIN
        _losses(_panel(canvas, MARGIN, y, width, 2.1, ("Losses", ""), last), training)
    if scores:
        known = any(score.get(f"{metric}_se") for _, score in scores)
        words = (f"Evaluation {metric}", "± one standard error" if known else "")
        _scores(_panel(canvas, MARGIN + half + _GAP, y, half, 2.1, words, last), scores, metric)
    y += line_height(11) + 2.1 + 0.85
    if groups:
        width = (canvas.right - MARGIN - (_COLUMNS - 1) * _GAP) / _COLUMNS
        canvas.text(MARGIN, y, "Kept fraction", 13, INK, "bold")
        canvas.text(canvas.right, y, _kept_key(training, groups), 9, MUTED, align="right")
        y += line_height(13) + 0.12
        step = line_height(11) + _HEIGHT + 0.7
        for index, group in enumerate(groups):
            x = MARGIN + index % _COLUMNS * (width + _GAP)
            top = y + index // _COLUMNS * step
            _kept(_panel(canvas, x, top, width, _HEIGHT, (group_title(group), ""), last), training, group)
        y += math.ceil(len(groups) / _COLUMNS) * step
    return canvas.save(path, y)


def group_title(group: str) -> str:
    """``token.vision`` in words."""
    kind, _, stream = group.partition(".")
    return f"{stream} {_KINDS.get(kind, kind)}"


def _kept_key(training: History, groups: list[str]) -> str:
    """How kept fractions and targets are told apart; a single step has markers in place of lines."""
    once = all(len(_series(training, f"kept/{group}")[0]) == 1 for group in groups)
    kept, target = ("dot", "square") if once else ("solid", "dashed")
    return f"{kept}: kept in training    {target}: target of the curriculum"


def _group_order(group: str) -> tuple[int, str]:
    """Tokens, then self-attention heads, then cross-attention heads."""
    kind, _, stream = group.partition(".")
    kinds = list(_KINDS)
    return (kinds.index(kind) if kind in kinds else len(kinds), stream)


def _panel(
    canvas: Canvas, x: float, y: float, width: float, height: float, words: tuple[str, str], last: int
) -> Axes:
    """Axes over the steps up to the last, with a title and a note above."""
    from matplotlib.ticker import MaxNLocator

    canvas.text(x, y, words[0], 11, INK, "bold")
    canvas.text(x + width, y + 0.02, words[1], 9, MUTED, align="right")
    axes = canvas.axes(x + _LEFT, y + line_height(11) + 0.12, width - _LEFT, height)
    axes.grid(axis="y")
    axes.tick_params(length=0)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set_xlim(0, last * 1.02)
    return axes


def _series(records: History, name: str) -> tuple[list[int], list[float]]:
    points = [(record["step"], record[name]) for record in records if record.get(name) is not None]
    return [step for step, _ in points], [value for _, value in points]


def _marker(points: list[Any]) -> str | None:
    return "o" if len(points) < 25 else None


def _dot(values: list[float]) -> str | None:
    """The marker of a line: of a single value nothing else would be seen."""
    return "o" if len(values) == 1 else None


def _loss_colors(training: History) -> dict[str, str]:
    """The loss terms that were logged, the usual ones first, with their colours."""
    logged = dict.fromkeys(name for record in training for name in record)
    terms = [name for name in logged if "/" not in name and name not in _NO_LOSSES]
    others = itertools.cycle(_OTHER_LOSSES)
    usual = {name: color for name, color in _LOSSES.items() if name in terms}
    return usual | {name: next(others) for name in terms if name not in usual}


def _losses(axes: Axes, training: History) -> None:
    """Every loss term that is ever positive; on a logarithmic axis if their sizes differ much.

    Terms are logged as they are, and the loss is their weighted sum.
    """
    from matplotlib.ticker import LogFormatter

    drawn: list[float] = []
    colors = _loss_colors(training)
    notes = ["terms unweighted"] if set(colors) - {"loss", "task"} else []
    for name, color in colors.items():
        steps, values = _series(training, name)
        positive = [value for value in values if value > 0]
        if positive:
            dashes = (0, (5, 2)) if name == "distillation" else "-"
            look: dict[str, Any] = {"linestyle": dashes, "linewidth": 1.6, "marker": _dot(values)}
            axes.plot(steps, values, color=color, label=name, **look)
            drawn += positive
    if max(drawn, default=1.0) > _LOG_ABOVE * min(drawn, default=1.0):
        axes.set_yscale("log", nonpositive="mask")  # clipped, a loss of 0 would be a stroke to the frame
        axes.yaxis.set_major_formatter(LogFormatter())  # by itself it sets powers, in fonts of their own
        axes.yaxis.set_minor_formatter(LogFormatter())
        notes.append("log scale")
    else:
        axes.set_ylim(bottom=0)
    axes.set_ylabel(", ".join(notes))
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1, 1.02),
        ncols=6,
        frameon=False,
        fontsize=9,
        columnspacing=1.0,
        handlelength=1.4,
        handletextpad=0.4,
        borderpad=0,
        borderaxespad=0,
    )


def _scores(axes: Axes, scores: list[tuple[int, dict[str, Any]]], metric: str) -> None:
    steps = [step for step, _ in scores]
    values = [score[metric] for _, score in scores]
    found = [score.get(f"{metric}_se") for _, score in scores]  # none of a single instance
    errors = [float(error) if is_number(error) else 0.0 for error in found]
    low = [value - error for value, error in zip(values, errors, strict=True)]
    high = [value + error for value, error in zip(values, errors, strict=True)]
    if len(steps) == 1:  # a band has no width there
        axes.errorbar(steps, values, yerr=errors, color=BLUE, marker="o", markersize=4, capsize=4)
    else:
        axes.fill_between(steps, low, high, color=BLUE, alpha=0.15, linewidth=0)
        axes.plot(steps, values, color=BLUE, linewidth=1.8, marker=_marker(steps), markersize=4)
    axes.set_ylim(min(0.0, *low), max(1.0, *high) * 1.12)
    if max(high) <= 1.0:
        axes.set_yticks([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axes.annotate(
        f"{values[-1]:.3f}",
        (steps[-1], values[-1]),
        xytext=(4, 9) if len(steps) > 1 else (-8, 4),
        textcoords="offset points",
        ha="right",
        color=BLUE,
        fontsize=10,
        fontweight="bold",
    )


def _kept(axes: Axes, training: History, group: str) -> None:
    steps, kept = _series(training, f"kept/{group}")
    axes.plot(steps, kept, color=GREEN, linewidth=1.8, marker=_dot(kept))
    steps, targets = _series(training, f"target/{group}")
    look: dict[str, Any] = {"linestyle": (0, (4, 3)), "linewidth": 1.6}
    if len(targets) == 1:  # hollow, so that a dot inside is seen
        look = {"linestyle": "none", "marker": "s", "markersize": 9, "fillstyle": "none", "clip_on": False}
    axes.plot(steps, targets, color=VERMILION, **look)
    axes.set_ylim(0, 1.05)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0], ["0%", "25%", "50%", "75%", "100%"])

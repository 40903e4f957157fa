"""How alike the tokens and the heads of every layer are: a line per stream, a band for the instances.

Source: the paper's figures of redundancy (section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from smarttrim_cli.engine.figures.canvas import (
    BLUE,
    GREEN,
    INK,
    LINE,
    MARGIN,
    MUTED,
    ORANGE,
    Canvas,
    line_height,
)
from smarttrim_cli.engine.figures.data import LayerSimilarity

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HEIGHT, _LEFT, _GAP, _LEGEND = 3.3, 0.6, 0.45, 0.44
_MOST_NUMBERED = 26
_COLORS = {"vision": BLUE, "text": ORANGE}
_ATTENTIONS = {
    "self_head": ("self-attention", "-", "o"),
    "cross_head": ("cross-attention", (0, (4, 2)), "s"),
    "cross_head1": ("second cross-attention", (0, (1, 1.5)), "^"),
}
_TOKENS = ("", "-", "o")
Line = Sequence[LayerSimilarity]


def draw_similarity(path: Path, layers: Line, split: str, instances: int) -> Path:
    """Draw two panels, tokens and heads.

    Args:
        path: Where the picture goes.
        layers: Of all streams.
        split: Name of the split.
        instances: Number of instances.
    """
    canvas = Canvas()
    heading = "How alike tokens and heads are, layer by layer"
    y = canvas.paragraph(MARGIN, MARGIN, heading, canvas.right - MARGIN, 17, INK, "bold")
    note = (
        f"Full model, {instances} instances of split {split}; lines: mean, bands: 10th to 90th percentile "
        "of the instances. 1: all point the same way, 0: they have nothing in common"
    )
    y = canvas.paragraph(MARGIN, y + 0.02, note, canvas.right - MARGIN, 10, MUTED) + 0.2
    width = (canvas.right - MARGIN - _GAP) / 2
    encoder = max((one.number for one in layers if one.part != "cross"), default=0)
    tokens = [one for one in layers if one.kind == "token"]
    heads = [one for one in layers if one.kind != "token"]
    panels = (("Tokens behind the layer", tokens), ("Attention heads of the layer", heads))
    for column, (title, shown) in enumerate(panels):
        x = MARGIN + column * (width + _GAP)
        canvas.text(x, y, title, 11, INK, "bold")
        axes = canvas.axes(x + _LEFT, y + line_height(11) + _LEGEND, width - _LEFT, _HEIGHT)
        _layers_axis(axes, layers, encoder)
        _lines(axes, shown, encoder)
    return canvas.save(path, y + line_height(11) + _LEGEND + _HEIGHT + 0.45 + MARGIN)


def _place(one: LayerSimilarity, encoder: int) -> int:
    """Where a layer is on the axis: co-attention layers come behind those of the deepest encoder."""
    return one.number + (encoder if one.part == "cross" else 0)


def _layers_axis(axes: Axes, layers: Line, encoder: int) -> None:
    """Numbers of the layers, with the name of each part below."""
    places = sorted({_place(one, encoder) for one in layers})
    step = 1 if len(places) <= _MOST_NUMBERED else 2
    numbers = [place - encoder if place > encoder else place for place in places]
    axes.set_xticks(places[::step], [str(number) for number in numbers[::step]])
    axes.set_xlim(places[0] - 0.6, places[-1] + 0.6)
    axes.tick_params(length=0)
    axes.grid(axis="y")
    axes.set_ylabel("mean cosine similarity")
    parts = {"encoder layer": [place for place in places if place <= encoder]}
    parts["co-attention layer"] = [place for place in places if place > encoder]
    for name, own in parts.items():
        if own:
            middle = (own[0] + own[-1]) / 2
            axes.annotate(
                name, (middle, 0), (0, -22), ("data", "axes fraction"), "offset points",
                ha="center", va="top", fontsize=9.5, color=MUTED, annotation_clip=False,
            )  # fmt: skip
    if all(parts.values()):
        axes.axvline(encoder + 0.5, color=LINE, linewidth=1.0)


def _lines(axes: Axes, layers: Line, encoder: int) -> None:
    """A line per stream and kind of attention, broken between the parts, each with its band."""
    for stream, kind in dict.fromkeys((one.stream, one.kind) for one in layers):
        words, dashes, marker = _ATTENTIONS.get(kind, _TOKENS)
        color, label = _COLORS.get(stream, GREEN), f"{stream} {words}".strip()
        own = [one for one in layers if (one.stream, one.kind) == (stream, kind)]
        for part in dict.fromkeys(one.part for one in own):
            run = [one for one in own if one.part == part]
            places = [_place(one, encoder) for one in run]
            low, high = [one.p10 for one in run], [one.p90 for one in run]
            axes.fill_between(places, low, high, color=color, alpha=0.16, linewidth=0)
            if len(run) == 1:  # a band has no width there
                axes.vlines(places, low, high, color=color, alpha=0.22, linewidth=7)
            axes.plot(
                places, [one.mean for one in run], color=color, linestyle=dashes, linewidth=1.7,
                marker=marker, markersize=4, label=label, clip_on=False, zorder=3,
            )  # fmt: skip
            label = "_again"
    lowest = min((one.p10 for one in layers), default=0.0)
    axes.set_ylim(1.05 * min(lowest, 0.0), 1.0)
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.01), ncols=2, frameon=False, fontsize=9, handlelength=2.6,
        columnspacing=1.6, borderpad=0, borderaxespad=0, labelspacing=0.25,
    )  # fmt: skip

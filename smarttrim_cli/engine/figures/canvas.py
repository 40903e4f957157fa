"""A page that is filled from the top, in inches, with text whose width is measured before it is set.

Built on matplotlib's object interface: no pyplot, no backend chosen for the caller, no global state changed.
"""

from __future__ import annotations

import io
import itertools
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smarttrim_cli.engine.figures.data import Pixels
from smarttrim_cli.engine.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, MARGIN, DPI = 12.0, 0.45, 144
INK, MUTED, PALE, LINE, PAPER = "#1b1f24", "#656d76", "#a3abb4", "#d0d7de", "#ffffff"
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9"
"""The colours of Okabe and Ito, which colour-blind readers can tell apart."""

_LEADING, _ASCENT = 1.42, 1.0
_STYLE: dict[str, Any] = {
    "text.usetex": False,
    "font.family": ["DejaVu Sans"],
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.facecolor": PAPER,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": False,
    "grid.color": "#eaeef2",
    "grid.linewidth": 0.8,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "axes.labelsize": 9.5,
    "image.interpolation": "auto",
}


@dataclass(frozen=True)
class Span:
    """A piece of text that is not broken across lines unless it is wider than a line.

    Attributes:
        gap: Space behind it, in units of the font size.
        tied: Stays on one line with the next span, where that is possible.
    """

    text: str
    color: str = INK
    weight: str = "normal"
    struck: bool = False
    gap: float = 0.55
    tied: bool = False


@contextmanager
def style() -> Iterator[None]:
    """The look of all pictures, independent of the caller's settings, which return afterwards."""
    import matplotlib

    settings: Any = {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"}
    settings.update(_STYLE)
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # it is drawn as a box
        yield


def line_height(size: float) -> float:
    """Height of a line of text in inches."""
    return size * _LEADING / 72


class Canvas:
    """A page; ``x`` and ``y`` are inches from its left and upper edge.

    Args:
        width: Width in inches; the height is given when saving.
    """

    def __init__(self, width: float = WIDTH) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.transforms import Affine2D

        self.width = width
        self.figure = Figure(figsize=(width, 1.0), dpi=DPI, facecolor=PAPER)
        self._renderer = FigureCanvasAgg(self.figure).get_renderer()
        self._shift = Affine2D()
        self._inches = self._shift + self.figure.dpi_scale_trans
        self._placed: list[tuple[Axes, tuple[float, float, float, float]]] = []

    @property
    def right(self) -> float:
        """The right margin."""
        return self.width - MARGIN

    def measure(self, text: str, size: float, weight: str = "normal") -> float:
        """Width of a text in inches."""
        from matplotlib.font_manager import FontProperties

        font = FontProperties(family="DejaVu Sans", size=size, weight=weight)
        return float(self._renderer.get_text_width_height_descent(text, font, False)[0]) / DPI

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float = 10,
        color: str = INK,
        weight: str = "normal",
        align: str = "left",
    ) -> float:
        """One line of text; returns its width."""
        self.figure.text(
            x,
            -(y + size * _ASCENT / 72),
            text,
            transform=self._inches,
            fontsize=size,
            fontfamily="DejaVu Sans",
            color=color,
            fontweight=weight,
            ha=align,
            va="baseline",
            parse_math=False,
        )
        return self.measure(text, size, weight)

    def paragraph(
        self,
        x: float,
        y: float,
        text: str,
        width: float,
        size: float = 10,
        color: str = INK,
        weight: str = "normal",
    ) -> float:
        """Text wrapped to a width; returns the ``y`` below it."""
        return self.spans(x, y, [Span(word, color, weight, gap=0.32) for word in text.split()], width, size)

    def spans(self, x: float, y: float, spans: Iterable[Span], width: float, size: float = 10) -> float:
        """Pieces of text one after the other, wrapped to a width; returns the ``y`` below them."""
        from matplotlib.lines import Line2D

        pieces = list(self._broken(spans, width, size))
        widths = [self.measure(piece.text, size, piece.weight) for piece in pieces]
        needed = list(widths)
        for index in range(len(pieces) - 2, -1, -1):
            if pieces[index].tied:
                needed[index] += pieces[index].gap * size / 72 + needed[index + 1]
        left = 0.0
        for index, (span, taken) in enumerate(zip(pieces, widths, strict=True)):
            fresh = index == 0 or not pieces[index - 1].tied or left + taken > width
            if left and fresh and left + needed[index] > width:
                left, y = 0.0, y + line_height(size)
            self.text(x + left, y, span.text, size, span.color, span.weight)
            if span.struck:
                middle = -(y + size * (_ASCENT - 0.28) / 72)
                ends = ([x + left - 0.02, x + left + taken + 0.02], [middle, middle])
                self.figure.add_artist(
                    Line2D(*ends, transform=self._inches, color=span.color, linewidth=size * 0.1)
                )
            left += taken + span.gap * size / 72
        return y + line_height(size)

    def _broken(self, spans: Iterable[Span], width: float, size: float) -> Iterator[Span]:
        """The spans, those wider than a line cut into pieces that fit."""
        for span in spans:
            rest = span.text
            while len(rest) > 1 and self.measure(rest, size, span.weight) > width:
                widths = (self.measure(rest[:length], size, span.weight) for length in range(1, len(rest)))
                fitting = itertools.takewhile(lambda taken: taken <= width, widths)
                end = max(sum(1 for _ in fitting), 1)
                yield Span(rest[:end], span.color, span.weight, span.struck, 0.0)
                rest = rest[end:]
            yield Span(rest, span.color, span.weight, span.struck, span.gap, span.tied)

    def rule(self, y: float) -> None:
        """A hairline across the page."""
        from matplotlib.lines import Line2D

        self.figure.add_artist(
            Line2D([MARGIN, self.right], [-y, -y], transform=self._inches, color=LINE, linewidth=0.8)
        )

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Axes whose frame fills a rectangle."""
        axes = self.figure.add_axes((0.0, 0.0, 1.0, 1.0), label=str(len(self._placed)))
        self._placed.append((axes, (x, y, width, height)))
        return axes

    def image(self, x: float, y: float, width: float, height: float, pixels: Pixels) -> Axes:
        """An image with a thin frame."""
        axes = self.axes(x, y, width, height)
        axes.imshow(pixels, aspect="auto")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set(visible=True, color=LINE, linewidth=0.8)
        return axes

    def save(self, path: Path, height: float) -> Path:
        """Write the page, cut to a height, as a PNG file that is complete or absent."""
        self.figure.set_size_inches(self.width, height)
        self._shift.clear().translate(0.0, height)
        for axes, (x, y, wide, high) in self._placed:
            axes.set_position((x / self.width, 1 - (y + high) / height, wide / self.width, high / height))
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=DPI, facecolor=PAPER, metadata={"Software": None})
        write_bytes(path, buffer.getvalue())
        return path

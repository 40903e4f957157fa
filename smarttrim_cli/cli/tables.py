"""Aligned columns of plain ASCII, the same on a terminal and in a file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Aligned columns under a header and a rule; the first column is flush left, the others flush right."""
    cells = [list(header), *([format_value(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        right = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return "  ".join([row[0].ljust(widths[0]), *right]).rstrip()

    return "\n".join([line(cells[0]), line(["-" * width for width in widths]), *map(line, cells[1:])])


def format_value(value: Any) -> str:
    """A cell: numbers with four significant digits, nothing as ``-``."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if not math.isfinite(value):
            return "-"
        short = f"{value:.4g}"
        return f"{value:,.0f}" if abs(float(short)) >= 10_000 else short
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


_NOTHING = 1e-9
"""What is below is a score that is none, such as a BLEU of smoothed counts alone."""


def ratio(full: Any, trimmed: Any, is_cost: bool) -> str | None:
    """How many times cheaper, or which share is kept."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (full, trimmed))
    if not numbers or not trimmed or abs(full) < _NOTHING:
        return None
    return f"{full / trimmed:.2f}x" if is_cost else f"{trimmed / full:.1%}"

"""Points of the paper's tables, for comparison: other data than the embedded scenes, the same tasks."""

from __future__ import annotations

import functools
import json
from collections.abc import Collection
from importlib.resources import files
from typing import Any


@functools.cache
def _content() -> dict[str, Any]:
    text = files("smarttrim_cli").joinpath("assets/published.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def published_points(tasks: Collection[str]) -> list[dict[str, Any]]:
    """Published points of tasks such as ``meter/vqa``.

    Returns:
        For each ``method``, ``ratio``, ``task``, ``score``, ``full_score``, ``gmacs``, ``full_gmacs``,
        ``latency_ms`` and ``full_latency_ms`` where given, ``source`` (a table of the paper), ``retained``,
        ``speedup`` and ``latency_speedup``. Costs are None for models whose costs the paper does not give.
    """
    return [_relative(point) for point in _content()["points"] if point["task"] in tasks]


def published_note() -> str:
    """Where the points come from, and under what conditions they hold."""
    content = _content()
    return f"Published, other data: {content['paper']}. {content['note']}"


def _relative(point: dict[str, Any]) -> dict[str, Any]:
    """A point with its score and costs relative to the full model."""

    def quotient(first: str, second: str) -> float | None:
        one, two = point.get(first), point.get(second)
        return one / two if one and two else None

    return {
        **point,
        "retained": quotient("score", "full_score"),
        "speedup": quotient("full_gmacs", "gmacs"),
        "latency_speedup": quotient("full_latency_ms", "latency_ms"),
    }

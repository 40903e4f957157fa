"""Score against cost: which points nothing else beats, and the panels of the picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smarttrim_cli.engine.figures.pareto import Panel, Point, draw_pareto
from smarttrim_cli.errors import UserError

_SMALL_GMACS = 0.2
_SAME_COST = 0.01


def front(points: Sequence[tuple[float | None, float]]) -> list[bool]:
    """Which points (cost, score) are on the Pareto front: no other costs at most and scores at least as much.

    Points without a cost are not on it; of equal points all are.
    """
    known = [(cost, score) for cost, score in points if cost is not None]
    return [
        cost is not None and not any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in known)
        for cost, score in points
    ]


def draw(
    path: Path, groups: Sequence[dict[str, Any]], published: Sequence[dict[str, Any]], *, relative: bool
) -> Path:
    """Draw groups of compared runs: a panel against MACs each, and one against latency where it is known.

    Args:
        path: PNG or SVG file.
        groups: As ``compare`` returns them.
        published: Points of the paper, drawn hollow in the panels of their task.
        relative: Axes relative to the full model, so that other data can be compared.

    Raises:
        UserError: Nothing has both a score and a cost, or the file is neither PNG nor SVG.
    """
    if path.suffix.lower() not in (".png", ".svg"):
        raise UserError("expected a name that ends in .png or .svg", where=f"--plot {path}")
    rows = []
    for group in groups:
        theirs = [point for point in published if point["task"] == group["task"]]
        found = [_panel(group, theirs, relative, latency) for latency in (False, True)]
        rows += [shown] if (shown := [panel for panel in found if panel.points]) else []
    if not rows:
        problem, hint = "", "MACs come from smarttrim evaluate, latency from smarttrim profile"
        if relative:
            problem = " relative to a full model of its own"
            hint = "without --published, scores and costs are drawn as they are"
        raise UserError(f"nothing to draw: no run has a cost{problem}", where=f"--plot {path}", hint=hint)
    if all(len(row) == 1 for row in rows):  # no latency anywhere: two groups beside each other
        singles = [panel for row in rows for panel in row]
        rows = [singles[start : start + 2] for start in range(0, len(singles), 2)]
    return draw_pareto(path, rows)


def left_out(groups: Sequence[dict[str, Any]], *, relative: bool) -> list[str]:
    """Methods of the rows that have no place in the picture; the full model's is its star."""
    place = _relative if relative else _absolute
    return [
        row["method"]
        for group in groups
        for full in [_untrimmed(group["rows"])]
        for row in group["rows"]
        if row is not full and not any(place(row, latency, 1.0) for latency in (False, True))
    ]


def _panel(
    group: dict[str, Any], published: Sequence[dict[str, Any]], relative: bool, latency: bool
) -> Panel:
    """Rows of a group; latency panels are empty unless two models have one, of which the full is one."""
    place = _relative if relative else _absolute
    unit = 1e3 if not relative and not latency and _largest(group) < _SMALL_GMACS else 1.0
    points = [point for row in group["rows"] if (point := place(row, latency, unit))]
    theirs = [point for row in published if (point := _relative(row, latency, 1.0, published=True))]
    full, measured = _full(group, latency, unit)
    full = (1.0, 100.0) if relative and full else full
    cost = "ms per instance" if latency else f"{'MMACs' if unit > 1 else 'GMACs'} per instance"
    if relative:
        cost = "times less latency" if latency else "times fewer MACs"
    places = {(point.cost, point.score) for point in points} | ({full} if full else set())
    if latency and len(places) < 2:
        points = []
    words = [group["task"], group["data"], group["split"]]
    return Panel(
        title=", ".join(word for word in words if word),
        x_label=cost,
        y_label=f"{group['metric']}, % of the full model's"
        if relative
        else group["metric"].replace("_", " "),
        points=points,
        published=theirs if points else [],
        full=full,
        full_is_mean=not (relative or measured),
        less_is_better=not relative,
    )


def _largest(group: dict[str, Any]) -> float:
    costs = [row[key] for row in group["rows"] for key in ("gmacs", "full_gmacs") if row[key]]
    return max(costs, default=1.0)


def _absolute(row: dict[str, Any], latency: bool, unit: float) -> Point | None:
    cost = row["latency_ms" if latency else "gmacs"]
    return None if cost is None else Point(row["method"], cost * unit, row["score"], row["score_se"])


def _relative(row: dict[str, Any], latency: bool, unit: float, published: bool = False) -> Point | None:
    """A row relative to the full model; MACs as published where they are known, since papers count so."""
    ratio = row["latency_speedup"] if latency else row.get("speedup_as_published") or row["speedup"]
    if ratio is None or row["retained"] is None:
        return None
    error = row.get("retained_se")
    return Point(row["method"], ratio, 100 * row["retained"], 100 * error if error else None, published)


def _full(group: dict[str, Any], latency: bool, unit: float) -> tuple[tuple[float, float] | None, bool]:
    """Cost and score of the full model of a group, and whether it is a run of its own.

    It is the best run without trimming. Without one it is the mean of the runs with their trimmers off, whose
    weights have been trained to be trimmed.
    """
    own, off = ("latency_ms", "full_latency_ms") if latency else ("gmacs", "full_gmacs")
    run = _untrimmed(group["rows"])
    cost = run[own] if run and run[own] else _mean_over_runs(group["rows"], off)
    score = run["score"] if run else _mean_over_runs(group["rows"], "full")
    return (None if cost is None or score is None else (cost * unit, score)), run is not None


def _untrimmed(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The best row without trimmers; smaller models, such as students, are no full ones."""
    whole = _mean_over_runs(rows, "full_gmacs")
    there = [row for row in rows if row["full"] is None and row["gmacs"]]
    least = (1 - _SAME_COST) * (whole or max((row["gmacs"] for row in there), default=0.0))
    return max((row for row in there if row["gmacs"] >= least), key=lambda row: row["score"], default=None)


def _mean_over_runs(rows: Sequence[dict[str, Any]], key: str) -> float | None:
    """Mean over the runs of all rows in which it is known."""
    known = [(row["seeds"], row[key]) for row in rows if row[key]]
    runs = sum(seeds for seeds, _ in known)
    return sum(seeds * value for seeds, value in known) / runs if known else None

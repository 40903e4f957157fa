"""Compared runs as plain text, Markdown, CSV or JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from smarttrim_cli.cli.render import flatten, to_json
from smarttrim_cli.cli.tables import format_value, table

Row = Mapping[str, Any]
_UNITS = ((1.0, 1.0, "GMACs"), (0.0, 1e3, "MMACs"))


def text(result: Mapping[str, Any]) -> str:
    """Aligned columns, a table per group."""
    parts = [
        f"{_title(group)}\n{table(header, rows)}"
        for group in result["groups"]
        for header, rows in [_table(group, result["reference"])]
    ]
    header, rows = _published(result)
    if rows:
        parts.append(f"published, other data\n{table(header, rows)}")
    return "\n\n".join([*parts, *_notes(result)])


def markdown(result: Mapping[str, Any]) -> str:
    """A Markdown table per group."""
    parts = []
    for group in result["groups"]:
        header, rows = _table(group, result["reference"])
        parts.append(f"**{_title(group)}**\n\n{_pipes(header, rows)}")
    header, rows = _published(result)
    if rows:
        parts.append(f"**published, other data**\n\n{_pipes(header, rows)}")
    return "\n\n".join([*parts, *_notes(result)]) + "\n"


def as_csv(result: Mapping[str, Any]) -> str:
    """One row per method and level, all groups in one table, numbers unrounded."""
    rows = []
    for group in result["groups"]:
        shared = {key: value for key, value in group.items() if key != "rows"}
        for row in group["rows"]:
            difference = row["difference"] or {}
            versus = {f"difference_{key}": value for key, value in difference.items()}
            single = {key: value for key, value in row.items() if key not in ("difference", "runs")}
            rows.append(
                {
                    **shared,
                    **single,
                    "reference": result["reference"],
                    **versus,
                    "runs": " ".join(row["runs"]),
                }
            )
    names = dict.fromkeys(key for row in rows for key in row)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


FORMATS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "text": text,
    "markdown": markdown,
    "csv": as_csv,
    "json": to_json,
}
ENDINGS = {".txt": "text", ".md": "markdown", ".csv": "csv", ".json": "json"}


def required(result: Mapping[str, Any]) -> dict[str, Any]:
    """Values by names for ``--require``: ``METHOD@LEVEL.VALUE``, after ``GROUP:`` if there are several."""
    several = len(result["groups"]) > 1
    values = {}
    for group in result["groups"]:
        prefix = ",".join(word for word in (group["task"], group["data"], group["split"]) if word)
        for row in group["rows"]:
            name = f"{row['method']}@{row['level']}".replace(" ", "_")
            values[f"{prefix.replace(' ', ',')}:{name}" if several else name] = row
    return {key: value for key, value in flatten(values).items() if not isinstance(value, str | list)}


def _table(group: Mapping[str, Any], reference: str) -> tuple[list[str], list[list[str]]]:
    """Header and cells of a group; columns in which nothing is known are left out."""
    rows: Sequence[Row] = group["rows"]
    costs = [row["gmacs"] for row in rows if row["gmacs"] is not None]
    _, factor, unit = next(entry for entry in _UNITS if max(costs, default=1.0) >= 0.2 * entry[0])
    metric = group["metric"].replace("_", " ")
    versus = "full" if reference == "full" else reference
    columns: list[tuple[str, Callable[[Row], str | None]]] = [
        ("method", lambda row: row["method"]),
        ("level", lambda row: row["level"]),
        ("seeds", lambda row: str(row["seeds"])),
        (unit, lambda row: _shown(row["gmacs"], lambda value: format_value(value * factor))),
        ("x fewer", lambda row: _shown(row["speedup"], "{:.2f}".format)),
        (f"{metric}, full", lambda row: _score(row["full"])),
        (metric, lambda row: _with_error(row["score"], row["score_se"])),
        ("retained", lambda row: _shown(row["retained"], "{:.1%}".format)),
        (f"minus {versus}", _difference),
        ("p", lambda row: _p_value(row["difference"])),
        ("ms", lambda row: _shown(row["latency_ms"], format_value)),
        ("x faster", lambda row: _shown(row["latency_speedup"], "{:.2f}".format)),
        ("front", lambda row: "*" if row["on_front"] else ""),
    ]
    cells = [(name, [cell(row) for row in rows]) for name, cell in columns]
    shown = [(name, values) for name, values in cells if any(value is not None for value in values)]
    return [name for name, _ in shown], [
        ["-" if value is None else value for value in line]
        for line in zip(*(values for _, values in shown), strict=True)
    ]


def _shown(value: float | None, text: Callable[[float], str]) -> str | None:
    return None if value is None else text(value)


def _published(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    header = ["method", "task", "metric", "GMACs", "x fewer", "full", "score", "retained", "ms", "source"]
    rows = [
        [
            point["method"],
            point["task"],
            point["metric"],
            format_value(point["gmacs"]),
            f"{point['speedup']:.2f}" if point["speedup"] else "-",
            format_value(point["full_score"]),
            format_value(point["score"]),
            f"{point['retained']:.1%}" if point["retained"] else "-",
            format_value(point.get("latency_ms")),
            point["source"],
        ]
        for point in result.get("published", ())
    ]
    return header, rows


_OVER = {
    "seeds": "over seeds",
    "instances": "over instances (one seed)",
    "seeds and instances": "over seeds and instances",
}
"""Ways in which a score's standard error is found (``se_over``), in words."""


def _title(group: Mapping[str, Any]) -> str:
    words = [group["task"], group["data"], group["split"]]
    count = f"{group['count']:,} instances" if group["count"] else None
    return ", ".join(word for word in (*words, count) if word)


def _notes(result: Mapping[str, Any]) -> list[str]:
    over = {row["se_over"] for group in result["groups"] for row in group["rows"]} - {None}
    errors = " or ".join(_OVER[name] for name in sorted(over))
    found = [row["difference"] for group in result["groups"] for row in group["rows"] if row["difference"]]
    notes = [f"score ± standard error {errors}"] if errors else []
    if found:
        pairs = sum(difference["paired"] for difference in found)
        notes.append(f"differences ± standard error over seeds and instances; {pairs} of {len(found)} paired")
        if any(difference["seeds"] == 1 for difference in found):
            notes.append("no p where a side has 1 seed")
    notes.append("* on the Pareto front of score and MACs")
    lines = ["; ".join(notes)]
    if result.get("published"):
        lines.append(result["published_note"])
    if "plot" in result:
        lines.append(f"picture: {result['plot']}")
    return ["\n".join(lines)]


def _score(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.4f}" if error is None else f"{value:.4f} ± {error:.4f}"


def _difference(row: Row) -> str | None:
    found = row["difference"]
    if not found:
        return None
    return f"{found['mean']:+.4f}" if found["se"] is None else f"{found['mean']:+.4f} ± {found['se']:.4f}"


def _p_value(found: Mapping[str, Any] | None) -> str | None:
    if found and found["seeds"] == 1:
        return "1 seed"
    if not found or found["p"] is None:
        return None
    return "<.001" if found["p"] < 0.001 else f"{found['p']:.3f}".removeprefix("0")


def _pipes(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)

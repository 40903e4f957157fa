"""Results as plain text: aligned columns of ASCII, the same on a terminal and in a file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smarttrim_cli.cli import render_profile
from smarttrim_cli.cli.render_profile import inside
from smarttrim_cli.cli.tables import format_value, ratio, table

_COST_WORDS = ("macs", "latency", "memory", "_ms", "param", "seconds", "tokens")
_COMPARED = ("full", "trimmed")
_HEADER = ("quantity", "full", "trimmed", "ratio")


def to_json(result: Any) -> str:
    """JSON with two spaces of indentation; paths become text, numbers that are not finite become null."""
    return json.dumps(_plain(result), indent=2, allow_nan=False) + "\n"


def comparison(result: Mapping[str, Any]) -> str:
    """A result of evaluate, profile or summary: full beside trimmed, then the breakdowns, then the rest."""
    full, trimmed = (result.get(name) or {} for name in _COMPARED)
    parts = []
    rows = _rows(full, trimmed, _flat)
    if rows:
        parts.append(table(_HEADER, [[_timed(row[0], result), *row[1:]] for row in rows]))
    parts += render_profile.explained(result)
    for name in dict.fromkeys([*_breakdowns(full), *_breakdowns(trimmed)]):
        inner = _rows(inside(full, name), inside(trimmed, name), _estimates, costs=_is_cost(name))
        parts.append(table((name.replace("_", " "), "full", "trimmed", "ratio"), inner))
    parts += _versus(result)
    other_size = result.get("at_full_size")
    if other_size:
        heading = f"at the same sparsity: {other_size.get('recipe')} (random weights)"
        rows = _rows(inside(other_size, "full"), inside(other_size, "trimmed"), _flat)
        parts.append(f"{heading}\n{table(_HEADER, rows)}")
        parts += [other_size["explanation"]] if other_size.get("explanation") else []
    shown = (*_COMPARED, "difference", "baselines", "eval", "at_full_size", *render_profile.EXPLAINED)
    rest = {name: value for name, value in result.items() if name not in shown}
    if isinstance(rest.get("recipe"), Mapping):  # for other programs; `profile` names one
        del rest["recipe"]
    if isinstance(rest.get("distribution"), Mapping):
        rest["distribution"] = {_timed(name, result): row for name, row in rest["distribution"].items()}
    return "\n\n".join([*parts, *_further(rest)])


def _timed(name: str, result: Mapping[str, Any]) -> str:
    """The name of a row; of times, which are of a batch where costs are of an instance, with its size."""
    return name + render_profile.per_batch(result) if "latency_ms" in name else name


def _estimates(values: Mapping[str, Any]) -> dict[str, Any]:
    """Estimates (a mean with ``se`` and ``count``) as two rows: the mean, and its error."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and "se" in value:
            label = f"{name} (n={value.get('count')})"
            flat[label] = next((number for key, number in value.items() if key not in ("se", "count")), None)
            flat[f"  standard error of {name}"] = value["se"]
        else:
            flat[name] = value
    return flat


def _versus(result: Mapping[str, Any]) -> list[str]:
    """Paired differences: trimmed against full, and against the baselines at equal MACs."""
    lines, metric = [], result.get("metric") or "accuracy"
    if result.get("difference"):
        lines.append(f"trimmed minus full: {_interval(result['difference'])}")
    evaluated = result.get("eval")
    if evaluated:
        numbers = {k: v for k, v in evaluated.items() if isinstance(v, int | float | str)}
        lines.append(table(("after training", "value"), numbers.items()))
    rows = [
        (
            name,
            *(other.get(key) for key in (metric, "gmacs", "speedup")),
            _interval(inside(other, "trimmed_minus_this")),
        )
        for name, other in (result.get("baselines") or {}).items()
        if other
    ]
    if rows:
        header = ("baseline", metric, "gmacs", "macs speedup", "trimmed minus baseline (95 % interval)")
        lines.append(table(header, rows))
    return lines


def _interval(difference: Mapping[str, Any]) -> str:
    mean, low, high = (difference.get(key) for key in ("mean", "low", "high"))
    if mean is None:
        return "-"
    if low is None or high is None:
        return f"{mean:+.4f}"
    return f"{mean:+.4f} (95 % interval {low:+.4f} to {high:+.4f})"


def plan(result: Mapping[str, Any]) -> str:
    """Target sparsity beside the kept fraction per group, and the predicted cost."""
    groups = result.get("groups") or {}
    rows = [(name, group["target_sparsity"], group["kept"]) for name, group in groups.items()]
    parts = [table(("group", "target_sparsity", "kept"), rows)] if rows else ["no pruning: plain fine-tuning"]
    full, trimmed, speedup = (result.get(name) for name in ("full_gmacs", "trimmed_gmacs", "speedup"))
    cost = f"predicted GMACs per instance: full {format_value(full)}"
    if trimmed is not None:
        cost += f", trimmed {format_value(trimmed)} ({format_value(speedup)}x fewer)"
    before, after = (result.get(f"{side}_gmacs_as_published") for side in ("full", "trimmed"))
    if before and after:
        values = [format_value(value) for value in (before, after, before / after)]
        cost += "\nthe same as published (keys and values of the image projected for every beam and step): "
        cost += f"full {values[0]}, trimmed {values[1]} ({values[2]}x fewer)"
    return "\n".join([*parts, cost])


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers and short texts with dotted names, without the breakdowns."""
    skipped = _breakdowns(values)
    flat = flatten({name: value for name, value in values.items() if name not in skipped})
    return {name: value for name, value in flat.items() if not isinstance(value, list | tuple)}


def _breakdowns(values: Mapping[str, Any]) -> list[str]:
    """Names such as accuracy_by_type and kept, which get a table of their own."""
    return [n for n, value in values.items() if isinstance(value, Mapping) and ("_by_" in n or n == "kept")]


def _rows(
    full: Mapping[str, Any], trimmed: Mapping[str, Any], select: Any, costs: bool = False
) -> list[list[Any]]:
    left, right = select(full), select(trimmed)
    return [
        [
            name,
            left.get(name),
            right.get(name),
            None if _is_error(name) else ratio(left.get(name), right.get(name), costs or _is_cost(name)),
        ]
        for name in dict.fromkeys([*left, *right])
    ]


def _is_error(name: str) -> bool:
    return name.endswith("_se") or "standard error" in name or name == "count"


def _is_cost(name: str) -> bool:
    return any(word in name for word in _COST_WORDS)


def _further(rest: Mapping[str, Any]) -> list[str]:
    """Everything besides full and trimmed: single values, then lists and tables."""
    single = [(n, value) for n, value in rest.items() if not isinstance(value, Mapping | list | tuple)]
    blocks = ["\n".join(f"{name}: {format_value(value)}" for name, value in single if value is not None)]
    for name, value in rest.items():
        if isinstance(value, Mapping) and _is_grid(value):
            header = (name.replace("_", " "), *next(iter(value.values())))
            blocks.append(table(header, [(row, *cells.values()) for row, cells in value.items()]))
        elif isinstance(value, Mapping):
            flat = {k: v for k, v in flatten(value).items() if not isinstance(v, list | tuple)}
            blocks.append(table((name.replace("_", " "), "value"), flat.items()) if flat else "")
        elif isinstance(value, list | tuple) and value and not isinstance(value[0], Mapping | list):
            blocks.append("\n".join([f"{name}:", *(f"  {format_value(item)}" for item in value)]))
    return [block for block in blocks if block]


def _is_grid(value: Mapping[str, Any]) -> bool:
    """Whether all rows are mappings with the same keys to single values."""
    rows = list(value.values())
    if not rows or not all(isinstance(row, Mapping) and list(row) == list(rows[0]) for row in rows):
        return False
    return len(rows) > 1 and not any(
        isinstance(v, Mapping | list | tuple) for row in rows for v in row.values()
    )


def _plain(value: Any) -> Any:
    """Only what JSON knows."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    return _plain(value.item())  # a number of numpy or torch

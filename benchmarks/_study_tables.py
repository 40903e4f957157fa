"""The study's tables in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from _study_cells import Cell, Cells, Shared

from smarttrim_cli.metrics.seeds import Difference

PAPER, OURS = "smarttrim", "ours"
_NONE = "-"


def main_table(cells: Cells, base: str) -> list[str]:
    """Every method at every ratio: score, share of the full model's, differences to SmartTrim and to ours."""
    rows = []
    for method in ("checkpoint", "full_finetuned"):
        if cell := cells.get(base, method):
            rows.append([_label(cell), "1x", _number(cell.gmacs, 4), *_common(cells, cell), _NONE, _NONE])
    there = cells.of(base, ["method"])
    for at in sorted({cell.at for cell in there if cell.at is not None}):
        for cell in there:
            if cell.at != at:
                continue
            differences = [
                _NONE if cell.method == other else difference(cell.minus(cells.get(base, other, at)))
                for other in (PAPER, OURS)
            ]
            measured = f"{_number(cell.speedup)}x" + ("" if cell.within else " (off)")
            rows.append([_label(cell), measured, _number(cell.gmacs, 4), *_common(cells, cell), *differences])
    if not rows:
        return []
    head = ("method", "fewer MACs", "GMACs", "seeds", "score", "retained", "crowded scenes")
    return markdown([*head, "minus SmartTrim", "minus ours"], rows)


def _common(cells: Cells, cell: Cell) -> list[str]:
    retained = cells.retained(cell)
    share = _NONE if retained is None else f"{half_up(retained[0]):.1%}"
    crowded, found = with_error(cell.score("crowded")), cell.measured_speedup("crowded")
    crowded += f" at {found:.2f}x" if found else ""
    return [str(len(cell.results)), with_error(cell.score()), share, crowded]


def heads_table(cells: Cells, base: str) -> list[str]:
    """Score by share of heads kept, a column per method."""
    there = cells.of(base, ["head"])
    methods = list(dict.fromkeys(cell.method for cell in there))
    labels = {cell.method: _label(cell) for cell in there}
    rows = []
    for at in sorted({cell.at for cell in there if cell.at is not None}):
        row = [f"{at:.1f}"]
        for method in methods:
            cell = cells.get(base, method, at)
            row.append(with_error(cell.score() if cell else None))
        rows.append(row)
    return markdown(["heads kept", *(labels[method] for method in methods)], rows) if rows else []


def switches_table(cells: Cells, base: str, parents: dict[str, str]) -> list[str]:
    """What a switch does: score, and difference to the recipe it is a switch of.

    Args:
        cells: The results.
        base: Which base.
        parents: Method to the one that it extends.
    """
    rows = []
    for cell in cells.of(base, ["switch"]):
        parent = cells.get(base, parents[cell.method], cell.at)
        against = _label(parent) if parent else parents[cell.method]
        effect = cell.minus(parent)
        numbers = [with_error(cell.score()), against, difference(effect), _p_value(effect)]
        rows.append([_label(cell), f"{_number(cell.speedup)}x", str(len(cell.results)), *numbers])
    return (
        markdown(["switch", "fewer MACs", "seeds", "score", "against", "effect", "p"], rows) if rows else []
    )


def relevance_table(cells: Cells, base: str, at: float) -> list[str]:
    """Share of the patches kept at every vision layer: relevant / of other objects / background, in %."""
    there = [cell for cell in cells.of(base, ["method"]) if cell.at == at and "relevance" in cell.first]
    if not there:
        return []
    layers = list(there[0].first["relevance"])
    rows = [[_label(cell), *(_shares(cell, layer) for layer in layers)] for cell in there]
    return markdown(["method", *layers], rows)


def _shares(cell: Cell, layer: str) -> str:
    shares = []
    for kind in ("relevant", "other", "background"):
        values = [result["relevance"].get(layer, {}).get(kind) for result in cell.results]
        known = [value for value in values if value is not None]
        shares.append(f"{100 * sum(known) / len(known):.0f}" if known else _NONE)
    return " / ".join(shares)


def difficulty_table(cells: Cells, base: str) -> list[str]:
    """Rank correlation of an instance's MACs with its objects and reasoning steps, mean over seeds."""
    rows = []
    for cell in cells.of(base, ["method"]):
        found = [result["difficulty"] for result in cell.results if result.get("difficulty")]
        if not found or cell.at is None:
            continue
        row = [_label(cell), f"{cell.at:.1f}x"]
        for what in ("objects", "steps"):
            for cost in ("macs", "share"):
                values = [one[what][cost]["rho"] for one in found if cost in one.get(what, {})]
                row.append(f"{sum(values) / len(values):+.2f}" if values else _NONE)
        rows.append(row)
    names = ("MACs, objects", "share kept, objects", "MACs, steps", "share kept, steps")
    return markdown(["method", "at", *names], rows) if rows else []


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def with_error(value: Difference | None) -> str:
    """``.947 ± .004``; the error is left out where it is not known."""
    if value is None:
        return _NONE
    error = value.standard_error
    return f"{half_up(value.mean):.3f}" + ("" if math.isnan(error) else f" ± {half_up(error):.3f}")


def half_up(value: float) -> float:
    """Nudged away from 0: shares of 4,000 often end in a half, and their binary form would decide."""
    return value + math.copysign(1e-9, value)


def signed(value: Difference | None) -> str:
    """The same with a sign."""
    if value is None:
        return _NONE
    return ("+" if value.mean > 0 else "") + with_error(value)


def difference(found: Shared | None, *, say_one: bool = False) -> str:
    """The same, with the seeds that it is of: ``-0.160 ± 0.010 (seed 1)`` where one of the cells has more.

    Args:
        found: The difference.
        say_one: Also say so where both have a single seed.
    """
    if found is None:
        return _NONE
    of = ""
    if not found.complete:
        of = f" (seed{'s' * (len(found.seeds) > 1)} {', '.join(map(str, found.seeds))})"
    elif say_one and len(found.seeds) == 1:
        of = " (one seed)"
    return signed(found.value) + of


def _p_value(found: Shared | None) -> str:
    if found is None:
        return _NONE
    if len(found.seeds) == 1:
        return "one seed"
    p = found.value.p_value
    return _NONE if math.isnan(p) else (f"{p:.3f}" if p >= 0.001 else "< 0.001")


def _number(value: float | None, digits: int = 2) -> str:
    return _NONE if value is None else f"{value:.{digits}f}"


def trials_table(trials: Sequence[dict[str, Any]], usual: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Runs that settings were chosen by: what they changed, and how they scored.

    Args:
        trials: Their results.
        usual: Method and base to the overrides of today. A trial that has all of these keys is shown by
            what is different, others by all that they override.
    """
    rows = []
    for trial in sorted(trials, key=lambda trial: str(trial["trial"])):
        side = trial["trimmed"]
        score = f"{side[trial['metric']]:.3f} ± {side[trial['metric'] + '_se']:.3f}"
        fewer = f"{trial['speedup']['macs']:.2f}x"
        said = _changed(trial, usual.get(f"{trial['method']} {trial['base']}", {}))
        rows.append([str(trial["trial"]), trial["base"], said, str(trial["steps"]), fewer, score])
    return markdown(["trial", "recipe", "changed", "steps", "fewer MACs", "score"], rows) if rows else []


def _changed(trial: dict[str, Any], usual: Mapping[str, str]) -> str:
    own = dict(text.split("=", 1) for text in trial["overrides"])
    own = {key: value for key, value in own.items() if key not in ("seed", "pruning.target_speedup")}
    if not usual or not usual.keys() <= own.keys():
        return ", ".join(f"`{key}={value}`" for key, value in own.items()) or _NONE
    different = [f"`{key}={value}`" for key, value in own.items() if usual.get(key) != value]
    return f"{trial['method']}: {', '.join(different) or 'nothing'}"


def _label(cell: Cell) -> str:
    return str(cell.first["label"])

"""Runs side by side: means over seeds with standard errors, and differences tested on the same instances.

Results are grouped by task, data and split; within a group a row is a method at a ratio, over its seeds.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from smarttrim_cli.engine.files import check_writable, finite
from smarttrim_cli.engine.levels import Level, differing_keys, levels
from smarttrim_cli.engine.pareto import draw, front, left_out
from smarttrim_cli.engine.published import published_note, published_points
from smarttrim_cli.engine.report import Reporter, SilentReporter
from smarttrim_cli.engine.results import PREDICTIONS, Result, Side, distinct_names, read_results
from smarttrim_cli.errors import UserError, some
from smarttrim_cli.metrics.seeds import (
    Difference,
    matched_over_seeds,
    paired_over_seeds,
    unmatched,
)
from smarttrim_cli.metrics.stats import Estimate, mean_with_error

FULL = "full"
_CONDITIONS = ("device", "device_name", "threads", "kernels", "dtype")
_TIMES = ("latency_ms", "full_latency_ms", "latency_speedup")


@dataclass(frozen=True)
class Row:
    """A method at a level, over its seeds.

    Attributes:
        method: The method's name; where it has several rows at a level, with the run's.
    """

    method: str
    level: Level
    results: tuple[Result, ...]

    @property
    def seeds(self) -> set[int | None]:
        """Seeds of the results; None where unknown."""
        return {result.seed for result in self.results}

    def of(self, method: str) -> bool:
        """Whether it is a row of a method."""
        return self.results[0].method == method


def compare(
    targets: Sequence[str],
    *,
    reference: str = FULL,
    methods: Sequence[str] = (),
    plot: Path | None = None,
    published: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Compare results.

    Args:
        targets: Run directories, JSON result files, or folders of them; ``NAME=PATH`` names the method.
        reference: Method that the others are compared with; ``full``: every run's own full model.
        methods: Only these, and the reference; empty for all.
        plot: Draw score against MACs, and against latency where it is known, into this PNG or SVG file.
        published: Also give the published points of the same tasks, and draw them: the axes of the picture
            are then relative to the full model.
        reporter: Receives messages.

    Returns:
        ``reference``, ``groups`` (``task``, ``data``, ``split``, ``metric``, ``count``, ``rows``),
        ``published``, and ``plot``. A row has ``method``, ``level``, ``seeds``; means (``score``, ``full``,
        ``gmacs``, ``speedup``, ``retained``, ``latency_ms``, ...); ``score_se`` with
        ``se_over`` (``seeds and instances``, or one of them); ``difference`` to the reference (``mean``,
        ``se``, ``seeds``, ``paired``, and ``p`` unless a side has a single seed); ``on_front``.

    Raises:
        UserError: A target has no results, or there is no such method.
    """
    reporter = reporter or SilentReporter()
    check_writable(plot, "--plot")
    results, remarks = read_results(targets)
    for remark in remarks:
        reporter.warn(remark)
    _check_methods(results, reference, methods)
    if methods:
        results = [result for result in results if result.method in (*methods, reference)]
    groups = [_group(members, reference, reporter) for members in _by_group(results)]
    report: dict[str, Any] = {"reference": reference, "groups": groups}
    if published:
        report["published"] = published_points({group["task"] for group in groups})
        report["published_note"] = published_note()
        if not report["published"]:
            reporter.warn("no published points for these tasks")
    if plot is not None:
        drawn = [group if group["same_conditions"] else _without_times(group) for group in groups]
        report["plot"] = str(draw(plot, drawn, report.get("published", ()), relative=published))
        lacking = left_out(drawn, relative=published)
        if lacking:
            what = "what they are relative to a full model of their own" if published else "what they cost"
            reporter.warn(f"not in the picture, since it is not known {what}: {some(lacking)}")
    return dict(finite(report))


def _check_methods(results: Sequence[Result], reference: str, methods: Sequence[str]) -> None:
    known = sorted({result.method for result in results})
    asked = [("--method", name) for name in methods]
    asked += [("--reference", reference)] if reference != FULL else []
    for option, name in asked:
        if name not in known:
            hint = f"methods: {', '.join([*known, *([FULL] if option == '--reference' else [])])}"
            raise UserError("no such method", where=f"{option} {name}", hint=hint)


def _by_group(results: Sequence[Result]) -> list[list[Result]]:
    """Results of the same task, data, split and metric, in alphabetical order."""
    named: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in results:
        named[(result.task, result.data)].append(result)
    groups: dict[tuple[str, ...], list[Result]] = defaultdict(list)
    for (task, _), members in named.items():
        for result, data in zip(members, _data_names(members), strict=True):
            groups[(task, data, result.split or "", result.metric)].append(replace(result, data=data))
    return [groups[key] for key in sorted(groups)]


def _data_names(results: Sequence[Result]) -> list[str]:
    """Names of the results' data, with the options that differ where data of one name are not the same."""
    keys = sorted({key for result in results if result.settings for key in result.settings})
    differing = [
        key
        for key in keys
        if len({repr(result.settings.get(key)) for result in results if result.settings}) > 1
    ]
    return [
        " ".join(
            [result.data, *(f"{key}={result.settings.get(key)}" for key in differing if result.settings)]
        )
        for result in results
    ]


def _group(results: Sequence[Result], reference: str, reporter: Reporter) -> dict[str, Any]:
    first = results[0]
    rows = list(_rows(results, reporter))
    entries = [_entry(row) for row in rows]
    unpaired: list[tuple[Row, Row]] = []
    several = [row for row in rows if row.of(reference) and row.method != reference]
    if several:
        names = some([f"{row.method} at {row.level}" for row in several])
        reporter.warn(
            f"{first.task}: --reference {reference} is several rows, {names}; what is compared with one of "
            "them has no difference; give one a name of its own, NAME=PATH, and that as --reference"
        )
    for row, entry in zip(rows, entries, strict=True):
        other = None if reference == FULL else _compared_with(row, rows, reference)
        found = _difference_to_full(row) if reference == FULL else None
        if other is not None:
            found = _difference(row, other)
        if found is not None:
            entry["difference"] = _as_dict(found)
            unpaired += [(row, other)] if other and not found.paired else []
    _say_why_unpaired(first.task, unpaired, reporter)
    costs = [(entry["gmacs"], entry["score"]) for entry in entries]
    for entry, best in zip(entries, front(costs), strict=True):
        entry["on_front"] = best
    counts = sorted({result.count for result in results if result.count is not None})
    if len(counts) > 1:
        sizes = ", ".join(map(str, counts))
        reporter.warn(f"{first.task}: results on different numbers of instances: {sizes}")
    unlike = _unlike_conditions(results)
    if unlike:
        reporter.warn(
            f"{first.task}: latencies were measured under different conditions, so those of different rows "
            f"cannot be compared: {'; '.join(unlike)}"
        )
    return {
        "task": first.task,
        "data": first.data,
        "split": first.split,
        "metric": first.metric,
        "count": counts[0] if len(counts) == 1 else None,
        "same_conditions": not unlike,
        "rows": entries,
    }


def _unlike_conditions(results: Sequence[Result]) -> list[str]:
    """What differs in how latencies were measured: ``threads 1, 2``."""
    timed = [result.timed_on for result in results if result.model.latency_ms and result.timed_on]
    values = {key: sorted({str(one[key]) for one in timed if key in one}) for key in _CONDITIONS}
    return [f"{key} {', '.join(found)}" for key, found in values.items() if len(found) > 1]


def _without_times(group: Mapping[str, Any]) -> dict[str, Any]:
    rows = [{**row, **dict.fromkeys(_TIMES)} for row in group["rows"]]
    return {**group, "rows": rows}


def _say_why_unpaired(task: str, pairs: Sequence[tuple[Row, Row]], reporter: Reporter) -> None:
    """Messages on rows that were not compared instance by instance with the reference."""
    unlike = [f"{row.method} at {row.level}" for row, other in pairs if row.seeds != other.seeds]
    if unlike:
        reporter.message(
            f"{task}: no paired test where the reference has other seeds, or more or fewer: {some(unlike)}; "
            "the difference is that of the means"
        )
    if len(unlike) < len(pairs):
        reporter.message(
            f"{task}: no paired test where the scores of instances are not known; they are read from "
            f"{PREDICTIONS} in a run directory (smarttrim evaluate RUN --predictions-out RUN/{PREDICTIONS})"
        )


def _rows(results: Sequence[Result], reporter: Reporter) -> Iterable[Row]:
    """Rows by level and method; results that are no repetitions are rows of their own.

    Repetitions have seeds of their own, and else the same recipe.
    """
    cells: dict[tuple[str, float, str], list[Result]] = defaultdict(list)
    for level, result in zip(levels(results), results, strict=True):
        cells[(level.kind, level.value, result.method)].append(result)
    for (kind, value, method), members in sorted(cells.items(), key=lambda item: item[0]):
        level = Level(kind, value)
        differing = differing_keys(members)
        if differing:
            reporter.warn(
                f"{members[0].task}: runs of {method} are not pooled, "
                f"their recipes differ in {some(differing)}"
            )
        if len({result.seed for result in members}) == len(members) and not differing:
            yield Row(method, level, tuple(sorted(members, key=lambda r: (r.seed is None, r.seed or 0))))
        else:
            names = distinct_names([result.source for result in members])
            for name, result in zip(names, members, strict=True):
                yield Row(f"{method}({name})", level, (result,))


def _entry(row: Row) -> dict[str, Any]:
    """A row without what it is compared with."""
    results = row.results
    score = mean_with_error([result.model.score for result in results])
    own = [result.model.error for result in results]
    error, over = _joint_error([result.model.score for result in results], own)
    retained = _mean([result.retained for result in results])
    if retained:
        shares = [_error_of_share(result) for result in results]
        found, _ = _joint_error([result.retained or 0.0 for result in results], shares)
        retained = replace(retained, standard_error=math.nan if found is None else found)
    return {
        "method": row.method,
        "level": str(row.level),
        "seeds": len(results),
        "score": score.mean,
        "score_se": error,
        "se_over": over,
        "full": _value([result.full.score if result.full else None for result in results]),
        "retained": retained and retained.mean,
        "retained_se": retained and retained.standard_error,
        "gmacs": _value([result.model.gmacs for result in results]),
        "full_gmacs": _value([result.full.gmacs if result.full else None for result in results]),
        "speedup": _value([result.speedup for result in results]),
        "speedup_as_published": _value([_as_published(result) for result in results]),
        **_latency(results),
        "difference": None,
        "runs": [result.source for result in results],
    }


def _error_of_share(result: Result) -> float | None:
    """Standard error over instances of the share of its full model's score; by pairs, where that is known."""
    error = result.difference.get("se", result.model.error)
    return None if error is None or not result.full else error / result.full.score


def _joint_error(values: Sequence[float], errors: Sequence[float | None]) -> tuple[float | None, str | None]:
    """Standard error of a mean over seeds, and what it is over: seeds, instances, or both where known.

    Three seeds that happen to lie close together say little; the instances are the same few for all.
    """
    known = [math.nan if error is None else error for error in errors]
    found = matched_over_seeds(values, known)
    parts = {"seeds": found.over_seeds, "instances": found.over_instances}
    over = [name for name, error in parts.items() if math.isfinite(error)]
    return (found.standard_error, " and ".join(over)) if over else (None, None)


def _latency(results: Sequence[Result]) -> dict[str, float | None]:
    """Means over the seeds that were profiled: latency hardly depends on the seed, and often one is timed."""
    timed = [result for result in results if result.model.latency_ms or result.latency_speedup]
    if not timed:
        return {"latency_ms": None, "full_latency_ms": None, "latency_speedup": None}
    return {
        "latency_ms": _value([result.model.latency_ms for result in timed]),
        "full_latency_ms": _value([result.full.latency_ms if result.full else None for result in timed]),
        "latency_speedup": _value([result.latency_speedup for result in timed]),
    }


def _as_published(result: Result) -> float | None:
    sides = (result.full, result.model)
    costs = [side.gmacs_as_published if side else None for side in sides]
    return costs[0] / costs[1] if costs[0] and costs[1] else None


def _mean(values: Sequence[float | None]) -> Estimate | None:
    """Mean and standard error, if every value is known."""
    known = [value for value in values if value is not None]
    return mean_with_error(known) if len(known) == len(values) else None


def _value(values: Sequence[float | None]) -> float | None:
    estimate = _mean(values)
    return estimate.mean if estimate else None


def _difference_to_full(row: Row) -> Difference | None:
    """Every run against its own full model."""
    results = [result for result in row.results if result.full]
    if not results or len(results) < len(row.results):
        return None
    pairs = [(result.model, result.full) for result in results if result.full]
    paired = _paired(pairs)
    if paired is not None:
        return paired
    found = [result.difference for result in results]
    means = [
        known.get("mean", model.score - full.score) for known, (model, full) in zip(found, pairs, strict=True)
    ]
    errors = [known.get("se", _separate_error(*pair)) for known, pair in zip(found, pairs, strict=True)]
    return matched_over_seeds(means, errors, paired=all("se" in known for known in found))


def _compared_with(row: Row, rows: Sequence[Row], reference: str) -> Row | None:
    """The row of the reference at the same level; None if there is none, or several."""
    others = [other for other in rows if other.of(reference) and other.level.near(row.level)]
    if row.of(reference) or not others:
        return None
    nearest = min(abs(one.level.value - row.level.value) for one in others)
    other, *further = [one for one in others if abs(one.level.value - row.level.value) == nearest]
    return None if further else other  # several runs that are no repetitions


def _difference(row: Row, other: Row) -> Difference:
    """Of two rows: seed by seed where their seeds are the same, else that of the means."""
    if row.seeds == other.seeds:
        by_seed = {result.seed: result.model for result in other.results}
        pairs = [(result.model, by_seed[result.seed]) for result in row.results]
        paired = _paired(pairs)
        if paired is not None:
            return paired
        errors = [_separate_error(*pair) for pair in pairs]
        return matched_over_seeds([one.score - two.score for one, two in pairs], errors)
    return unmatched(
        [result.model.score for result in row.results],
        [result.model.score for result in other.results],
        *(_rms([_error(result.model.error) for result in one.results]) for one in (row, other)),
    )


def _paired(pairs: Sequence[tuple[Side, Side]]) -> Difference | None:
    """The paired difference, if all sides have scores of the same instances."""
    ids = sorted(pairs[0][0].scores)
    if len(ids) < 2 or any(sorted(side.scores) != ids for pair in pairs for side in pair):
        return None
    first, second = ([[pair[place].scores[i] for i in ids] for pair in pairs] for place in (0, 1))
    return paired_over_seeds(first, second)


def _separate_error(one: Side, two: Side) -> float:
    """Standard error over instances of a difference of two sides that were measured separately."""
    return math.hypot(_error(one.error), _error(two.error))


def _error(value: float | None) -> float:
    return math.nan if value is None else value


def _rms(values: Sequence[float]) -> float:
    return math.sqrt(float(np.mean(np.square(values))))


def _as_dict(difference: Difference) -> dict[str, Any]:
    return {
        "mean": difference.mean,
        "se": difference.standard_error,
        "se_seeds": difference.over_seeds,
        "se_instances": difference.over_instances,
        "p": difference.p_value,
        "seeds": difference.seeds,
        "paired": difference.paired,
    }

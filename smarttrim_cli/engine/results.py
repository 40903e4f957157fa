"""The result of one run, whatever it was stored as: a run directory, a JSON file, or folders of these.

A result file holds what ``evaluate`` returns (``summary.json`` of a run, ``evaluate --output``, which has the
recipe inside), and may name ``method``, ``task``, ``density``, ``ratio`` or ``retention`` (a share of heads),
and ``seed``, as ``benchmarks/study.py`` does. Other splits may be inside, each a result of its own.

Scores of single instances, for paired tests, come from ``predictions.jsonl`` in the run directory (of
``x.json``: ``x.predictions.jsonl``), or from ``scores`` of a side: a list, or a text of 0 and 1.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from smarttrim_cli.data.files import read_json
from smarttrim_cli.engine.result_keys import check_result
from smarttrim_cli.engine.runs import Run, is_exported, is_run, not_a_run
from smarttrim_cli.errors import UserError, some
from smarttrim_cli.recipe.flat import BESIDE_TRAINING, flat, is_in
from smarttrim_cli.tasks.records import read_records

PREDICTIONS = "predictions.jsonl"
NAMELESS = "task not named"
_PLACE = ("method", "task", "density", "ratio", "retention", "seed")
_SCORE_TOLERANCE = 1e-3
_SWITCHES = ("stable_init", "curriculum", "self_distillation")
_ADDITIONS = ("guidance_warmup", "budget_controller")
_OWN_CONTENT = ("jsonl", "hf_datasets")
"""Readers of formats, which any data may have."""

_OF_A_RUN = (*BESIDE_TRAINING, "seed")


@dataclass(frozen=True)
class Side:
    """One model of a result: its score and costs per instance, None where they are not known.

    Attributes:
        scores: Score of every instance by its id; empty if not stored.
    """

    score: float
    error: float | None = None
    gmacs: float | None = None
    gmacs_as_published: float | None = None
    latency_ms: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What a run gave.

    Attributes:
        source: Where it was read.
        model: The model that is compared: the trimmed one, or the only one there is.
        full: The full model on the same instances.
        ratio: Named reduction of MACs; None if none was named.
        retention: Named share of heads kept; None if none was named.
        settings: Options of the data, to tell data sets of one name apart.
        recipe: What repetitions of a run have in common, by dotted key; empty where no recipe is stored.
        difference: Model minus full, as ``evaluate`` found it (``mean``, ``se``), if it did.
        timed_on: Where latencies were measured: device, threads, kernels, ...
    """

    source: str
    method: str
    task: str
    data: str
    split: str | None
    metric: str
    model: Side
    full: Side | None
    speedup: float | None
    latency_speedup: float | None = None
    ratio: float | None = None
    retention: float | None = None
    seed: int | None = None
    count: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    difference: Mapping[str, float] = field(default_factory=dict)
    timed_on: Mapping[str, Any] = field(default_factory=dict)

    @property
    def retained(self) -> float | None:
        """Score over that of the full model."""
        return self.model.score / self.full.score if self.full and self.full.score else None


def read_results(targets: Sequence[str]) -> tuple[list[Result], list[str]]:
    """Read results.

    Args:
        targets: Run directories, JSON files, folders of either; ``NAME=PATH`` names the method.

    Returns:
        The results, each once, and remarks on what was left out.

    Raises:
        UserError: A target does not exist, is none of these, or has no results.
    """
    results: list[Result] = []
    remarks: list[str] = []
    seen: set[Path] = set()
    for target in targets:
        name, path = _named(target)
        for place in _places(path):
            if place.resolve() in seen:
                if name is not None:
                    remarks.append(f"left out, it is there already: {target}")
                continue
            seen.add(place.resolve())
            content = _content(place)
            if "error" in content and "full" not in content:
                remarks.append(f"left out, the run failed: {place}")
            elif not _is_result(content) and path.is_dir() and place != path:
                remarks.append(f"left out, no result: {place}")
            else:
                results += _results(place, content, name)
    nameless = [result.source for result in results if result.task == NAMELESS]
    if nameless and len(results) > 1:
        remarks.append(f"of which task they are is not in {some(nameless)}: they share a table")
    if not results:
        for _, path in map(_named, targets):
            if is_exported(path):
                raise not_a_run(path)
        raise UserError("no results there", where=", ".join(targets), hint="smarttrim evaluate RUN")
    return results, remarks


def _results(place: Path, content: Mapping[str, Any], name: str | None) -> list[Result]:
    """The result of a place, and those on further splits inside it."""
    try:
        further = [_result(place, part, name, {}) for part in _further_splits(content)]
        return [_result(place, content, name, _stored_scores(place)), *further]
    except UserError:
        raise
    except (
        ArithmeticError,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
    ) as error:  # something of another kind inside
        raise UserError(f"not what evaluate and finetune write ({error})", where=str(place)) from error


def result_name(source: str | Path) -> str:
    """What a result is called where it has no other name: a folder's, or a file's without its ending."""
    return Path(source).name.removesuffix(".json")


def distinct_names(sources: Sequence[str]) -> list[str]:
    """Names of results, each with as much of its path as it takes to tell them apart, else with a number."""
    paths = [Path(source) for source in sources]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = [str(Path(*path.parts[-depth:])).removesuffix(".json") for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{result_name(source)} {number}" for number, source in enumerate(sources, 1)]


def _named(target: str) -> tuple[str | None, Path]:
    """Split ``NAME=PATH``; a path may have a = of its own."""
    name, equals, rest = target.partition("=")
    if not equals or os.path.exists(target):  # Path.exists() fails on what is too long for a name
        return None, Path(target)
    return name, Path(rest)


def _places(path: Path) -> Iterator[Path]:
    """Run directories and JSON files of a target."""
    if not path.exists():
        found = ", ".join(sorted(str(file.parent) for file in Path("runs").glob("*/recipe.yaml")))
        hint = f"runs here: {found or 'none'}"
        raise UserError("no such run directory, folder of results or JSON file", where=str(path), hint=hint)
    if path.is_file():
        yield path.parent if path.name == "summary.json" and is_run(path.parent) else path
        return
    if is_run(path):
        yield path
        return
    inside = sorted(file for file in path.glob("*.json") if not file.name.startswith("."))
    runs = sorted(file.parent for file in path.glob("*/recipe.yaml"))
    if not inside and not runs:
        hint = "a run directory has a recipe.yaml; a folder of results has JSON files"
        raise UserError("not a run directory, and no results in it", where=str(path), hint=hint)
    yield from (*inside, *(run for run in runs if Run(run).summary_file.exists()))


def _content(place: Path) -> Mapping[str, Any]:
    file = place / "summary.json" if place.is_dir() else place
    if not file.exists():
        raise UserError("no results there yet", where=str(place), hint=f"smarttrim evaluate {place}")
    content = read_json(file)
    return content if isinstance(content, dict) else {}


def _is_result(content: Mapping[str, Any]) -> bool:
    """Whether there is a main score of a model."""
    side = content.get("trimmed") or content.get("full")
    metric = content.get("metric") or "accuracy"
    return isinstance(side, dict) and isinstance(metric, str) and isinstance(side.get(metric), int | float)


def _further_splits(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Results on other splits inside a result: what ``evaluate`` returned, under a key of its own."""
    shared = {key: content[key] for key in _PLACE if key in content}
    parts = [part for part in content.values() if isinstance(part, dict) and "split" in part]
    return [{**shared, **part} for part in parts if _is_result(part)]


def _result(
    place: Path, content: Mapping[str, Any], name: str | None, stored: Mapping[str, Mapping[str, float]]
) -> Result:
    check_result(content, str(place / "summary.json" if place.is_dir() else place))
    if not _is_result(content):
        hint = f"smarttrim evaluate {place}" if place.is_dir() else "expected what evaluate writes"
        raise UserError("no scores of a model in it", where=str(place), hint=hint)
    metric = str(content.get("metric") or "accuracy")
    recipe = _recipe(place) or _recipe_inside(content)
    speedups = content.get("speedup") or {}
    trimmed, full = content.get("trimmed"), content.get("full")
    sides = {
        key: _side(side, metric, stored.get(key, {}))
        for key, side in (("full", full), ("trimmed", trimmed))
        if side and side.get(metric) is not None
    }
    own_full = sides.get("full") if "trimmed" in sides else None
    model = sides.get("trimmed") or sides["full"]
    data = recipe.get("task", {}).get("data") or {}
    return Result(
        source=str(place),
        method=name or str(content.get("method") or _method(recipe) or result_name(place)),
        task=str(content.get("task") or _task(recipe) or NAMELESS),
        data=str(content.get("density") or data.get("name") or ""),
        split=content.get("split"),
        metric=metric,
        model=model,
        full=own_full,
        speedup=speedups.get("macs") or _quotient(own_full, model),
        latency_speedup=speedups.get("latency_p50") or speedups.get("latency"),
        ratio=_number(content.get("ratio")) or (recipe.get("pruning") or {}).get("target_speedup"),
        retention=_number(content.get("retention")),
        seed=content.get("seed", recipe.get("seed")),
        count=content.get("count"),
        settings=_data_settings(recipe.get("task", {})),
        recipe={key: value for key, value in flat(recipe) if not _may_differ(key)},
        difference={k: v for k, v in (content.get("difference") or {}).items() if v is not None},
        timed_on=_timed_on(content),
    )


def _data_settings(task: Mapping[str, Any]) -> dict[str, Any]:
    """What tells data apart; where they are the user's own, the name of their folder is part of it."""
    data = task.get("data") or {}
    settings = {key: value for key, value in data.items() if key != "data_dir"}
    own = not data or data.get("name") in _OWN_CONTENT
    folder = data.get("data_dir", task.get("data_dir")) if own else None
    return settings | ({"folder": Path(folder).name} if isinstance(folder, str) else {})


def _timed_on(content: Mapping[str, Any]) -> dict[str, Any]:
    """The environment of ``profile``, in a summary or in what it wrote itself."""
    profiled = content.get("profile")
    environment = (profiled if isinstance(profiled, Mapping) else content).get("environment")
    return dict(environment) if isinstance(environment, Mapping) else {}


def _may_differ(key: str) -> bool:
    """Whether repetitions of a run may differ in a key: seed, places, what training does not depend on."""
    return key.endswith(("_dir", "checkpoint")) or is_in(key, _OF_A_RUN)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _quotient(full: Side | None, model: Side) -> float | None:
    return full.gmacs / model.gmacs if full and full.gmacs and model.gmacs else None


def _side(side: Mapping[str, Any], metric: str, stored: Mapping[str, float]) -> Side:
    """A model's side; scores of instances with another mean than the score belong to something else."""
    score = float(side[metric])
    scores = dict(stored) or _listed(side.get("scores"))
    mean = math.fsum(scores.values()) / len(scores) if scores else math.nan
    latency = side.get("latency_ms")
    return Side(
        score,
        _number(side.get(f"{metric}_se")),
        _number(side.get("gmacs")),
        _number(side.get("gmacs_as_published")),
        _number(latency.get("p50", latency.get("mean")) if isinstance(latency, Mapping) else latency),
        scores if abs(mean - score) <= _SCORE_TOLERANCE * max(1.0, abs(score)) else {},
    )


def _listed(scores: Any) -> dict[str, float]:
    """Scores of instances given as a list or as a text of 0 and 1, by place."""
    return {str(index): float(score) for index, score in enumerate(scores or ()) if score is not None}


def _stored_scores(place: Path) -> dict[str, dict[str, float]]:
    """Scores of both models by instance, from the predictions of a run."""
    file = place / PREDICTIONS if place.is_dir() else place.with_suffix(".predictions.jsonl")
    if not file.exists():
        return {}
    records = read_records(file)
    keys = {"trimmed": "score", "full": "full_score"}
    return {
        side: {str(r["id"]): float(r[key]) for r in records if isinstance(r.get(key), int | float)}
        for side, key in keys.items()
    }


def _recipe(place: Path) -> dict[str, Any]:
    """The stored recipe of a run, as it is: those of older versions can be compared as well."""
    file = place / "recipe.yaml"
    if not file.exists():
        return {}
    try:
        recipe = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"not YAML ({error})", where=str(file)) from error
    return recipe if isinstance(recipe, dict) else {}


def _recipe_inside(content: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe that ``evaluate`` writes beside its results; ``profile`` only names one."""
    recipe = content.get("recipe")
    return dict(recipe) if isinstance(recipe, dict) else {}


def _task(recipe: Mapping[str, Any]) -> str | None:
    """``meter/vqa``."""
    names = [str((recipe.get(key) or {}).get("name", "")) for key in ("backbone", "task")]
    return "/".join(names) if all(names) else None


def _method(recipe: Mapping[str, Any]) -> str | None:
    """How a recipe trims: its trimmers, what of the paper's strategy is off (-) and what was added (+)."""
    if not recipe:
        return None
    pruning, strategy = recipe.get("pruning"), recipe.get("strategy") or {}
    if not pruning:
        if strategy.get("teacher"):
            return "ftkd"
        return "small" if (recipe.get("backbone") or {}).get("keep_layers") else "full_finetuned"
    trimmers = [pruning.get(key) for key in ("token_trimmer", "head_trimmer")]
    parts = ["+".join(str(trimmer["name"]) for trimmer in trimmers if trimmer)]
    parts += [f"-{name}" for name in _SWITCHES if (strategy.get(name) or {}).get("enabled") is False]
    parts += [f"+{name}" for name in _ADDITIONS if (strategy.get(name) or {}).get("enabled")]
    return "".join(parts)

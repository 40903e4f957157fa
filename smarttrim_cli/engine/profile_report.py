"""What ``profile`` reports of its measurements: comparison, explanation, table by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from smarttrim_cli.engine.artifact import parameter_count
from smarttrim_cli.engine.breakdown import (
    ATTENTION,
    GATHERS,
    MLPS,
    PROJECTIONS,
    REST,
    TRIMMERS,
    Times,
    by_part,
    by_place,
)
from smarttrim_cli.engine.inference import Predictions
from smarttrim_cli.engine.scores import as_published
from smarttrim_cli.pruning.cost import Counts, full_counts, start_of, tokens_after, total_macs
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.pruning.sites import TOKEN, LayerSpec, Site

SIDES = {"full": "full", "packed": "trimmed"}
"""Mode to its name in reports."""

_EVALUATED = ("gmacs", "gmacs_from", "gmacs_by_part", "gmacs_as_published", "kept")
_WORTH_SAYING = 0.005


@dataclass
class Measured:
    """Measurements of one mode.

    Attributes:
        latency: Milliseconds per batch.
        macs: Of every instance, by torchprofile.
        flops: Of every instance, MACs by torch's flop counter.
        memory: Peak bytes of activations.
        times: Where the time went.
    """

    latency: list[float] = field(default_factory=list)
    macs: list[int] = field(default_factory=list)
    flops: list[int] = field(default_factory=list)
    memory: int = 0
    times: Times = field(default_factory=dict)


def make_report(
    model: TrimmedModel, measured: Mapping[str, Measured], costs: Predictions, batch_size: int
) -> dict[str, Any]:
    """Everything but the table by layer; see ``profile``."""
    full = measured["full"]
    report: dict[str, Any] = {
        "instances": len(costs.macs),
        "batch_size": batch_size,
        "full": _side(full, costs, parameter_count(model.backbone), whole=True),
    }
    report["breakdown"] = {SIDES[mode]: by_part(one.times) for mode, one in measured.items()}
    if full.macs:
        report["macs_counts"] = {
            SIDES[mode]: _counts(one, costs, whole=mode == "full") for mode, one in measured.items()
        }
    if "packed" not in measured:
        return report
    latency = measured["packed"].latency
    parameters = parameter_count(model.backbone) + parameter_count(model.trimmers)
    trimmed = _side(measured["packed"], costs, parameters, whole=False)
    trimmed["kept"] = {group: sum(values) / len(values) for group, values in costs.kept.items()}
    report["trimmed"] = trimmed
    report["speedup"] = {
        "macs": report["full"]["gmacs"] / trimmed["gmacs"],
        "latency": sum(full.latency) / sum(latency),
        "latency_p50": report["full"]["latency_ms"]["p50"] / trimmed["latency_ms"]["p50"],
    }
    report["speedup"]["realised"] = report["speedup"]["latency"] / report["speedup"]["macs"]
    ratios = [full / own for full, own in zip(costs.full_macs, costs.macs, strict=True)]
    report["distribution"] = {
        "macs_reduction": _percentiles(ratios),
        "trimmed_latency_ms": _percentiles(latency),
    }
    report["explanation"] = explanation(report["speedup"], report["breakdown"])
    return report


def _side(measured: Measured, costs: Predictions, parameters: int, whole: bool) -> dict[str, Any]:
    """One column of the table. GMACs are torchprofile's where they were counted, else the cost model's."""
    analytic, parts = (costs.full_macs, costs.full_parts) if whole else (costs.macs, costs.parts)
    exact = measured.macs or analytic
    side: dict[str, Any] = {
        "gmacs": sum(exact) / len(exact) / 1e9,
        "gmacs_from": "torchprofile" if measured.macs else "cost model",
        "latency_ms": {"mean": float(np.mean(measured.latency)), **_percentiles(measured.latency, (50, 95))},
        "peak_memory_mib": measured.memory / 2**20,
        "parameters": parameters,
    }
    if measured.macs:
        side["gmacs_cost_model"] = sum(analytic) / len(analytic) / 1e9
    side["gmacs_by_part"] = {part: macs / len(analytic) / 1e9 for part, macs in parts.items()}
    return side | as_published(costs, full=whole)


def _counts(measured: Measured, costs: Predictions, whole: bool) -> dict[str, float]:
    """Mean GMACs by who counts."""
    by: dict[str, Sequence[float]] = {
        "torchprofile": measured.macs,
        "flop_counter": measured.flops,
        "cost_model": costs.full_macs if whole else costs.macs,
    }
    return {name: sum(macs) / len(macs) / 1e9 for name, macs in by.items()}


def _percentiles(values: list[float], at: Sequence[int] = (5, 25, 50, 75, 95)) -> dict[str, float]:
    return {f"p{p}": float(np.percentile(values, p)) for p in at}


def explanation(speedup: Mapping[str, float], breakdown: Mapping[str, Mapping[str, float]]) -> str:
    """One sentence: how far latency follows MACs, and which parts of the work hold it back.

    Args:
        speedup: ``macs``, ``latency`` and ``realised``.
        breakdown: Milliseconds by part, ``full`` and ``trimmed``.
    """
    full, trimmed = breakdown["full"], breakdown["trimmed"]
    total = sum(trimmed.values())
    said = [f"{part} take {trimmed[part] / total:.1%}" for part in (TRIMMERS, GATHERS)]
    for part, name in (
        (ATTENTION, "attention"),
        (PROJECTIONS, "projections"),
        (MLPS, "MLPs"),
        (REST, "the rest"),
    ):
        if full[part] > _WORTH_SAYING * sum(full.values()) and trimmed[part] > 0:
            said.append(f"{name} {_change(full[part] / trimmed[part])}")
    return (
        f"{speedup['macs']:.2f}x fewer MACs became {_change(speedup['latency'])} time: "
        f"{speedup['realised']:.2f} of what they promise; {', '.join(said)}"
    )


def _change(ratio: float) -> str:
    if f"{ratio:.2f}" == "1.00":
        return "as much"
    return f"{ratio:.2f}x less" if ratio >= 1 else f"{1 / ratio:.2f}x more"


def layer_table(
    model: TrimmedModel, counts: Sequence[Counts], measured: Mapping[str, Measured]
) -> list[dict[str, Any]]:
    """A row per layer of every stream: means per instance, times per batch.

    Args:
        model: The model.
        counts: Kept tokens and heads of the trimmed passes, complete and per instance.
        measured: By mode, with times.

    Returns:
        Rows of ``stream``, ``layer``, ``part``; ``tokens_in`` (that arrive) and ``tokens_kept``; ``heads``
        (kind to ``kept`` and ``of``); ``gmacs`` and ``ms``, ``full`` and, of what has trimmers, ``trimmed``.
    """
    places = {SIDES[mode]: by_place(one.times) for mode, one in measured.items()}
    return [_layer_row(model, spec, counts, places) for spec in model.architecture.layers]


def _layer_row(
    model: TrimmedModel,
    spec: LayerSpec,
    counts: Sequence[Counts],
    places: Mapping[str, Mapping[tuple[str, int], float]],
) -> dict[str, Any]:
    alone = replace(model.architecture, layers=(spec,), fixed=(), per_token=())
    own = {name: trimmer for name, trimmer in model.sites.items() if _is_of(Site.parse(name), spec)}
    whole = [full_counts(model.architecture, start_of(one)) for one in counts]
    row: dict[str, Any] = {
        "stream": spec.stream,
        "layer": spec.index,
        "part": spec.part,
        "tokens_in": _mean([tokens_after(one, spec.stream, spec.index - 1) for one in counts]),
        "tokens_kept": _mean([one[f"{spec.stream}.{spec.index}.{TOKEN}"] for one in counts]),
        "heads": {
            kind: {
                "kept": _mean([one[f"{spec.stream}.{spec.index}.{kind}"] for one in counts]),
                "of": attention.heads,
            }
            for kind, attention in spec.attentions
        },
        "gmacs": {"full": _mean([total_macs(alone, one) for one in whole]) / 1e9},
    }
    if SIDES["packed"] in places:
        row["gmacs"]["trimmed"] = _mean([total_macs(alone, one, own) for one in counts]) / 1e9
    row["ms"] = {side: times.get((spec.stream, spec.index), 0.0) for side, times in places.items()}
    return row


def _is_of(site: Site, spec: LayerSpec) -> bool:
    return (site.stream, site.layer) == (spec.stream, spec.index)


def _mean(batches: Sequence[Any]) -> float:
    """Mean over the batches' instances; plain numbers stand for a batch."""
    return float(torch.cat([torch.as_tensor(one, dtype=torch.double).flatten() for one in batches]).mean())


def for_summary(report: dict[str, Any], summary: Mapping[str, Any]) -> dict[str, Any]:
    """What goes into the run's summary; an evaluation there keeps the word on MACs and kept fractions.

    What else is of the instances profiled says so: it ends in ``_torchprofile`` or is in ``profile``.
    """
    evaluated = "split" in summary and "gmacs" in (summary.get("full") or {})  # older ones may have no counts
    named = ("instances", "batch_size", "distribution", "environment")
    sides: dict[str, Any] = {"profile": {key: report[key] for key in named if key in report}}
    for name in ("full", "trimmed"):
        if name in report:
            side = {**report[name], "gmacs_torchprofile": report[name]["gmacs"]}
            if "gmacs_cost_model" in side:  # of the instances profiled, not of those evaluated
                sides["profile"].setdefault("gmacs_cost_model", {})[name] = side.pop("gmacs_cost_model")
            sides[name] = {key: value for key, value in side.items() if not (evaluated and key in _EVALUATED)}
    if "speedup" in report:
        speedup = {**report["speedup"], "macs_torchprofile": report["speedup"]["macs"]}
        speedup["realised_torchprofile"] = speedup.pop("realised")
        sides["speedup"] = {key: value for key, value in speedup.items() if not (evaluated and key == "macs")}
    return sides

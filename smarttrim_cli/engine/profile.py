"""Profiling: MACs, latency and memory of full and trimmed model, on the same instances, interleaved."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from smarttrim_cli.engine.artifact import load_model, parameter_count
from smarttrim_cli.engine.build import build, section_of
from smarttrim_cli.engine.devices import best_device, describe_environment, synchronize
from smarttrim_cli.engine.inference import Predictions, add_costs, batches, to_device
from smarttrim_cli.engine.macs import measured_macs
from smarttrim_cli.engine.memory import peak_activation_bytes
from smarttrim_cli.engine.report import Reporter, SilentReporter
from smarttrim_cli.engine.runs import Run, Subject, find_subject, require_model
from smarttrim_cli.engine.scores import as_published
from smarttrim_cli.engine.simulate import (
    apply_targets,
    measured_kept,
    random_model,
    simulated_trimmers,
)
from smarttrim_cli.errors import UserError
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.tasks.base import Batch

WARMUP = 3
REPEATS = 3
_EVALUATED = ("gmacs", "gmacs_from", "gmacs_by_part", "kept")


@dataclass
class Measured:
    """Per-instance (or per-batch) measurements of one mode; milliseconds and MACs."""

    latency: list[float] = field(default_factory=list)
    macs: list[int] = field(default_factory=list)


def profile(
    target: str | None,
    *,
    overrides: Sequence[str] = (),
    single_instance: bool = False,
    num_instances: int = 50,
    batch_size: int | None = None,
    random_weights: bool = False,
    sparsity_from: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Measure a run, or a recipe with random weights.

    Args:
        target: Run directory or recipe; None for the newest run, else the quick-start recipe.
        overrides: ``key=value`` for the recipe.
        single_instance: One unpadded instance at a time (MACs by torchprofile); else padded batches.
        num_instances: How many instances are measured.
        batch_size: Instances per forward pass; None for the recipe's ``evaluate.batch_size``.
        random_weights: Build the model from its configuration, with random weights, inputs and decisions.
        sparsity_from: With random weights or decisions: a run whose measured kept fractions are used; its
            summary gets the result as ``at_full_size``.
        device: Such as ``cpu`` or ``cuda``; None for the best there is.
        threads: CPU threads.
        reporter: Receives messages and progress.

    Returns:
        ``full`` and ``trimmed`` with ``gmacs``, ``gmacs_by_part``, ``latency_ms`` (mean, p50, p95),
        ``peak_memory_mb``, ``parameters``, and where text is generated ``gmacs_as_published`` (keys and
        values of the image projected for every beam and step, as the official code does);
        ``speedup.macs``, ``speedup.latency``; ``distribution`` over instances; ``environment``.
    """
    reporter = reporter or SilentReporter()
    if threads is not None:
        torch.set_num_threads(threads)
    where = best_device(device)
    if single_instance and batch_size not in (None, 1):
        raise UserError("--single-instance and --batch-size exclude each other", where="--batch-size")
    subject = find_subject(target, overrides)
    size = 1 if single_instance else batch_size or subject.recipe.evaluate.batch_size
    kept = measured_kept(sparsity_from) if sparsity_from else None
    model, data, run = _subject_model(subject, target, random_weights, kept, num_instances, size, reporter)
    model.to(where)
    data = [to_device(batch, where) for batch in data]
    report = _measure(model, data, size == 1, where, reporter)
    report["environment"] = describe_environment(where)
    report["simulated_decisions"] = run is None
    report["recipe"] = target or subject.recipe.output_dir
    if run is not None and single_instance and not overrides:
        run.merge_summary(_for_summary(report, run.summary()))
    if sparsity_from is not None and single_instance:
        Run(Path(sparsity_from)).merge_summary({"at_full_size": report})
    return report


def _subject_model(
    subject: Subject,
    target: str | None,
    random_weights: bool,
    kept: dict[str, float] | None,
    num_instances: int,
    batch_size: int,
    reporter: Reporter,
) -> tuple[TrimmedModel, list[Batch], Run | None]:
    """The model to measure and its instances; the run is None where decisions are random ones."""
    recipe = subject.recipe
    if random_weights:
        model = random_model(recipe, kept)
        backbone = model.backbone
        reporter.message("random weights, inputs and decisions: costs are real, answers mean nothing")
        batch = max(batch_size, 1)
        examples = [
            Batch(
                backbone.example_inputs(backbone.form.text_tokens, batch=batch, seed=index),
                torch.arange(batch) + index * batch,
                {},
            )
            for index in range(max(num_instances // batch, 1))
        ]
        return model, examples, None
    if subject.run is None and not (Run(Path(recipe.output_dir)).model / "config.json").exists():
        reporter.warn("nothing is trained there yet: decisions are random ones at the recipe's target")
        bundle = build(recipe, reporter.message)
        model = TrimmedModel(bundle.model.backbone, simulated_trimmers(bundle.model.backbone, recipe))
        apply_targets(model.eval(), recipe, kept)
        run = None
    else:
        run = require_model(subject, target)
        bundle = load_model(run.model, section_of(recipe.task), reporter.message)
        model = bundle.model
    split = bundle.task.split_name(recipe.evaluate.split)
    return model, list(batches(bundle, split, batch_size, num_instances)), run


def _measure(
    model: TrimmedModel, data: list[Batch], single: bool, device: torch.device, reporter: Reporter
) -> dict[str, Any]:
    modes = ("full", "packed") if model.sites else ("full",)
    measured = {mode: Measured() for mode in modes}
    costs = Predictions()
    memory = dict.fromkeys(modes, 0)
    with torch.inference_mode(), reporter.track(len(data), "profiling") as tracker:
        for batch in data[:WARMUP]:
            for mode in modes:
                model(batch.inputs, mode, instance_ids=batch.instance_ids)
        for number, batch in enumerate(data, 1):
            for mode in modes:
                measured[mode].latency.append(_latency(model, batch, mode, device))
            add_costs(costs, model, model(batch.inputs, "packed", instance_ids=batch.instance_ids).decisions)
            tracker.update(number)
        for mode in modes:
            memory[mode] = max(_memory(model, batch, mode) for batch in data[:8])
    if single:
        _count(model, data, measured, modes, reporter)
    return _report(model, measured, costs, memory, data, single)


def _latency(model: TrimmedModel, batch: Batch, mode: str, device: torch.device) -> float:
    """Median of a few runs, milliseconds."""
    times = []
    for _ in range(REPEATS):
        synchronize(device)
        start = time.perf_counter()
        model(batch.inputs, mode, instance_ids=batch.instance_ids)
        synchronize(device)
        times.append((time.perf_counter() - start) * 1e3)
    return float(np.median(times))


def _memory(model: TrimmedModel, batch: Batch, mode: str) -> int:
    return peak_activation_bytes(lambda: model(batch.inputs, mode, instance_ids=batch.instance_ids))


def _count(
    model: TrimmedModel,
    data: list[Batch],
    measured: dict[str, Measured],
    modes: tuple[str, ...],
    reporter: Reporter,
) -> None:
    with reporter.track(len(data), "counting MACs") as tracker:
        for number, batch in enumerate(data, 1):
            for mode in modes:
                measured[mode].macs.append(measured_macs(model, batch.inputs, mode, batch.instance_ids))
            tracker.update(number)


def _report(
    model: TrimmedModel,
    measured: dict[str, Measured],
    costs: Predictions,
    memory: dict[str, int],
    data: list[Batch],
    single: bool,
) -> dict[str, Any]:
    count = len(costs.macs)
    report: dict[str, Any] = {
        "instances": count,
        "batch_size": 1 if single else len(data[0]),
        "full": _side(measured["full"], costs.full_macs, memory["full"], parameter_count(model.backbone)),
    }
    report["full"]["gmacs_by_part"] = {part: macs / count / 1e9 for part, macs in costs.full_parts.items()}
    report["full"] |= as_published(costs, full=True)
    if "packed" not in measured:
        return report
    parameters = parameter_count(model.backbone) + parameter_count(model.trimmers)
    trimmed = _side(measured["packed"], costs.macs, memory["packed"], parameters)
    trimmed["gmacs_by_part"] = {part: macs / count / 1e9 for part, macs in costs.parts.items()}
    trimmed |= as_published(costs, full=False)
    trimmed["kept"] = {group: sum(values) / len(values) for group, values in costs.kept.items()}
    report["trimmed"] = trimmed
    full_latency, latency = measured["full"].latency, measured["packed"].latency
    report["speedup"] = {
        "macs": report["full"]["gmacs"] / trimmed["gmacs"],
        "latency": sum(full_latency) / sum(latency),
        "latency_p50": report["full"]["latency_ms"]["p50"] / trimmed["latency_ms"]["p50"],
    }
    report["speedup"]["realised"] = report["speedup"]["latency"] / report["speedup"]["macs"]
    ratios = [full / own for full, own in zip(costs.full_macs, costs.macs, strict=True)]
    report["distribution"] = {
        "macs_reduction": _percentiles(ratios),
        "latency_ms": _percentiles(latency),
    }
    return report


def _side(measured: Measured, analytic: list[float], memory: int, parameters: int) -> dict[str, Any]:
    """One column of the table. GMACs are torchprofile's where they were counted, else the cost model's."""
    exact = measured.macs or analytic
    side: dict[str, Any] = {
        "gmacs": sum(exact) / len(exact) / 1e9,
        "gmacs_from": "torchprofile" if measured.macs else "cost model",
        "latency_ms": {"mean": float(np.mean(measured.latency)), **_percentiles(measured.latency, (50, 95))},
        "peak_memory_mb": memory / 2**20,
        "parameters": parameters,
    }
    if measured.macs:
        side["gmacs_cost_model"] = sum(analytic) / len(analytic) / 1e9
    return side


def _percentiles(values: list[float], at: Sequence[int] = (5, 25, 50, 75, 95)) -> dict[str, float]:
    return {f"p{p}": float(np.percentile(values, p)) for p in at}


def _for_summary(report: dict[str, Any], summary: dict[str, Any]) -> dict[str, Any]:
    """What goes into the run's summary; an evaluation there keeps the word on MACs and kept fractions."""
    evaluated = "split" in summary
    named = ("instances", "batch_size", "distribution", "environment")
    sides: dict[str, Any] = {"profile": {key: report[key] for key in named if key in report}}
    for name in ("full", "trimmed"):
        if name in report:
            side = {**report[name], "gmacs_torchprofile": report[name]["gmacs"]}
            sides[name] = {key: value for key, value in side.items() if not (evaluated and key in _EVALUATED)}
    if "speedup" in report:
        speedup = {**report["speedup"], "macs_torchprofile": report["speedup"]["macs"]}
        sides["speedup"] = {key: value for key, value in speedup.items() if not (evaluated and key == "macs")}
    return sides

"""Profiling: MACs, latency and memory of full and trimmed model, on the same instances, interleaved.

What is reported of the measurements is made in :mod:`.profile_report`; where the time goes is measured in
passes of their own, by :mod:`.breakdown`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from smarttrim_cli.engine.artifact import load_model
from smarttrim_cli.engine.breakdown import breakdown
from smarttrim_cli.engine.build import build, section_of
from smarttrim_cli.engine.costs import add_counts
from smarttrim_cli.engine.devices import best_device, describe_environment, set_threads, synchronize
from smarttrim_cli.engine.flops import flop_counter_macs
from smarttrim_cli.engine.inference import Predictions, batches, make_ready, to_device
from smarttrim_cli.engine.macs import measured_macs
from smarttrim_cli.engine.memory import peak_activation_bytes
from smarttrim_cli.engine.profile_report import Measured, for_summary, layer_table, make_report
from smarttrim_cli.engine.report import Reporter, SilentReporter
from smarttrim_cli.engine.runs import Run, Subject, find_subject, require_model
from smarttrim_cli.engine.simulate import (
    apply_targets,
    measured_kept,
    random_model,
    simulated_trimmers,
)
from smarttrim_cli.errors import UserError, some
from smarttrim_cli.pruning.cost import double_counts
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.tasks.base import Batch

WARMUP = 3
REPEATS = 3


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
    host_kernels: bool = False,
    by_layer: bool = False,
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
        host_kernels: On a CPU, leave the weights as they are, instead of laying them out for inference.
        by_layer: Add a row per layer.
        reporter: Receives messages and progress.

    Returns:
        ``full`` and ``trimmed`` with ``gmacs``, ``gmacs_by_part``, ``latency_ms`` (mean, p50, p95),
        ``peak_memory_mib``, ``parameters``, and where text is generated ``gmacs_as_published`` (keys and
        values of the image projected for every beam and step, as the official code does);
        ``speedup.macs``, ``speedup.latency``; ``distribution`` over instances (of MACs, full over trimmed; of
        the trimmed model's latency); ``environment``, with ``kernels`` (``prepared`` or ``host``);
        ``breakdown``, milliseconds of a pass by part of the work, which ``explanation`` puts into words; for
        single instances ``macs_counts``, GMACs by who counts; with ``by_layer`` ``layers``.
    """
    reporter = reporter or SilentReporter()
    if threads is not None:
        set_threads(threads, "--threads")
    where = best_device(device)
    if single_instance and batch_size not in (None, 1):
        raise UserError("--single-instance and --batch-size exclude each other", where="--batch-size")
    subject = find_subject(target, overrides)
    size = 1 if single_instance else batch_size or subject.recipe.evaluate.batch_size
    kept = measured_kept(sparsity_from) if sparsity_from else None
    if sparsity_from is not None and single_instance:
        Run(Path(sparsity_from)).summary()  # a damaged one is no surprise at the end
    model, data, run = _subject_model(subject, target, random_weights, kept, num_instances, size, reporter)
    stored = run if single_instance and not overrides else None
    read = None if run is None else run.model_identity()
    if stored is not None:
        stored.summary()
    if kept is not None and run is not None:
        raise UserError(
            f"{target} has decisions of its own",
            where="--sparsity-from",
            hint="with a recipe of another size and --random-weights they are taken from that run",
        )
    lacking = [group for group, share in (kept or {}).items() if share < 1 and group not in model.groups]
    if lacking:
        text = f"--sparsity-from: the model has no trimmers of {some(lacking)}, which that run drops"
        reporter.warn(f"{text}: nothing of them is dropped here")
    kernels = make_ready(model, where, host_kernels)
    data = [to_device(batch, where) for batch in data]
    report = _measure(model, data, size == 1, by_layer, where, reporter)
    report["environment"] = {**describe_environment(where), "kernels": kernels}
    report["simulated_decisions"] = run is None and bool(model.sites)
    report["recipe"] = target or subject.recipe.output_dir
    if stored is not None:
        with stored.storing(reporter):
            stored.refuse_other_model(read)
            stored.merge_summary(for_summary(report, stored.summary()))
    if sparsity_from is not None and single_instance:
        other = Run(Path(sparsity_from))
        with other.storing(reporter):
            other.merge_summary({"at_full_size": report})
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
        batch = max(min(batch_size, num_instances), 1)  # as of data, which fill a batch in part
        if num_instances > batch:
            _say_left_out(num_instances % batch, batch, reporter)
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
    data = list(batches(bundle, split, batch_size, num_instances))
    if not data:
        raise UserError(
            "there is nothing to measure: none of the instances can be used", where=f"split {split}"
        )
    return model, _of_one_size(data, reporter), run


def _of_one_size(data: list[Batch], reporter: Reporter) -> list[Batch]:
    """Batches of the size that most instances come in: the times of others are of something else."""
    sizes = Counter(map(len, data))
    size = max(sizes, key=lambda size: (size * sizes[size], size))
    whole = [batch for batch in data if len(batch) == size]
    _say_left_out(sum(map(len, data)) - sum(map(len, whole)), size, reporter)
    return whole


def _say_left_out(left: int, size: int, reporter: Reporter) -> None:
    if left:
        reporter.message(f"{left} instances that fill no batch of {size} are left out")


def _measure(
    model: TrimmedModel,
    data: list[Batch],
    single: bool,
    by_layer: bool,
    device: torch.device,
    reporter: Reporter,
) -> dict[str, Any]:
    modes = ("full", "packed") if model.sites else ("full",)
    data = [_as_long_in_both(model, batch) for batch in data] if model.sites else data
    measured = {mode: Measured() for mode in modes}
    costs, counts = Predictions(), []
    with torch.inference_mode(), reporter.track(len(data), "profiling") as tracker:
        for batch in data[:WARMUP]:
            for mode in modes:
                model(batch.inputs, mode, instance_ids=batch.instance_ids)
        for number, batch in enumerate(data, 1):
            for mode in modes:
                measured[mode].latency.append(_latency(model, batch, mode, device))
            forward = model(batch.inputs, "packed", instance_ids=batch.instance_ids)
            counts.append(double_counts(model.architecture, forward.decisions))
            add_counts(costs, model, counts[-1])
            tracker.update(number)
        times = breakdown(model, data, modes, device)
        for mode in modes:
            measured[mode].times = times[mode]
        model.restore()  # what follows counts operators and their memory, and does not know prepared kernels
        for mode in modes:  # what is made of weights is made, which is not memory of activations
            model(data[0].inputs, mode, instance_ids=data[0].instance_ids)
            measured[mode].memory = max(_memory(model, batch, mode) for batch in data[:8])
    if single:
        _count(model, data, measured, reporter)
    report = make_report(model, measured, costs, 1 if single else len(data[0]))
    if by_layer:
        report["layers"] = layer_table(model, counts, measured)
    return report


@torch.inference_mode()
def _as_long_in_both(model: TrimmedModel, batch: Batch) -> Batch:
    """The batch with the number of steps that the trimmed model takes to write its text.

    By itself the full model may write longer or shorter ones, which would be compared, too. Candidates are
    read, not written, and random inputs name a number already.
    """
    decoding = getattr(model.backbone, "decoding", None)
    if decoding is None or {"num_steps", "candidate_ids"} & batch.inputs.keys():
        return batch
    work = model(batch.inputs, "packed", instance_ids=batch.instance_ids).decisions.work
    rows = [amount_B for name, amount_B in work.items() if name.endswith(".row_calls")]
    if not rows:
        return batch
    steps = int(rows[0].max()) // decoding.num_beams
    return replace(batch, inputs={**batch.inputs, "num_steps": torch.tensor(steps)})


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
    device = batch.instance_ids.device
    return peak_activation_bytes(lambda: model(batch.inputs, mode, instance_ids=batch.instance_ids), device)


def _count(model: TrimmedModel, data: list[Batch], measured: dict[str, Measured], reporter: Reporter) -> None:
    unpadded = TrimmedModel(model.backbone, {}).eval()
    with reporter.track(len(data), "counting MACs") as tracker:
        for number, batch in enumerate(data, 1):
            padded = not bool(batch.inputs.get("attention_mask", torch.ones(1)).all())
            for mode, one in measured.items():
                # the full model computes padding, which counts exclude
                counted = (unpadded, "packed") if padded and mode == "full" else (model, mode)
                one.macs.append(measured_macs(counted[0], batch.inputs, counted[1], batch.instance_ids))
                one.flops.append(flop_counter_macs(counted[0], batch.inputs, counted[1], batch.instance_ids))
            tracker.update(number)

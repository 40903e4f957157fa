"""Running a model over a split: batches in order, predictions, decisions and costs per instance."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from smarttrim_cli.engine.artifact import Bundle
from smarttrim_cli.engine.loading import Loader
from smarttrim_cli.engine.report import Reporter
from smarttrim_cli.errors import UserError
from smarttrim_cli.pruning.cost import double_counts, full_counts, instance_macs, macs_by_part, start_of
from smarttrim_cli.pruning.decisions import Decisions
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.pruning.objective import kept_fractions, sites_heads
from smarttrim_cli.pruning.sites import TOKEN, Site
from smarttrim_cli.tasks.base import Batch, Record


def device_of(model: torch.nn.Module) -> torch.device:
    """Device of the model's parameters."""
    return next(model.parameters()).device


def to_device(batch: Batch, device: torch.device) -> Batch:
    """A batch on another device."""
    if device.type == "cpu":
        return batch
    inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.inputs.items()}
    targets = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.targets.items()}
    return Batch(inputs, batch.instance_ids.to(device), targets, batch.samples)


def batches(
    bundle: Bundle, split: str, batch_size: int, limit: int | None = None, workers: int = 0
) -> Loader:
    """Batches of a split, in order."""
    dataset = bundle.task.dataset(split, bundle.processor, limit=limit)
    return Loader(
        dataset, bundle.task, bundle.processor, skip_empty=True, batch_size=batch_size, num_workers=workers
    )


@dataclass
class Predictions:
    """Results of one model over a split; lists have one entry per instance.

    Attributes:
        records: Predictions with scores.
        macs: MACs of every instance as run.
        full_macs: MACs the full model would have cost it.
        published: Where text is generated: the same two as the official code of decoders would count them.
        parts: MACs per part, summed over instances.
        full_parts: The same for the full model.
        kept: Kept fraction per group.
    """

    records: list[Record] = field(default_factory=list)
    macs: list[float] = field(default_factory=list)
    full_macs: list[float] = field(default_factory=list)
    published: list[tuple[float, float]] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)
    full_parts: dict[str, float] = field(default_factory=dict)
    kept: dict[str, list[float]] = field(default_factory=dict)
    skipped: int = 0


@torch.no_grad()
def predict(
    bundle: Bundle, loader: Loader, modes: tuple[str, ...], reporter: Reporter, label: str
) -> dict[str, Predictions]:
    """Run one or more modes over the same batches; the model should be in evaluation mode.

    Raises:
        UserError: No instance can be used.
    """
    if getattr(bundle.task, "two_stage", False):
        from smarttrim_cli.engine.retrieval import predict_in_two_stages  # which uses this module

        return predict_in_two_stages(bundle, loader, modes, reporter, label)
    model, device = bundle.model, device_of(bundle.model)
    results = {mode: Predictions() for mode in modes}
    expected = len(loader.dataset)
    with reporter.track(len(loader), label) as tracker:
        for number, batch in enumerate(loader, 1):
            batch = to_device(batch, device)
            for mode in modes:
                forward = model(batch.inputs, mode, instance_ids=batch.instance_ids)
                results[mode].records += bundle.task.predict(forward.output, batch, bundle.processor)
                if mode != "full":
                    add_costs(results[mode], model, forward.decisions)
            tracker.update(number)
    for result in results.values():
        result.skipped = expected - len(result.records)
        if not result.records:
            raise UserError(f"none of the {expected} instances can be used: their images are broken")
        if "part_of" in result.records[0] and result.macs:
            owners = [record["part_of"] for record in result.records]
            result.macs, result.full_macs = (summed(v, owners) for v in (result.macs, result.full_macs))
        result.records = bundle.task.finish(result.records)
    return results


def summed(values: Sequence[float], owners: Sequence[Hashable]) -> list[float]:
    """Sums of the values with the same owner, in order of the owners' first appearance."""
    sums: dict[Hashable, float] = {}
    for value, owner in zip(values, owners, strict=True):
        sums[owner] = sums.get(owner, 0.0) + value
    return list(sums.values())


def add_costs(result: Predictions, model: TrimmedModel, decisions: Decisions) -> None:
    """Add the costs and kept fractions of a batch."""
    trimmed_B, full_B = instance_macs(model, decisions)
    result.macs += trimmed_B.tolist()
    result.full_macs += full_B.tolist()
    if decisions.work:
        pair = (macs_B.tolist() for macs_B in instance_macs(model, decisions, as_published=True))
        result.published += list(zip(*pair, strict=True))
    counts = double_counts(model.architecture, decisions)
    whole = full_counts(model.architecture, start_of(counts))
    _add_parts(result.parts, macs_by_part(model.architecture, counts, model.sites), len(trimmed_B))
    _add_parts(result.full_parts, macs_by_part(model.architecture, whole), len(trimmed_B))
    heads = {
        name: sites_heads(model, Site.parse(name)) for name in model.sites if Site.parse(name).kind != TOKEN
    }
    for group, fraction_B in kept_fractions(decisions, model.groups, heads).items():
        result.kept.setdefault(group, []).extend(fraction_B.tolist())


def _add_parts(sums: dict[str, float], parts: dict[str, Any], batch: int) -> None:
    for part, macs in parts.items():
        total = float(macs.sum()) if isinstance(macs, torch.Tensor) else macs * batch
        sums[part] = sums.get(part, 0.0) + total


def instances(bundle: Bundle, split: str, limit: int) -> Iterator[Batch]:
    """Single instances of a split, unpadded."""
    yield from batches(bundle, split, 1, limit)

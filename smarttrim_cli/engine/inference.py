"""Running a model over a split: batches in order, predictions, decisions and costs per instance."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from smarttrim_cli.engine.artifact import Bundle
from smarttrim_cli.engine.costs import CostLog, add_counts
from smarttrim_cli.engine.devices import keep_freed_memory
from smarttrim_cli.engine.loading import Loader, batching
from smarttrim_cli.engine.report import Reporter
from smarttrim_cli.engine.sharing import Share, alone
from smarttrim_cli.errors import SmartTrimError, UserError, some
from smarttrim_cli.pruning.context import ForwardContext
from smarttrim_cli.pruning.cost import double_counts
from smarttrim_cli.pruning.decisions import Decisions
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.pruning.prepared import usable
from smarttrim_cli.tasks.base import Batch, Record


def device_of(model: torch.nn.Module) -> torch.device:
    """Device of the model's parameters."""
    return next(model.parameters()).device


def make_ready(model: TrimmedModel, device: torch.device, host_kernels: bool = False) -> str:
    """Put a model on a device for much inference; on a CPU its weights are laid out for it.

    Args:
        model: The model. Training it again needs ``model.restore()``.
        device: Where to.
        host_kernels: Leave the weights as they are.

    Returns:
        ``prepared`` or ``host``: which kernels its linear layers will use.
    """
    model.to(device)
    if device.type != "cpu":
        return "host"
    keep_freed_memory()
    if host_kernels:
        return "host"
    model.prepare()
    with torch.no_grad():
        return "prepared" if usable(torch.zeros(1)) else "host"


def to_device(batch: Batch, device: torch.device) -> Batch:
    """A batch on another device."""
    if device.type == "cpu":
        return batch
    inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.inputs.items()}
    targets = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.targets.items()}
    return Batch(inputs, batch.instance_ids.to(device, non_blocking=True), targets, batch.samples)


def batches(
    bundle: Bundle,
    split: str,
    batch_size: int,
    limit: int | None = None,
    workers: int = 0,
    share: Share | None = None,
) -> Loader:
    """Batches of a split, in order; of a share, if there is one."""
    dataset = bundle.task.dataset(split, bundle.processor, limit=limit)
    dataset = dataset if share is None else share.part(dataset)
    settings = batching(dataset, batch_size)
    return Loader(dataset, bundle.task, bundle.processor, skip_empty=True, num_workers=workers, **settings)


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
    bundle: Bundle,
    loader: Loader,
    modes: tuple[str, ...],
    reporter: Reporter,
    label: str,
    seen: Callable[[Batch, ForwardContext], None] | None = None,
    share: Share | None = None,
) -> dict[str, Predictions]:
    """Run one or more modes over the same batches; the model should be in evaluation mode.

    ``seen`` is called with every batch that was trimmed (not of tasks in two stages). With a ``share`` the
    loader has that part of the split, and every process gets the results of all.

    Raises:
        UserError: No instance can be used.
        SmartTrimError: The model's outputs are not numbers.
    """
    if getattr(bundle.task, "two_stage", False):
        from smarttrim_cli.engine.retrieval import predict_in_two_stages  # which uses this module

        return predict_in_two_stages(bundle, loader, modes, reporter, label)
    model, device = bundle.model, device_of(bundle.model)
    results = {mode: Predictions() for mode in modes}
    logs = {mode: CostLog(model, result) for mode, result in results.items()}
    expected = len(loader.dataset)
    failure = None
    try:
        with reporter.track(len(loader), label) as tracker:
            for number, batch in enumerate(loader, 1):
                batch = to_device(batch, device)
                for mode in modes:
                    forward = model(batch.inputs, mode, instance_ids=batch.instance_ids)
                    refuse_no_numbers(forward.output, [sample.id for sample in batch.samples])
                    results[mode].records += bundle.task.predict(forward.output, batch, bundle.processor)
                    if forward.context is not None:
                        logs[mode].add(forward.context)
                        if seen is not None:
                            seen(batch, forward.context)
                tracker.update(number)
    except SmartTrimError as error:
        failure = error
    (share or alone()).refuse_failures(failure)
    for log in logs.values():
        log.flush()
    if share is not None:
        results, expected = _joined(share.gathered(results)), sum(share.gathered(expected))
    for result in results.values():
        result.skipped = expected - len(result.records)
        if not result.records:
            raise UserError(f"none of the {expected} instances can be used: their images are broken")
        if "part_of" in result.records[0]:
            owners = [record["part_of"] for record in result.records]
            result.skipped //= len(owners) // len(set(owners))  # all are made of as many parts
            if result.macs:
                result.macs, result.full_macs = (summed(v, owners) for v in (result.macs, result.full_macs))
        result.records = bundle.task.finish(result.records)
    return results


def no_numbers(ids: Sequence[Hashable]) -> SmartTrimError:
    """The error for outputs that are nan, of samples with these ids: any score of them would be made up."""
    return SmartTrimError(
        "the model's outputs are not numbers (nan)",
        where=f"samples {some([str(sample_id) for sample_id in ids])}",
        hint="its weights may be damaged, or of a training that diverged",
    )


def refuse_no_numbers(output: Any, ids: Sequence[Hashable]) -> None:
    """Refuse scores (B, ...) that are nan, and texts (B, T) that were chosen by such scores.

    Args:
        output: Of the backbone; what is no tensor is not looked at.
        ids: Of the B samples.

    Raises:
        SmartTrimError: There are some.
    """
    if not isinstance(output, torch.Tensor):
        return
    bad = output.isnan() if output.is_floating_point() else output < 0
    if bool(bad.any()):
        rows = bad.flatten(1).any(1).tolist()
        raise no_numbers([sample_id for sample_id, row in zip(ids, rows, strict=True) if row])


def _joined(parts: Sequence[dict[str, Predictions]]) -> dict[str, Predictions]:
    """The results of parts of a split as those of the whole."""
    return {mode: join_predictions([part[mode] for part in parts]) for mode in parts[0]}


def join_predictions(parts: Sequence[Predictions]) -> Predictions:
    """Predictions of several parts of a split as one; before anything is finished."""
    whole = Predictions()
    for part in parts:
        whole.records += part.records
        whole.macs += part.macs
        whole.full_macs += part.full_macs
        whole.published += part.published
        for sums, own in ((whole.parts, part.parts), (whole.full_parts, part.full_parts)):
            for name, value in own.items():
                sums[name] = sums.get(name, 0.0) + value
        for group, values in part.kept.items():
            whole.kept.setdefault(group, []).extend(values)
    return whole


def summed(values: Sequence[float], owners: Sequence[Hashable]) -> list[float]:
    """Sums of the values with the same owner, in order of the owners' first appearance."""
    sums: dict[Hashable, float] = {}
    for value, owner in zip(values, owners, strict=True):
        sums[owner] = sums.get(owner, 0.0) + value
    return list(sums.values())


def add_costs(result: Predictions, model: TrimmedModel, decisions: Decisions) -> None:
    """Add the costs and kept fractions of one batch; of many, see :class:`CostLog`."""
    add_counts(result, model, double_counts(model.architecture, decisions))


def instances(bundle: Bundle, split: str, limit: int) -> Iterator[Batch]:
    """Single instances of a split, unpadded."""
    yield from batches(bundle, split, 1, limit)

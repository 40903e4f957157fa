"""Importance of heads to the full model, for trimmers that rank heads by it (``by_importance``).

I_h = E_x |A_h^T dL/dA_h| with the context A_h of a head (the paper, Appendix C; Michel et al. 2019): this is
|dL/dm_h| for a keep mask m that multiplies the context, at m = 1. L is the loss on pseudo-labels: the
cross-entropy of the model's distributions with their own maxima, summed over those of an instance (positions
of a text, pairs of an image with texts). No annotation decides, but where text is generated the annotated one
is what the decoder reads. A trimmer may ask for the model's own answer in place of L (``importance_of``).

Legend: B instances, R rows of a stream, H heads, n distributions, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smarttrim_cli.engine.artifact import Bundle
from smarttrim_cli.engine.inference import device_of, to_device
from smarttrim_cli.engine.loading import Loader
from smarttrim_cli.errors import UserError
from smarttrim_cli.pruning.gumbel import Sampling
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.pruning.saliency import own_answer
from smarttrim_cli.tasks.base import Batch, Task
from smarttrim_cli.trimmers.base import Trimmer

INSTANCES = 512
"""At most so many are looked at."""

_SCORE = 1.0
_SLOPE = math.exp(_SCORE) / (1 + math.exp(_SCORE)) ** 2
"""Derivative of the relaxed keep mask, the sigmoid of the score, there."""


class _Probe(Trimmer):
    """Keeps all heads, and remembers the scores by which it does."""

    draws = True

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scores_RH = torch.empty(0, heads)

    def forward(self, own_cls_RD: Tensor, guide_cls_RD: Tensor | None, instance_ids_R: Tensor) -> Tensor:
        """Scores (R, H)."""
        shape = len(own_cls_RD), self.heads
        self.scores_RH = torch.full(shape, _SCORE, device=own_cls_RD.device, requires_grad=True)
        return self.scores_RH


def rank_heads(bundle: Bundle, split: str, batch_size: int, seed: int) -> int:
    """Measure the importance of heads and tell the trimmers that rank by it.

    Args:
        bundle: The model, whose trimmers are left out of the measurement, with its task.
        split: Annotated split; its instances are spread evenly over it.
        batch_size: Instances per pass.
        seed: Of what a forward pass draws (hard negatives, for a backbone that contrasts).

    Returns:
        Number of instances that were looked at; 0 where no trimmer ranks by importance.

    Raises:
        UserError: None of them can be used.
    """
    ranked = {name: trimmer for name, trimmer in bundle.model.sites.items() if trimmer.by_importance}
    if not ranked:
        return 0
    task, processor = bundle.task, bundle.processor
    dataset: Any = task.dataset(split, processor, limit=INSTANCES, training=True)
    loader = Loader(dataset, task, processor, skip_empty=True, training=True, batch_size=batch_size)
    device, sizes = device_of(bundle.model), list[int]()
    for measure in dict.fromkeys(trimmer.importance_of for trimmer in ranked.values()):
        own = {name: trimmer for name, trimmer in ranked.items() if trimmer.importance_of == measure}
        sizes.clear()
        few = _counted((to_device(batch, device) for batch in loader), sizes)
        heads = bundle.model.heads(own)
        importance = head_importance(bundle.model.backbone, heads, task, few, seed, measure)
        if not sizes:
            raise UserError(
                f"none of {len(dataset)} instances of {split} can be used: their images are broken"
            )
        for name, trimmer in own.items():
            trimmer.set_importance(name, importance)
    return sum(sizes)


def _counted(batches: Iterable[Batch], sizes: list[int]) -> Iterator[Batch]:
    """Batches whose sizes are noted as they come."""
    for batch in batches:
        sizes.append(len(batch))
        yield batch


def head_importance(
    backbone: nn.Module,
    heads: Mapping[str, int],
    task: Task,
    batches: Iterable[Batch],
    seed: int = 0,
    measure: str = "loss",
) -> dict[str, Tensor]:
    """Mean importance over the instances of some training batches.

    Args:
        backbone: The full model; its weights, gradients and mode stay as they are, as do random states.
        heads: Head sites with their number of heads.
        task: Whose ``logits`` are the model's answers.
        batches: On the backbone's device.
        seed: Of what a forward pass draws.
        measure: ``loss`` or ``answer``, see :class:`.trimmers.base.Trimmer`.

    Returns:
        Site to importance (H).
    """
    training, device = backbone.training, next(backbone.parameters()).device
    model = TrimmedModel(backbone, {name: _Probe(number) for name, number in heads.items()}).eval().to(device)
    sums = {name: torch.zeros(number, device=device) for name, number in heads.items()}
    count = 0
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.enable_grad():
        torch.manual_seed(seed)
        for batch in batches:
            for name, value_BH in _sensitivity(model, task, batch, measure).items():
                sums[name] += value_BH.abs().sum(0)
            count += len(batch)
    backbone.train(training)
    return {name: value_H / count for name, value_H in sums.items()}


def _sensitivity(model: TrimmedModel, task: Task, batch: Batch, measure: str) -> dict[str, Tensor]:
    """dL/dm or d answer / dm, (B, H), per site; rows of an instance are summed: all have the same heads."""
    output = model(batch.inputs, "masked", sampling=Sampling(temperature=1.0, noise=0.0)).output
    logits_nC = task.logits(output, batch).float()
    if measure == "answer":
        loss = own_answer(output, logits_nC)
    else:
        loss = F.cross_entropy(logits_nC, logits_nC.detach().argmax(-1), reduction="sum")
    probes = model.sites
    gradients = torch.autograd.grad(loss, [probe.scores_RH for probe in probes.values()], allow_unused=True)
    found = {}
    for (name, probe), gradient_RH in zip(probes.items(), gradients, strict=True):
        whole_RH = torch.zeros_like(probe.scores_RH) if gradient_RH is None else gradient_RH / _SLOPE
        found[name] = whole_RH.unflatten(0, (len(batch), -1)).sum(1)
    return found

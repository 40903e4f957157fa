"""Where a trimmed model looks, and how hard it works, on data whose truth is known (the scenes).

*Relevance*: at every vision layer, the share of the patches kept that show what the question is about, other
objects, or nothing but background. *Difficulty*: does an instance cost more MACs the more objects it shows,
and the more steps its question takes? Both read what a packed pass has kept; neither runs the model again.

Legend: B instances, I images of an instance, N patches of an image, C classes of patches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smarttrim_cli import registry
from smarttrim_cli.data.samples import EntailmentSample, Sample, SampleId, StatementSample, VqaSample
from smarttrim_cli.data.scenes.truth import Box, SceneTruth, read_truth
from smarttrim_cli.engine.artifact import Bundle
from smarttrim_cli.engine.inference import Predictions
from smarttrim_cli.engine.sharing import Share
from smarttrim_cli.metrics.stats import rank_correlation
from smarttrim_cli.pruning.context import ForwardContext
from smarttrim_cli.pruning.decisions import keep_grid
from smarttrim_cli.pruning.sites import Site
from smarttrim_cli.tasks._scenes_truth import SMALLEST_OVERLAP
from smarttrim_cli.tasks.base import Batch

CLASSES = ("relevant", "other", "background")
STEPS = {"existence": 1, "attribute": 2, "count": 2, "relation": 3, "comparison": 3, "total": 3}
"""Reasoning steps by type of question: one to find what is named, one to read an attribute of it or to count
it, and one for a second object or group and how the two are related."""


class TruthLog:
    """Collects, pass by pass, which patches were kept and what the instances were about.

    Args:
        truth: Of the split.
        image_size: Height and width of the scenes in pixels, the unit of the boxes.
    """

    def __init__(self, truth: SceneTruth, image_size: int) -> None:
        self.truth, self.image_size = truth, image_size
        self.kept: dict[str, Tensor] = {}
        self.shown: Tensor = torch.zeros(3)
        self.counts: Tensor = torch.zeros(3)
        self.objects: list[int] = []
        self.steps: list[int | None] = []
        self._covered = lru_cache(maxsize=8)(self._objects_at)

    def add(self, batch: Batch, context: ForwardContext) -> None:
        """Note one packed pass."""
        for sample in batch.samples:
            images = image_ids(sample)
            self.objects.append(sum(len(self.truth.objects[image]) for image in images))
            self.steps.append(STEPS.get(self.truth.types.get(sample.id, "")))
        streams = {name: s for name, s in context.log.tokens.items() if Site.parse(name).stream == "vision"}
        if not streams:
            return
        keep = {name: keep_grid(stream)[:, 1:].cpu() for name, stream in streams.items()}
        rows, patches = next(iter(keep.values())).shape
        each = rows // len(batch.samples)
        grid = math.isqrt(patches)
        if grid**2 != patches or each != len(image_ids(batch.samples[0])):
            return
        classes_BCN = torch.from_numpy(np.stack([self._classes(one, grid) for one in batch.samples]))
        number_BC = classes_BCN.sum(-1)
        present_BC = number_BC > 0
        self.counts += present_BC.sum(0)
        self.shown += (number_BC / number_BC.sum(-1, keepdim=True)).sum(0)
        for name, keep_RN in keep.items():
            keep_BN = keep_RN.reshape(len(batch.samples), each * patches)
            share_BC = (classes_BCN & keep_BN[:, None]).sum(-1) / number_BC.clamp(min=1)
            layer = name.rpartition(".")[0]
            self.kept[layer] = self.kept.get(layer, torch.zeros(3)) + share_BC.where(present_BC, 0.0).sum(0)

    def join(self, share: Share) -> None:
        """Add what the other processes have noted; every one has to ask."""
        mine = (self.kept, self.shown, self.counts, self.objects, self.steps)
        self.kept, self.objects, self.steps = {}, [], []
        self.shown, self.counts = torch.zeros(3), torch.zeros(3)
        for kept, shown, counts, objects, steps in share.gathered(mine):
            for layer, sums in kept.items():
                self.kept[layer] = self.kept.get(layer, torch.zeros(3)) + sums
            self.shown, self.counts = self.shown + shown, self.counts + counts
            self.objects += objects
            self.steps += steps

    def report(self, trimmed: Predictions) -> dict[str, Any]:
        """``relevance``, ``relevance_patches`` and ``difficulty`` of the evaluation's report."""
        found: dict[str, Any] = {}
        if self.kept:
            means = {layer: sums / self.counts for layer, sums in self.kept.items()}
            found["relevance"] = {layer: _named(mean) for layer, mean in means.items()}
            found["relevance_patches"] = _named(self.shown / len(self.objects))
        if len(trimmed.macs) == len(self.objects) == len(trimmed.records):
            found["difficulty"] = self._difficulty(trimmed)
        return found

    def _difficulty(self, trimmed: Predictions) -> dict[str, Any]:
        costs = {
            "macs": trimmed.macs,
            "share": [own / full for own, full in zip(trimmed.macs, trimmed.full_macs, strict=True)],
        }
        found: dict[str, Any] = {}
        for name, values in (("objects", self.objects), ("steps", self.steps)):
            known = [index for index, value in enumerate(values) if value is not None]
            for cost, amounts in costs.items():
                result = rank_correlation(
                    [amounts[index] for index in known], [float(values[index] or 0) for index in known]
                )
                if result is not None:
                    found.setdefault(name, {})[cost] = vars(result)
        return found

    def _classes(self, sample: Sample, grid: int) -> NDArray[np.bool_]:
        """Which patches of all images of a sample are relevant, other or background, (C, I * N)."""
        asked = (self.truth.boxes, self.truth.second_boxes)
        parts = []
        for position, image in enumerate(image_ids(sample)):
            objects_N = self._covered(image, grid)
            boxes = [box for _, box in asked[position].get(sample.id, ())]
            relevant_N = covered(boxes, grid, self.image_size)
            parts.append(np.stack((relevant_N, objects_N & ~relevant_N, ~objects_N & ~relevant_N)))
        return np.concatenate(parts, 1)

    def _objects_at(self, image: SampleId, grid: int) -> NDArray[np.bool_]:
        return covered([item.box for item in self.truth.objects[image]], grid, self.image_size)


def watch(bundle: Bundle, split: str) -> TruthLog | None:
    """A log for a split whose truth is known and whose samples it can be laid over; None for others."""
    task: Any = bundle.task
    two_stage = getattr(task, "two_stage", False)
    if not bundle.model.sites or two_stage or getattr(task, "folder", None) is None:
        return None
    if not image_tokens_alone(bundle.model.backbone):
        return None
    if not (task.folder / f"scenes_{split}.json").exists():
        return None
    if not isinstance(task.samples(split)[0], VqaSample | StatementSample | EntailmentSample):
        return None
    options: Any = registry.options("data", task.options.data)
    return TruthLog(read_truth(task.folder, split), options.image_size)


def image_tokens_alone(backbone: Any) -> bool:
    """Whether the stream ``vision`` has tokens of the image alone, not of a text, too."""
    few, more = (backbone.token_counts(words).get("vision") for words in (4, 5))
    return bool(few == more)


def image_ids(sample: Sample) -> list[SampleId]:
    """The images of a sample as the truth names them."""
    if isinstance(sample, VqaSample):
        return [sample.image_id]
    stems = [str(image).replace("\\", "/").rpartition("/")[2].partition(".")[0] for image in sample.images]
    return [int(stem) for stem in stems] if isinstance(sample, EntailmentSample) else list(stems)


def covered(boxes: Sequence[Box], grid: int, image_size: int) -> NDArray[np.bool_]:
    """Which patches boxes overlap by at least ``SMALLEST_OVERLAP`` pixels of the scene each, (N,) row-major.

    Args:
        boxes: (x, y, width, height) in pixels of the scene.
        grid: Patches per side, of a model that may see the scene at another resolution.
        image_size: Height and width of the scene.
    """
    if not boxes:
        return np.zeros(grid * grid, dtype=bool)
    edges = np.arange(grid + 1) * (image_size / grid)
    x, y, width, height = (part[:, None] for part in np.asarray(boxes, dtype=float).T)
    across = np.minimum(x + width, edges[1:]) - np.maximum(x, edges[:-1])
    down = np.minimum(y + height, edges[1:]) - np.maximum(y, edges[:-1])
    pixels = down.clip(0)[:, :, None] * across.clip(0)[:, None, :]
    found: NDArray[np.bool_] = (pixels >= SMALLEST_OVERLAP).any(0).ravel()
    return found


def _named(values_C: Tensor) -> dict[str, float]:
    return {name: value for name, value in zip(CLASSES, values_C.tolist(), strict=True) if value == value}

"""Training on the embedded scenes from scratch: VQA with the generator's ground truth as extra losses.

These losses stand in for vision-language pre-training, which a model of this size and data does not get.
They are used for the full model only, never while trimming. For the first ``vision_share`` of training only
the vision encoder learns; then everything does:

- patches: color, shape, size, row and column of the object in every patch (and what is behind it, where
  questions name that), and color and shape of its four neighbours;
- alignment: in the common space, an attribute word and a patch match if the patch has that attribute; in
  questions about a neighbour ("the object just left of the red circle") if the neighbour on that side has it;
- grounding: after the co-attention layers, which patches is the question about (two kinds of roles);
- referents: from the two CLS tokens, row and column of the one or two objects that the question is about.

This is for METER; BLIP's losses of the same kind are in :mod:`._scenes_fusion`. Images are encoded once for
all their questions.

Legend: I images, B questions, L words, N patches, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field
from torch import Tensor, nn
from torch.utils.data import Dataset

from smarttrim_cli import registry
from smarttrim_cli.data.processor import Processor
from smarttrim_cli.data.samples import VqaSample
from smarttrim_cli.data.scenes.truth import SceneTruth, read_truth
from smarttrim_cli.errors import UserError
from smarttrim_cli.forms import CLASSIFIES, GENERATES
from smarttrim_cli.tasks import vqa
from smarttrim_cli.tasks._data import pixels_of
from smarttrim_cli.tasks._scenes_fusion import FusionLosses
from smarttrim_cli.tasks._scenes_truth import (
    PatchLosses,
    anchor_side,
    matching_loss,
    patch_attributes,
    patches_meant,
    places,
    role_patches,
    word_attributes,
)
from smarttrim_cli.tasks._task import need_style
from smarttrim_cli.tasks._vqa_generation import GenerativeVqa
from smarttrim_cli.tasks.base import Batch, Task

FORM = vqa.FORM


class Options(vqa.Options):
    """Recipe section of this task; the data have to be scenes."""

    model_config = ConfigDict(extra="forbid")
    vision_share: float = Field(default=0.2, ge=0, lt=1, description="share of training on vision alone")
    patch_weight: float = Field(
        default=0.2, ge=0, description="weight of the patch losses in the second phase"
    )
    neighbour_weight: float = Field(
        default=0.5, ge=0, description="weight of neighbours within the patch losses"
    )
    alignment_weight: float = Field(default=1.0, ge=0, description="weight of the word-patch alignment")
    grounding_weight: float = Field(default=3.0, ge=0, description="weight of the grounding loss")
    grounding_positive_weight: float = Field(
        default=4.0, gt=0, description="weight of the patches asked about within the grounding loss"
    )
    referent_weight: float = Field(default=0.0, ge=0, description="weight of the loss on referents' places")
    answers_only_share: float = Field(
        default=0.1, ge=0, lt=1, description="share of training at the end without the grounding loss"
    )


@dataclass(frozen=True)
class ImageItem:
    """An image with all its questions and what is in its patches."""

    samples: list[VqaSample]
    pixels: Tensor
    patches_N6: Tensor
    roles_QN2: Tensor
    places_Q4: Tensor


class _ImageDataset(Dataset[ImageItem]):
    """One item per image."""

    def __init__(
        self, samples: Sequence[VqaSample], truth: SceneTruth, processor: Processor, grid: int
    ) -> None:
        self.by_image: dict[Any, list[VqaSample]] = {}
        for sample in samples:
            self.by_image.setdefault(sample.image_id, []).append(sample)
        self.ids = list(self.by_image)
        self.truth, self.processor, self.grid = truth, processor, grid
        self.patch = processor.preprocess.size // grid

    def __len__(self) -> int:
        """Number of images."""
        return len(self.ids)

    def __getitem__(self, index: int) -> ImageItem:
        """Decode an image and lay its ground truth over the patches."""
        samples = self.by_image[self.ids[index]]
        pixels = pixels_of(samples[0], self.processor)
        objects = self.truth.objects[self.ids[index]]
        roles = [self.truth.boxes[sample.id] for sample in samples]
        return ImageItem(
            samples,
            pixels,
            patch_attributes(objects, self.grid, self.patch),
            torch.stack([role_patches(boxes, self.grid, self.patch) for boxes in roles]),
            torch.tensor([places(boxes, objects) for boxes in roles]),
        )


if TYPE_CHECKING:
    _Beside = vqa.VqaTask
else:
    _Beside = object


class _WithTruth(_Beside):
    """What the task adds to VQA: images with all their questions and the ground truth, and losses on it."""

    losses: Callable[..., nn.Module]

    def __init__(self, options: Options, log: Callable[[str], None]) -> None:
        if options.data["name"] != "scenes":
            raise UserError("scenes_pretraining needs the ground truth of the scenes", where="task.data.name")
        super().__init__(options, log)
        self.grid = 0
        scenes: Any = registry.options("data", options.data)
        self.grid_cells, self.names_grounds = int(scenes.grid), bool(scenes.name_grounds)

    def dataset(
        self, split: str, processor: Processor, *, limit: int | None = None, training: bool = False
    ) -> Dataset[Any]:
        """Images with all their questions for training, questions otherwise."""
        if not training:
            return super().dataset(split, processor, limit=limit)
        assert self.folder is not None
        truth = read_truth(self.folder, split)
        return _ImageDataset(self.samples(split, labelled=True), truth, processor, self.grid)

    def collate(self, items: Sequence[Any], processor: Processor, training: bool = False) -> Batch:
        """Questions as for VQA; images once each, with ``image_index`` (B,) in the targets."""
        if not training:
            return super().collate(items, processor)
        pairs = [(sample, item.pixels) for item in items for sample in item.samples]
        batch = super().collate(pairs, processor, training)
        batch.inputs["pixel_values"] = torch.stack([item.pixels for item in items])
        counts = torch.tensor([len(item.samples) for item in items])
        batch.targets["image_index"] = torch.repeat_interleave(torch.arange(len(items)), counts)
        batch.targets["patches"] = torch.stack([item.patches_N6 for item in items])
        batch.targets["roles"] = torch.cat([item.roles_QN2 for item in items])
        batch.targets["places"] = torch.cat([item.places_Q4 for item in items])
        batch.targets["side"] = torch.tensor([anchor_side(sample.text) for sample in batch.samples])
        return batch

    def auxiliary(self, backbone: Any, processor: Processor) -> nn.Module:
        """The losses; they fix the patch grid that the data set uses."""
        self.grid = int(math.isqrt(backbone.token_counts(1)["vision"] - 1))
        return type(self).losses(self, backbone, processor)


class CoAttentionLosses(nn.Module):
    """All losses of a step. The backbone is held but not registered: its parameters belong to the model."""

    word_attributes: Tensor

    def __init__(self, task: Any, backbone: Any, processor: Processor) -> None:
        super().__init__()
        self.task, self._backbone = task, (backbone,)
        width = backbone.options.hidden_size
        self.patches = PatchLosses(
            *(backbone.vit_model.embed_dim, task.grid, task.grid_cells),
            *(task.options.neighbour_weight, task.names_grounds),
        )
        self.grounding = nn.Linear(width, 2)
        self.places = nn.Linear(2 * width, 4 * task.grid_cells)
        self.alignment_scale = nn.Parameter(torch.tensor(1.0))
        self.alignment_bias = nn.Parameter(torch.tensor(-1.5))
        self.register_buffer("word_attributes", word_attributes(processor), persistent=False)

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Losses of a batch at a point of training (0..1)."""
        backbone, options = self._backbone[0], self.task.options
        image = backbone.encode_image(batch.inputs["pixel_values"])
        patches = self.patches(image[:, 1:], batch.targets["patches"])
        if progress < options.vision_share:
            return {"loss": patches, "patches": patches.detach()}
        index_B = batch.targets["image_index"]
        ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
        host_mask = backbone.host_mask(mask)
        text = backbone.encode_text(ids, mask, host_mask)
        image = image[index_B]
        alignment = self.alignment_loss(text, image[:, 1:], ids, patches_meant(batch.targets, self.task.grid))
        text, image = backbone.cross_modal(text, image, host_mask)
        pooled = backbone.pool(text, image)
        answers = self.task.loss(backbone.vqa_classifier(pooled), batch)
        referents = self.referent_loss(pooled, batch.targets["places"])
        positive = torch.tensor(options.grounding_positive_weight, device=image.device)
        grounding = F.binary_cross_entropy_with_logits(
            self.grounding(image[:, 1:]), batch.targets["roles"], pos_weight=positive
        )
        weight = options.grounding_weight if progress < 1 - options.answers_only_share else 0.0
        loss = (
            answers
            + weight * grounding
            + options.alignment_weight * alignment
            + options.patch_weight * patches
            + options.referent_weight * referents
        )
        terms = {"task": answers, "grounding": grounding, "alignment": alignment, "patches": patches}
        terms["referents"] = referents
        return {"loss": loss, **{name: value.detach() for name, value in terms.items()}}

    def referent_loss(self, pooled_BD: Tensor, places_B4: Tensor) -> Tensor:
        """Rows and columns of the objects that a question is about, where there is exactly one of a kind."""
        logits = self.places(pooled_BD).unflatten(-1, (4, -1)).flatten(0, 1)
        loss = F.cross_entropy(logits, places_B4.flatten(), ignore_index=-1, reduction="sum")
        return loss / (places_B4 >= 0).sum().clamp(min=1)

    def alignment_loss(
        self, text_BLD: Tensor, image_BND: Tensor, ids_BL: Tensor, patches_BN6: Tensor
    ) -> Tensor:
        """Does a patch have the attribute that a word names? Over attribute words only; 0 if none are."""
        backbone = self._backbone[0]
        words = backbone.cross_modal_text_transform(text_BLD)
        patches = backbone.cross_modal_image_transform(image_BND)
        logits_BLN = words @ patches.transpose(1, 2) / math.sqrt(words.shape[-1])
        logits_BLN = logits_BLN * self.alignment_scale + self.alignment_bias
        return matching_loss(self.word_attributes[ids_BL], logits_BLN, patches_BN6)


class ScenesPretraining(_WithTruth, vqa.VqaTask):
    """VQA on the scenes with extra losses in training; evaluation is that of VQA."""

    losses = CoAttentionLosses


class GenerativeScenesPretraining(_WithTruth, GenerativeVqa):
    """The same for a backbone that generates its answers."""

    losses = FusionLosses


def build(options: Options, log: Callable[[str], None], style: str) -> Task:
    """The task; data are read when first needed."""
    need_style("scenes_pretraining", style, [CLASSIFIES, GENERATES])
    return (ScenesPretraining if style == CLASSIFIES else GenerativeScenesPretraining)(options, log)

"""Training on the embedded scenes from scratch: VQA with the generator's ground truth as extra losses.

These losses stand in for vision-language pre-training, which a model of this size and data does not get.
They are used for the full model only, never while trimming. For the first ``vision_share`` of training only
the vision encoder learns; then everything does:

- patches: color, shape, size, row and column of the object in every patch, and color and shape of its four
  neighbours;
- alignment: in the common space, an attribute word and a patch match if the patch has that attribute; in
  questions about a neighbour ("the object just left of the red circle") if the neighbour on that side has it;
- grounding: after the co-attention layers, which patches is the question about (two kinds of roles);
- referents: from the two CLS tokens, row and column of the one or two objects that the question is about.

Images are encoded once for all their questions. Legend: I images, B questions, L words, N patches, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field
from torch import Tensor, nn
from torch.utils.data import Dataset

from smarttrim_cli import registry
from smarttrim_cli.data.processor import Processor
from smarttrim_cli.data.samples import VqaSample
from smarttrim_cli.data.scenes.options import PALETTE, SHAPES, SIZES
from smarttrim_cli.data.scenes.truth import Box, SceneTruth, read_truth
from smarttrim_cli.data.scenes.world import SceneObject
from smarttrim_cli.errors import UserError
from smarttrim_cli.forms import CLASSIFIES
from smarttrim_cli.tasks import vqa
from smarttrim_cli.tasks._data import pixels_of
from smarttrim_cli.tasks._task import need_style
from smarttrim_cli.tasks.base import Batch

FORM = vqa.FORM
COLORS = tuple(PALETTE)
_WORDS = {
    **{word: (0, index + 1) for index, word in enumerate(COLORS)},
    **{form: (1, index + 1) for index, word in enumerate(SHAPES) for form in (word, f"{word}s", f"{word}es")},
    **{word: (2, index + 1) for index, word in enumerate(SIZES)},
}
"""Attribute words: kind (color, shape, size) and class from 1; 0 means no object."""
_ANCHOR_SIDE = {"left": 1, "right": 0, "above": 3, "below": 2}
"""Where the anchor lies, seen from the object asked for: index of its side in left, right, above, below."""
_SECOND_ROLES = frozenset({"anchor", "second"})
_SMALLEST_OVERLAP = 4


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
    referent_weight: float = Field(default=0.0, ge=0, description="weight of the loss on referents' places")
    answers_only_share: float = Field(
        default=0.1, ge=0, lt=1, description="share of training at the end without the grounding loss"
    )


@dataclass(frozen=True)
class ImageItem:
    """An image with all its questions and what is in its patches."""

    samples: list[VqaSample]
    pixels: Tensor
    patches_N5: Tensor
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


def overlaps(box: Box, grid: int, patch: int) -> list[tuple[int, int]]:
    """Patches (index in row-major order) that a box overlaps, with the number of pixels."""
    x, y, width, height = box
    found = []
    for row in range(y // patch, min((y + height - 1) // patch + 1, grid)):
        for column in range(x // patch, min((x + width - 1) // patch + 1, grid)):
            wide = min(x + width, (column + 1) * patch) - max(x, column * patch)
            high = min(y + height, (row + 1) * patch) - max(y, row * patch)
            found.append((row * grid + column, wide * high))
    return found


def patch_attributes(objects: Sequence[SceneObject], grid: int, patch: int) -> Tensor:
    """Color, shape, size, row, column (from 1; 0: none) of the object that covers most of a patch, (N, 5)."""
    attributes = torch.zeros(grid * grid, 5, dtype=torch.long)
    covered = [0] * (grid * grid)
    for item in objects:
        size = SIZES.index(item.size) + 1 if item.size in SIZES else 0
        values = (
            COLORS.index(item.color) + 1,
            SHAPES.index(item.shape) + 1,
            size,
            item.row + 1,
            item.col + 1,
        )
        for index, pixels in overlaps(item.box, grid, patch):
            if pixels > covered[index]:
                covered[index] = pixels
                attributes[index] = torch.tensor(values)
    return attributes


def role_patches(boxes: Sequence[tuple[str, Box]], grid: int, patch: int) -> Tensor:
    """Patches that a question is about, (N, 2): what is asked for, and what it is related to."""
    marks = torch.zeros(grid * grid, 2)
    for role, box in boxes:
        for index, pixels in overlaps(box, grid, patch):
            if pixels >= _SMALLEST_OVERLAP:
                marks[index, int(role in _SECOND_ROLES)] = 1.0
    return marks


def places(boxes: Sequence[tuple[str, Box]], objects: Sequence[SceneObject]) -> list[int]:
    """Row and column of the object asked for and of the related one; -1 where there is not exactly one."""
    by_box = {item.box: item for item in objects}
    found = []
    for second in (False, True):
        boxes_of = [box for role, box in boxes if (role in _SECOND_ROLES) == second]
        item = by_box.get(boxes_of[0]) if len(boxes_of) == 1 else None
        found += [-1, -1] if item is None else [item.row, item.col]
    return found


def anchor_side(question: str) -> int:
    """Side of the object asked for on which the anchor lies; -1 in questions not about a neighbour."""
    words = question.split()
    return _ANCHOR_SIDE[words[words.index("just") + 1]] if "just" in words else -1


def neighbours(patches_IN5: Tensor, grid: int) -> Tensor:
    """Attributes of every patch's neighbours, (4, I, N, 5): left, right, above, below; 0 outside."""
    padded = F.pad(patches_IN5.unflatten(1, (grid, grid)), (0, 0, 1, 1, 1, 1))
    sides = (padded[:, 1:-1, :-2], padded[:, 1:-1, 2:], padded[:, :-2, 1:-1], padded[:, 2:, 1:-1])
    return torch.stack([side.flatten(1, 2) for side in sides])


class ScenesPretraining(vqa.VqaTask):
    """VQA on the scenes with extra losses in training; evaluation is that of VQA."""

    options: Options

    def __init__(self, options: Options, log: Callable[[str], None]) -> None:
        if options.data["name"] != "scenes":
            raise UserError("scenes_pretraining needs the ground truth of the scenes", where="task.data.name")
        super().__init__(options, log)
        self.grid = 0
        self.grid_cells = int(registry.options("data", options.data).grid)

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
        batch.targets["patches"] = torch.stack([item.patches_N5 for item in items])
        batch.targets["roles"] = torch.cat([item.roles_QN2 for item in items])
        batch.targets["places"] = torch.cat([item.places_Q4 for item in items])
        batch.targets["side"] = torch.tensor([anchor_side(sample.text) for sample in batch.samples])
        return batch

    def auxiliary(self, backbone: nn.Module, processor: Processor) -> nn.Module:
        """The losses; they fix the patch grid that the data set uses."""
        self.grid = int(math.isqrt(backbone.token_counts(1)["vision"] - 1))
        return _Losses(self, backbone, processor)


class _Losses(nn.Module):
    """All losses of a step. The backbone is held but not registered: its parameters belong to the model."""

    def __init__(self, task: ScenesPretraining, backbone: nn.Module, processor: Processor) -> None:
        super().__init__()
        self.task, self._backbone = task, (backbone,)
        width = backbone.vit_model.embed_dim
        self.sizes = (
            len(COLORS) + 1,
            len(SHAPES) + 1,
            len(SIZES) + 1,
            task.grid_cells + 1,
            task.grid_cells + 1,
        )
        self.attributes = nn.Linear(width, sum(self.sizes))
        self.neighbours = nn.Linear(width, 4 * sum(self.sizes[:2]))
        self.grounding = nn.Linear(backbone.options.hidden_size, 2)
        self.places = nn.Linear(2 * backbone.options.hidden_size, 4 * task.grid_cells)
        self.alignment_scale = nn.Parameter(torch.tensor(1.0))
        self.alignment_bias = nn.Parameter(torch.tensor(-1.5))
        self.register_buffer("word_attributes", _word_attributes(processor), persistent=False)

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Losses of a batch at a point of training (0..1)."""
        backbone, options = self._backbone[0], self.task.options
        image = backbone.encode_image(batch.inputs["pixel_values"])
        patches = self.patch_loss(image[:, 1:], batch.targets["patches"])
        if progress < options.vision_share:
            return {"loss": patches, "patches": patches.detach()}
        index_B = batch.targets["image_index"]
        ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
        host_mask = backbone.host_mask(mask)
        text = backbone.encode_text(ids, mask, host_mask)
        image = image[index_B]
        patches_B = self.patches_meant(batch)
        alignment = self.alignment_loss(text, image[:, 1:], ids, patches_B)
        text, image = backbone.cross_modal(text, image, host_mask)
        pooled = backbone.pool(text, image)
        answers = self.task.loss(backbone.vqa_classifier(pooled), batch)
        referents = self.referent_loss(pooled, batch.targets["places"])
        positive = torch.tensor(4.0, device=image.device)
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

    def patch_loss(self, image_IND: Tensor, patches_IN5: Tensor) -> Tensor:
        """Attributes of every patch and of the neighbours of patches with an object."""
        logits = self.attributes(image_IND).flatten(0, 1).split(self.sizes, -1)
        own = sum(F.cross_entropy(part, patches_IN5[..., k].flatten()) for k, part in enumerate(logits))
        filled = (patches_IN5[..., 0] > 0).flatten()
        kinds = self.sizes[:2]
        around = self.neighbours(image_IND).flatten(0, 1)[filled].split(kinds * 4, -1)
        shifted = neighbours(patches_IN5, self.task.grid)
        beside = sum(
            F.cross_entropy(around[2 * side + kind], shifted[side, ..., kind].flatten()[filled])
            for side in range(4)
            for kind in range(2)
        )
        return own + self.task.options.neighbour_weight * beside  # type: ignore[return-value]

    def referent_loss(self, pooled_BD: Tensor, places_B4: Tensor) -> Tensor:
        """Rows and columns of the objects that a question is about, where there is exactly one of a kind."""
        logits = self.places(pooled_BD).unflatten(-1, (4, -1)).flatten(0, 1)
        loss = F.cross_entropy(logits, places_B4.flatten(), ignore_index=-1, reduction="sum")
        return loss / (places_B4 >= 0).sum().clamp(min=1)

    def patches_meant(self, batch: Batch) -> Tensor:
        """Attributes that a question's words are matched with, (B, N, 5): of the patch or of a neighbour."""
        patches, side_B = batch.targets["patches"], batch.targets["side"]
        both = torch.cat((patches[None], neighbours(patches, self.task.grid)))
        return both[side_B + 1, batch.targets["image_index"]]

    def alignment_loss(
        self, text_BLD: Tensor, image_BND: Tensor, ids_BL: Tensor, patches_BN5: Tensor
    ) -> Tensor:
        """Does a patch have the attribute that a word names? Over attribute words only; 0 if none are."""
        backbone = self._backbone[0]
        words = backbone.cross_modal_text_transform(text_BLD)
        patches = backbone.cross_modal_image_transform(image_BND)
        logits_BLN = words @ patches.transpose(1, 2) / math.sqrt(words.shape[-1])
        logits_BLN = logits_BLN * self.alignment_scale + self.alignment_bias
        kind_BL, value_BL = self.word_attributes[ids_BL].unbind(-1)
        chosen = value_BL > 0
        found = patches_BN5[:, None].expand(-1, ids_BL.shape[1], -1, -1)
        found = found.gather(3, kind_BL[:, :, None, None].expand(*found.shape[:3], 1)).squeeze(-1)
        matches_BLN = (found == value_BL[..., None]).float()
        positive = torch.tensor(3.0, device=logits_BLN.device)
        losses = F.binary_cross_entropy_with_logits(
            logits_BLN[chosen], matches_BLN[chosen], pos_weight=positive, reduction="none"
        )
        return losses.sum() / max(losses.numel(), 1)


def _word_attributes(processor: Processor) -> Tensor:
    """Token id to (kind, class); class 0 for words that name no attribute."""
    table = torch.zeros(len(processor.tokenizer), 2, dtype=torch.long)
    for word, attribute in _WORDS.items():
        index = processor.tokenizer.get_vocab().get(word)
        if index is not None:
            table[index] = torch.tensor(attribute)
    return table


def build(options: Options, log: Callable[[str], None], style: str) -> ScenesPretraining:
    """The task; data are read when first needed."""
    need_style("scenes_pretraining", style, [CLASSIFIES])
    return ScenesPretraining(options, log)

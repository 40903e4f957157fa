"""The losses of a backbone that contrasts, with the momentum encoders and queues that they need.

Source: ``BLIP_Retrieval.forward`` of the official ``models/blip_retrieval.py`` (Li et al., 2022; ALBEF: Li et
al., 2021); the sum of a contrastive and a matching loss is that of ``train_retrieval.py``.

As there: momentum encoders that follow the trained ones at every training pass, queues of their features,
targets that are softened by the momentum encoders' own similarities (a share that rises over the first
epoch), images with the same id as positives of each other, features gathered over processes before they are
queued. Unlike there: the queue wraps around at any batch size, and the share rises with the pairs seen.

The state is no part of the model: it is saved in training checkpoints alone. The momentum encoders are a full
copy of the backbone, never trimmed; the trimmed and the full pass of a step share what they say.
Legend: B pairs of a batch, Q queued ones, A = B + Q, E feature width.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from smarttrim_cli.forms import Contrast
from smarttrim_cli.pruning.objective import StatefulLoss
from smarttrim_cli.tasks.base import Batch

_NO_IMAGE = -100
"""Id of queued features that are of no image yet."""


def softened_targets(same_BA: Tensor, similarity_BA: Tensor, alpha: Tensor | float) -> Tensor:
    """Distributions over all candidates: the true ones in equal parts, mixed with those of a teacher.

    Args:
        same_BA: True where a candidate is of the same image.
        similarity_BA: The teacher's, over the temperature.
        alpha: Share of the teacher.
    """
    true_BA = same_BA.float()
    true_BA = true_BA / true_BA.sum(1, keepdim=True)
    return alpha * similarity_BA.softmax(1) + (1 - alpha) * true_BA


def soft_cross_entropy(similarity_BA: Tensor, targets_BA: Tensor) -> Tensor:
    """Mean over B."""
    return -(similarity_BA.log_softmax(1) * targets_BA).sum(1).mean()


def contrastive_loss(
    output: Contrast, images_AE: Tensor, texts_AE: Tensor, ids_A: Tensor, alpha: Tensor | float
) -> Tensor:
    """Image-text contrastive loss, mean of both directions.

    Args:
        output: Of the trained model.
        images_AE: Momentum features of images: the batch's own, then queued ones.
        texts_AE: The same of texts.
        ids_A: Image ids of both.
        alpha: See :func:`softened_targets`.
    """
    batch, temperature = len(output.image_features), output.temperature
    same_BA = ids_A[:batch, None] == ids_A
    sides = (
        (output.image_features, images_AE[:batch], texts_AE),
        (output.text_features, texts_AE[:batch], images_AE),
    )
    losses = []
    for own_BE, teacher_BE, others_AE in sides:
        teacher_BA = (teacher_BE @ others_AE.T / temperature).detach()
        targets_BA = softened_targets(same_BA, teacher_BA, alpha)
        losses.append(soft_cross_entropy(own_BE.float() @ others_AE.T / temperature, targets_BA))
    return (losses[0] + losses[1]) / 2


def matching_loss(output: Contrast, image_ids_B: Tensor) -> Tensor:
    """Cross-entropy of the matching head over pairs and their hard negatives.

    A "negative" of the same image, in a batch without any other, is a match.
    """
    own_B = torch.ones_like(image_ids_B)
    text_B, image_B = (
        (image_ids_B[rows_B] == image_ids_B).long()
        for rows_B in (output.negative_texts, output.negative_images)
    )
    labels_B3 = torch.stack((own_B, text_B, image_B), 1)
    return F.cross_entropy(output.matching.flatten(0, 1).float(), labels_B3.flatten())


class ContrastiveLoss(StatefulLoss):
    """Contrastive plus matching loss.

    Args:
        queue_size: Features that are kept of earlier batches, Q.
        momentum: Share that the momentum encoders keep of themselves at a step.
        alpha: Share of their similarities in the targets, once it has risen.

    ``epoch_size``, the number of pairs over which the share rises, is for the task to set.
    """

    twin: Any
    images_QE: Tensor
    texts_QE: Tensor
    ids_Q: Tensor
    place: Tensor
    seen: Tensor

    def __init__(self, queue_size: int, momentum: float, alpha: float) -> None:
        super().__init__()
        self.queue_size, self.momentum, self.alpha = queue_size, momentum, alpha
        self.epoch_size = 1
        self._backbone: tuple[Any, ...] = ()  # in a tuple: it is no part of this module

    def start(self, backbone: nn.Module) -> None:
        """Momentum encoders that equal the backbone, and queues of random features."""
        self._backbone = (backbone,)
        self.twin = copy.deepcopy(backbone).requires_grad_(False)
        shape = (self.queue_size, self.twin.feature_width)
        self.register_buffer("images_QE", F.normalize(torch.randn(shape), dim=-1))
        self.register_buffer("texts_QE", F.normalize(torch.randn(shape), dim=-1))
        self.register_buffer("ids_Q", torch.full(shape[:1], _NO_IMAGE))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def prepare(self, batch: Batch) -> Batch:
        """Follow the backbone, add momentum features to the targets, and queue them for later batches."""
        self._follow()
        inputs = batch.inputs
        images_BE = self.twin.contrastive_features(pixel_values=inputs["pixel_values"]).float()
        texts = {name: inputs[name][:, 0] for name in ("input_ids", "attention_mask")}
        texts_BE = self.twin.contrastive_features(**texts).float()
        ids_B = inputs["image_ids"]
        more = {
            "images_AE": torch.cat((images_BE, self.images_QE)),
            "texts_AE": torch.cat((texts_BE, self.texts_QE)),
            "ids_A": torch.cat((ids_B, self.ids_Q)),
            "alpha": self.alpha * (self.seen / self.epoch_size).clamp(max=1),
        }
        self._queue(gathered(images_BE), gathered(texts_BE), gathered(ids_B))
        return replace(batch, targets={**batch.targets, **more})

    def forward(self, output: Contrast, batch: Batch) -> Tensor:
        """Their sum, for a pass over a prepared batch."""
        found = batch.targets
        with torch.autocast(found["images_AE"].device.type, enabled=False):
            contrastive = contrastive_loss(
                output, found["images_AE"], found["texts_AE"], found["ids_A"], found["alpha"]
            )
            return contrastive + matching_loss(output, batch.inputs["image_ids"])

    def replay(self, output: Contrast) -> dict[str, Tensor]:
        """The full model judges the same hard negatives."""
        return {"negative_images": output.negative_images, "negative_texts": output.negative_texts}

    def _follow(self) -> None:
        live = self._backbone[0]
        for own, other in zip(self.twin.parameters(), live.parameters(), strict=True):
            own.mul_(self.momentum).add_(other.detach(), alpha=1 - self.momentum)

    def _queue(self, images_BE: Tensor, texts_BE: Tensor, ids_B: Tensor) -> None:
        self.seen += len(ids_B)
        newest = slice(-self.queue_size, None)
        number = len(ids_B[newest])
        places = (self.place + torch.arange(number, device=ids_B.device)) % self.queue_size
        self.images_QE[places], self.texts_QE[places] = images_BE[newest], texts_BE[newest]
        self.ids_Q[places] = ids_B[newest]
        self.place.copy_((self.place + number) % self.queue_size)


def gathered(values_B: Tensor) -> Tensor:
    """Values of all processes, in their order; of this one where it is alone.

    Their batches need not have one size: where broken images are skipped, some are smaller.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return values_B
    number = torch.tensor([len(values_B)], device=values_B.device)
    numbers = [torch.empty_like(number) for _ in range(distributed.get_world_size())]
    distributed.all_gather(numbers, number)
    sizes = [int(size) for size in numbers]
    padded = values_B.new_zeros((max(sizes), *values_B.shape[1:]))
    padded[: len(values_B)] = values_B
    parts = [torch.empty_like(padded) for _ in sizes]
    distributed.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

"""Training on the scenes from scratch for a backbone whose text encoder looks at the image (BLIP).

As :mod:`.scenes_pretraining` does for METER, with the same ground truth, where the modalities meet here:

- patches: what is in every patch and beside it, from the vision encoder;
- alignment: in the first cross-attention, a word that names an attribute looks at the patches that have it;
- grounding: in the last one, [ENC] looks at the patches that the question is about;
- answers: the official loss of the decoder.

Legend: I images, B questions, L words, N patches, D width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smarttrim_cli.backbones._blip_decoder import answer_logits
from smarttrim_cli.backbones._blip_encoders import (
    add_and_norm,
    encode_image,
    host_mask,
    self_attention,
    with_first,
)
from smarttrim_cli.data.processor import Processor
from smarttrim_cli.pruning.decoder import Decoder
from smarttrim_cli.pruning.inject import attend_at
from smarttrim_cli.pruning.projections import BertProjections
from smarttrim_cli.pruning.sites import CROSS_HEAD, SELF_HEAD, Site
from smarttrim_cli.tasks._scenes_truth import PatchLosses, matching_loss, patches_meant, word_attributes


class FusionLosses(nn.Module):
    """All losses of a step. The backbone is held but not registered: its parameters belong to the model."""

    word_attributes: Tensor

    def __init__(self, task: Any, backbone: Any, processor: Processor) -> None:
        super().__init__()
        self.task, self._backbone = task, (backbone,)
        width = backbone.options.vision.config.hidden_size
        weight = task.options.neighbour_weight
        self.patches = PatchLosses(width, task.grid, task.grid_cells, weight, task.names_grounds)
        self.scales = nn.Parameter(torch.ones(2))
        self.biases = nn.Parameter(torch.full((2,), -1.5))
        self.register_buffer("word_attributes", word_attributes(processor), persistent=False)

    def forward(self, batch: Any, progress: float) -> dict[str, Tensor]:
        """Losses of a batch at a point of training (0..1)."""
        model, options = self._backbone[0], self.task.options
        image = encode_image(model, batch.inputs["pixel_values"])
        patches = self.patches(image[:, 1:], batch.targets["patches"])
        if progress < options.vision_share:
            return {"loss": patches, "patches": patches.detach()}
        ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
        states, first_BLN, last_BN = self.fuse(model, ids, mask, image[batch.targets["image_index"]])
        decoder = Decoder("decoder", "text", states, len(ids), None if host_mask(mask) is None else mask)
        answers = self.task.loss(answer_logits(model, decoder, batch.inputs["answer_ids"]), batch)
        meant = patches_meant(batch.targets, self.task.grid)
        alignment = matching_loss(self.word_attributes[ids], first_BLN, meant)
        about_BN = batch.targets["roles"].amax(-1)
        positive = torch.tensor(options.grounding_positive_weight, device=image.device)
        grounding = F.binary_cross_entropy_with_logits(last_BN, about_BN, pos_weight=positive)
        weight = options.grounding_weight if progress < 1 - options.answers_only_share else 0.0
        loss = (
            answers
            + weight * grounding
            + options.alignment_weight * alignment
            + options.patch_weight * patches
        )
        terms = {"task": answers, "grounding": grounding, "alignment": alignment, "patches": patches}
        return {"loss": loss, **{name: value.detach() for name, value in terms.items()}}

    def fuse(
        self, model: Any, ids_BL: Tensor, attention_mask: Tensor, image_BND: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Text states (B, L, D); how words look at patches first (B, L, N), and [ENC] last (B, N): logits."""
        mask = host_mask(attention_mask)
        hidden = model.text_encoder.embeddings(input_ids=with_first(ids_BL, model.options.enc_id))
        looks = []
        for index, layer in enumerate(model.text_encoder.encoder.layer):
            hidden = self_attention(layer, Site("text", index, SELF_HEAD), hidden, mask)
            cross = BertProjections(layer.crossattention)
            looks.append(_looks(cross, hidden, image_BND[:, 1:]))
            name = Site("text", index, CROSS_HEAD).name
            hidden = add_and_norm(
                layer.crossattention.output, attend_at(name, cross, hidden, image_BND), hidden
            )
            hidden = layer.output(layer.intermediate(hidden), hidden)
        first, last = (looks[place] * self.scales[place] + self.biases[place] for place in (0, -1))
        return hidden, first, last[:, 0]


def _looks(projections: BertProjections, words_BLD: Tensor, patches_BND: Tensor) -> Tensor:
    """Attention logits of words for patches, mean over heads, (B, L, N)."""
    q = projections.queries(words_BLD, None)
    k, _ = projections.keys_values(patches_BND, None)
    return torch.einsum("blhe,bnhe->bln", q, k) / (q.shape[2] * math.sqrt(q.shape[3]))

"""BLIP's vision encoder and text encoder, run layer by layer with trimming in between.

The modules are transformers' (``BlipVisionModel``, ``BlipTextModel``), their attention goes through
``attend_at``. Source of what is computed: the official ``models/vit.py``, ``models/med.py`` and
``models/nlvr_encoder.py``.

Legend: B instances, R rows (instance after instance), N image tokens, L text tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import drop_path
from torch import Tensor, nn

from smarttrim_cli.backbones._blip_layers import TwinCrossAttention
from smarttrim_cli.backbones._blip_projections import twin_projections, vision_projections
from smarttrim_cli.pruning.context import copy_of, current, enter, guide, leave, trim
from smarttrim_cli.pruning.inject import attend_at
from smarttrim_cli.pruning.projections import BertProjections
from smarttrim_cli.pruning.sites import CROSS_HEAD, CROSS_HEAD_1, SELF_HEAD, Site


def with_first(ids_RL: Tensor, token_id: int) -> Tensor:
    """A copy with another token at position 0."""
    return torch.cat((torch.full_like(ids_RL[:, :1], token_id), ids_RL[:, 1:]), 1)


def encode_image(model: Any, pixels_R3HW: Tensor, copies: int = 1) -> Tensor:
    """Vision encoder: (R, N, D), packed under a packed context; ``copies`` images per instance."""
    vision = model.vision_model
    hidden = enter("vision", vision.embeddings(pixels_R3HW), copies=copies)
    for index, (layer, rate) in enumerate(zip(vision.encoder.layers, model.drop_path_rates, strict=True)):
        (hidden,) = trim(vision=(index, hidden))
        attended = attend_at(
            Site("vision", index, SELF_HEAD).name,
            vision_projections(layer.self_attn),
            layer.layer_norm1(hidden),
            training=model.training,
        )
        hidden = hidden + drop_path(attended, rate, model.training)
        hidden = hidden + drop_path(layer.mlp(layer.layer_norm2(hidden)), rate, model.training)
    hidden = vision.post_layernorm(hidden)
    leave("vision", hidden)
    return hidden


def encode_text(
    model: Any, embedded_RLD: Tensor, attention_mask: Tensor, memories: tuple[Tensor, ...], copies: int = 1
) -> tuple[Tensor, Tensor]:
    """Text encoder with cross-attention to one image per row, or to two (NLVR2).

    Args:
        model: The backbone.
        embedded_RLD: Embedded tokens.
        attention_mask: (R, L), 0 on padding.
        memories: Image tokens, one tensor per image of a row.
        copies: Texts per instance.

    Returns:
        Hidden states, packed under a packed context, and the CLS of every row (R, D).
    """
    mask = host_mask(attention_mask)
    hidden = enter("text", embedded_RLD, attention_mask, copies)
    for index, layer in enumerate(model.text_encoder.encoder.layer):
        (hidden,) = trim(text=(index, hidden))
        hidden = self_attention(layer, Site("text", index, SELF_HEAD), hidden, mask)
        hidden = _cross_attention(layer.crossattention, index, hidden, memories)
        hidden = layer.output(layer.intermediate(hidden), hidden)
    return hidden, leave("text", hidden)


def encode_pair(
    model: Any, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor
) -> tuple[Tensor, Tensor]:
    """A question or statement fused with its image or images: see :func:`encode_text`."""
    images = model.form.images
    embedded = model.text_encoder.embeddings(input_ids=with_first(input_ids, model.options.enc_id))
    if current() is not None:
        _guide_by_text(model, input_ids, attention_mask, embedded)
    if images == 1:
        memories: tuple[Tensor, ...] = (encode_image(model, pixel_values),)
    else:
        image = encode_image(model, pixel_values.flatten(0, 1), images)
        memories = tuple(copy_of("vision", image, number, images) for number in range(images))
    return encode_text(model, embedded, attention_mask, memories)


def _guide_by_text(model: Any, input_ids: Tensor, attention_mask: Tensor, embedded_BLD: Tensor) -> None:
    """What the trimmers of the vision encoder see of a text that is yet to be fused with the image."""
    if model.options.guidance == "embeddings":
        weights_B1L = attention_mask.unsqueeze(1).to(embedded_BLD.dtype)
        guide("text", (weights_B1L @ embedded_BLD).squeeze(1) / weights_B1L.sum(-1))
        return
    hidden = enter("guidance", model.text_encoder.embeddings(input_ids=input_ids), attention_mask)
    for index, layer in enumerate(model.text_encoder.encoder.layer):
        (hidden,) = trim(guidance=(index, hidden))
        hidden = self_attention(layer, Site("guidance", index, SELF_HEAD), hidden, None)
        hidden = layer.output(layer.intermediate(hidden), hidden)
    guide("text", leave("guidance", hidden))


def host_mask(attention_mask: Tensor) -> Tensor | None:
    """Boolean (R, 1, 1, L) mask for attention without a context; None under one or without padding."""
    if current() is not None or bool(attention_mask.all()):
        return None
    return attention_mask.bool()[:, None, None, :]


def self_attention(layer: Any, site: Site, hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Self-attention block of a text layer, residual and norm included."""
    projections = BertProjections(layer.attention)
    attended = attend_at(site.name, projections, hidden, mask=mask, training=layer.training)
    return add_and_norm(layer.attention.output, attended, hidden)


def _cross_attention(
    attention: nn.Module, index: int, hidden: Tensor, memories: tuple[Tensor, ...]
) -> Tensor:
    """Cross-attention block of a text layer, residual and norm included."""
    training = attention.training
    if not isinstance(attention, TwinCrossAttention):
        name = Site("text", index, CROSS_HEAD).name
        attended = attend_at(name, BertProjections(attention), hidden, memories[0], training=training)
        return add_and_norm(attention.output, attended, hidden)
    both = (
        attend_at(
            Site("text", index, kind).name,
            twin_projections(attention, number),
            hidden,
            memories[number],
            training=training,
        )
        for number, kind in enumerate((CROSS_HEAD, CROSS_HEAD_1))
    )
    return add_and_norm(attention.output, attention.output.combine(*both), hidden)


def add_and_norm(output: Any, attended: Tensor, residual: Tensor) -> Tensor:
    """The rest of an output block whose ``dense`` has been applied: dropout, residual, norm."""
    return output.LayerNorm(output.dropout(attended) + residual)

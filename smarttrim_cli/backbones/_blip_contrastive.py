"""BLIP's retrieval model: features to compare first, matching of chosen pairs, and both in training.

Source: the official ``models/blip_retrieval.py`` and, for evaluation, ``train_retrieval.py``. Momentum
encoders, queues and losses are not here but with the task (:mod:`smarttrim_cli.tasks._contrastive`).

An image is encoded once, guided by itself, however many texts it is matched with. Trimmed are the vision
encoder and the text encoder that fuses text and image. The pass of the text encoder for the text's feature
sees no image and is never trimmed: one pass per text, whatever the number of images.

As in the official code: features from the CLS of either encoder, a learned temperature held in 0.001..0.5,
[ENC] in fused texts alone, hard negatives drawn by the softmax of the similarities. Unlike there (COCO's
setting ``negative_all_rank``), negatives come from the process's own batch; a batch of one image alone has
none, and gives true pairs instead.
Legend: B instances, K texts per image, L text tokens, R pairs, E feature width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from smarttrim_cli.backbones._blip_encoders import add_and_norm, encode_image, encode_text, with_first
from smarttrim_cli.forms import Contrast
from smarttrim_cli.pruning.attention import plain_attention
from smarttrim_cli.pruning.context import current, leave
from smarttrim_cli.pruning.projections import BertProjections
from smarttrim_cli.pruning.stream import Stream

_TEMPERATURES = (0.001, 0.5)
_NEVER = -1e4
"""Similarity of what must not be drawn; unlike -inf it leaves a distribution where nothing else is there."""


@dataclass(frozen=True)
class EncodedImages:
    """Images after the vision encoder, to be matched with texts in later passes of the same mode.

    Attributes:
        features: Normalised, (B, E).
        hidden: Image tokens, (B, N, D); under a packed context (1, T, D).
        stream: Which of them are kept; None in mode ``full``.
    """

    features: Tensor
    hidden: Tensor
    stream: Stream | None = None

    def to(self, device: torch.device | str) -> EncodedImages:
        """The same on another device."""
        stream = self.stream
        if stream is not None:
            values = {field.name: getattr(stream, field.name) for field in fields(stream)}
            moved: dict[str, Any] = {
                name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)
            }
            stream = replace(stream, **moved)
        return EncodedImages(self.features.to(device), self.hidden.to(device), stream)


def retrieve(
    model: Any,
    pixel_values: Tensor | None = None,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    image_ids: Tensor | None = None,
    images: EncodedImages | None = None,
    negative_images: Tensor | None = None,
    negative_texts: Tensor | None = None,
) -> Any:
    """The pass that the inputs ask for.

    Args:
        model: The backbone.
        pixel_values: (B, 3, H, W). Alone: the images are encoded.
        input_ids: (B, K, L), K texts to match each image with.
        attention_mask: Like ``input_ids``, 0 on padding.
        image_ids: (B,) for training, where K is 1: images with the same id are the same.
        images: In place of ``pixel_values``, from an earlier pass.
        negative_images: (B,) for training: rows to take as hard negatives instead of drawing them.
        negative_texts: The same for texts.

    Returns:
        :class:`EncodedImages`; matching scores (B, K); or, in training, :class:`~.forms.Contrast`.
    """
    if input_ids is None or attention_mask is None:
        return encode(model, pixel_values)
    if image_ids is not None:
        negatives = None
        if negative_images is not None and negative_texts is not None:
            negatives = (negative_images, negative_texts)
        return contrast(model, pixel_values, input_ids[:, 0], attention_mask[:, 0], image_ids, negatives)
    if images is not None:
        return match(model, resumed(images), input_ids, attention_mask)
    assert pixel_values is not None
    return match(model, encode_image(model, pixel_values), input_ids, attention_mask)


def encode(model: Any, pixel_values: Any) -> EncodedImages:
    """Images with their features."""
    hidden = encode_image(model, pixel_values)
    context = current()
    stream = None if context is None else context.streams["vision"]
    return EncodedImages(image_features(model, hidden), hidden, stream)


def resumed(images: EncodedImages) -> Tensor:
    """Image tokens of an earlier pass, their stream made known to the present one."""
    context = current()
    if context is not None:
        assert images.stream is not None
        context.streams["vision"] = images.stream
        context.cls["vision"] = images.stream.cls_BD(images.hidden)
    return images.hidden


def match(model: Any, image: Tensor, input_ids_BKL: Tensor, attention_mask_BKL: Tensor) -> Tensor:
    """Matching scores (B, K) of encoded images with K texts each.

    The score is the logit "they match" of the matching head, as the official evaluation takes it. It adds the
    similarity of the features there, which the first stage has at hand.
    """
    batch, texts = input_ids_BKL.shape[:2]
    image_R = torch.arange(batch, device=image.device).repeat_interleave(texts)
    ids_RL, mask_RL = input_ids_BKL.flatten(0, 1), attention_mask_BKL.flatten(0, 1)
    return _fused(model, image, image_R, texts, ids_RL, mask_RL)[:, 1].view(-1, texts)


def contrast(
    model: Any,
    pixel_values: Any,
    input_ids_BL: Tensor,
    attention_mask_BL: Tensor,
    image_ids_B: Tensor,
    negatives: tuple[Tensor, Tensor] | None,
) -> Contrast:
    """Features of pairs, and matching logits of each with a hard negative text and a hard negative image."""
    model.temp.data.clamp_(*_TEMPERATURES)  # of the data: an earlier pass of this step needs its own value
    hidden = encode_image(model, pixel_values)
    images_BE = image_features(model, hidden)
    texts_BE = text_features(model, input_ids_BL, attention_mask_BL)
    if negatives is None:
        negatives = hard_negatives(images_BE, texts_BE, model.temp, image_ids_B)
    own_B = torch.arange(len(image_ids_B), device=image_ids_B.device)
    image_R = torch.stack((own_B, own_B, negatives[0]), 1).flatten()
    text_R = torch.stack((own_B, negatives[1], own_B), 1).flatten()
    logits_R2 = _fused(model, hidden, image_R, 3, input_ids_BL[text_R], attention_mask_BL[text_R])
    return Contrast(images_BE, texts_BE, model.temp, logits_R2.view(-1, 3, 2), *negatives)


@torch.no_grad()
def hard_negatives(
    images_BE: Tensor, texts_BE: Tensor, temperature: Tensor, image_ids_B: Tensor
) -> tuple[Tensor, Tensor]:
    """For every text another image, for every image a text of another one: rows (B,), the like ones likelier.

    Where a batch has no other image, rows of the same one are drawn.
    """
    same_BB = image_ids_B[:, None] == image_ids_B
    similarity_BB = images_BE.float() @ texts_BE.float().T / temperature
    drawn = (
        torch.multinomial(side.masked_fill(same_BB, _NEVER).softmax(-1), 1).squeeze(1)
        for side in (similarity_BB.T, similarity_BB)
    )
    negative_images_B, negative_texts_B = drawn
    return negative_images_B, negative_texts_B


def image_features(model: Any, hidden: Tensor) -> Tensor:
    """Normalised features (B, E) of encoded images."""
    return F.normalize(model.vision_proj(leave("vision", hidden)), dim=-1)


def text_features(model: Any, input_ids_RL: Tensor, attention_mask_RL: Tensor) -> Tensor:
    """Normalised features (R, E): a pass without cross-attention, with [CLS] as it is; in no mode trimmed."""
    mask = None if bool(attention_mask_RL.all()) else attention_mask_RL.bool()[:, None, None, :]
    hidden = model.text_encoder.embeddings(input_ids=input_ids_RL)
    for layer in model.text_encoder.encoder.layer:
        projections = BertProjections(layer.attention)
        attended = plain_attention(projections, hidden, hidden, mask, layer.training)
        hidden = add_and_norm(layer.attention.output, attended, hidden)
        hidden = layer.output(layer.intermediate(hidden), hidden)
    return F.normalize(model.text_proj(hidden[:, 0]), dim=-1)


def _fused(
    model: Any, image: Tensor, image_R: Tensor, per_image: int, ids_RL: Tensor, mask_RL: Tensor
) -> Tensor:
    """Logits of the matching head, (R, 2), for pairs of an encoded image (its row) and a text."""
    embedded = model.text_encoder.embeddings(input_ids=with_first(ids_RL, model.options.enc_id))
    with paired(image, image_R, per_image) as image_of_pair:
        _, fused_RD = encode_text(model, embedded, mask_RL, (image_of_pair,), per_image)
    return model.itm_head(fused_RD)


@contextmanager
def paired(image: Tensor, image_R: Tensor, per_image: int) -> Iterator[Tensor]:
    """Image tokens for every pair; meanwhile the vision stream has a row per pair, too.

    Args:
        image: Encoded images.
        image_R: Row of the image of every pair.
        per_image: Pairs per image.
    """
    context = current()
    if context is None:
        yield image[image_R]
        return
    stream, cls = context.streams["vision"], context.cls["vision"]
    context.streams["vision"], index = stream.rows(image_R.tolist())
    image = stream.take(image, index)
    context.cls["vision"] = context.streams["vision"].cls_BD(image)
    context.repeated["vision"] = per_image
    yield image
    context.streams["vision"], context.cls["vision"] = stream, cls
    del context.repeated["vision"]

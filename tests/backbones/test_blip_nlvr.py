"""BLIP for two images and for one, against a plain reference written from the official description.

``models/nlvr_encoder.py``: every text layer is self-attention, cross-attention to each image with projections
of its own, the two results averaged (or merged by a linear layer), residual and norm, feed-forward.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smarttrim_cli.backbones import blip
from smarttrim_cli.backbones._blip_encoders import encode_image
from smarttrim_cli.forms import Form
from tests import tiny
from tests.tiny import enliven

ENC, SEP = 51, 3
OPTIONS: dict[str, Any] = {
    "image_size": 32,
    "max_text_length": 30,
    "merge_layer_from": 1,
    "vision": {
        "config": {
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "patch_size": 16,
        }
    },
    "text": {
        "config": {
            "vocab_size": 52,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 40,
            "sep_token_id": SEP,
        }
    },
}


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def attention(query: Tensor, memory: Tensor, inner: nn.Module, heads: int, mask: Tensor | None) -> Tensor:
    """softmax(q k / sqrt(d)) v, head by head, without the output projection."""
    q, k, v = inner.query(query), inner.key(memory), inner.value(memory)
    size = q.shape[-1] // heads
    parts = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        logits = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size)
        if mask is not None:
            logits = logits.masked_fill(mask[:, None] == 0, -1e9)
        parts.append(logits.softmax(-1) @ v[..., part])
    return torch.cat(parts, -1)


def reference(model: Any, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """The official forward on our weights; the images by transformers' own vision encoder."""
    images = [pixels] if pixels.dim() == 4 else list(pixels.unbind(1))
    memories = [model.vision_model(image).last_hidden_state for image in images]
    ids = ids.clone()
    ids[:, 0] = ENC
    hidden = model.text_encoder.embeddings(input_ids=ids)
    for number, layer in enumerate(model.text_encoder.encoder.layer):
        own = attention(hidden, hidden, layer.attention.self, 4, mask)
        hidden = layer.attention.output.LayerNorm(layer.attention.output.dense(own) + hidden)
        cross = layer.crossattention
        if len(memories) == 2:
            first = cross.output.dense0(attention(hidden, memories[0], cross.self0, 4, None))
            second = cross.output.dense1(attention(hidden, memories[1], cross.self1, 4, None))
            both = torch.cat((first, second), -1)
            seen = (first + second) / 2 if number < 1 else cross.output.merge_layer(both)
        else:
            seen = cross.output.dense(attention(hidden, memories[0], cross.self, 4, None))
        hidden = cross.output.LayerNorm(seen + hidden)
        inner = F.gelu(layer.intermediate.dense(hidden))
        hidden = layer.output.LayerNorm(layer.output.dense(inner) + hidden)
    head = model.cls_head
    return head[2](head[0](hidden[:, 0]).relu())


@pytest.mark.parametrize(("form", "images", "labels"), [("nlvr2", 2, 2), ("snli_ve", 1, 3)])
def test_equals_the_plain_reference(form: str, images: int, labels: int) -> None:
    model = enliven(blip.build(blip.Options(**OPTIONS), Form(form, labels, images))).eval()
    inputs = model.example_inputs(7, batch=3)
    assert inputs["pixel_values"].shape == ((3, 2, 3, 32, 32) if images == 2 else (3, 3, 32, 32))
    inputs["attention_mask"][1, 4:] = 0
    inputs["input_ids"][1, 4:] = 0
    logits = model(**inputs)
    assert logits.shape == (3, labels)
    expected = reference(model, inputs["pixel_values"], inputs["input_ids"], inputs["attention_mask"])
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


def test_heads_of_both_cross_attentions_are_guided() -> None:
    """Eq. 7: own CLS and that of the other modality, for the attention to each image."""
    (variant,) = [v for v in tiny.one_per_form() if (v.backbone, v.form) == ("blip", "nlvr2")]
    model = tiny.attach(variant.build(), "cross_modal", "global_head")
    inputs = {
        name: trimmer.cls_mlp().first.in_features
        for name, trimmer in model.sites.items()
        if name.rpartition(".")[2] in ("cross_head", "cross_head1")
    }
    assert {name.rpartition(".")[2] for name in inputs} == {"cross_head", "cross_head1"}
    (own,) = {model.sites["text.0.self_head"].cls_mlp().first.in_features}
    assert len(set(inputs.values())) == 1 and min(inputs.values()) > own


def test_the_order_of_the_images_matters() -> None:
    model = enliven(blip.build(blip.Options(**OPTIONS), Form("nlvr2", images=2))).eval()
    inputs = model.example_inputs(7, batch=2)
    swapped = {**inputs, "pixel_values": inputs["pixel_values"].flip(1)}
    assert (model(**inputs) - model(**swapped)).abs().max() > 1e-2


def test_lower_layers_average_and_higher_ones_merge() -> None:
    with torch.device("meta"):
        model = blip.build(blip.Options(), Form("nlvr2", images=2))
    outputs = [layer.crossattention.output for layer in model.text_encoder.encoder.layer]
    assert [output.merge_layer is not None for output in outputs] == [False] * 6 + [True] * 6


@pytest.mark.parametrize(("rate", "random"), [(0.5, True), (0.0, False)])
def test_stochastic_depth_in_training_only(rate: float, random: bool) -> None:
    model = enliven(blip.build(blip.Options(**OPTIONS, drop_path_rate=rate), Form("nlvr2", images=2)))
    pixels = model.example_inputs(7, batch=4)["pixel_values"].flatten(0, 1)
    whole = encode_image(model.eval(), pixels)
    torch.manual_seed(0)
    assert torch.equal(encode_image(model.train(), pixels), whole) is not random

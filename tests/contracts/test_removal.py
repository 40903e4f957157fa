"""Contract: ``packed`` is what plain host layers give on the gathered tokens, with heads left out by hand.

The reference below is written from the papers' formulas, for one unpadded instance and an unattached host; it
shares no code with the pruning engine.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from smarttrim_cli.pruning.decisions import Decisions
from tests import tiny
from tests.tiny import BACKBONES, Variant

VARIANTS = [Variant("meter", name, options) for name, options in BACKBONES["meter"].items() if name != "swin"]


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, heads: Tensor) -> Tensor:
    """(N, H, E), (M, H, E), (M, H, E) and a head mask (H,) to (N, H * E), one head at a time."""
    out = []
    for head in range(q.shape[1]):
        weights = (q[:, head] @ k[:, head].T / q.shape[-1] ** 0.5).softmax(-1)
        out.append(weights @ v[:, head] * heads[head])
    return torch.cat(out, -1)


def bert_attention(module: nn.Module, hidden: Tensor, memory: Tensor, heads: Tensor) -> Tensor:
    inner, split = module.self, (-1, len(heads), hidden.shape[-1] // len(heads))
    q, k, v = (
        f(x).view(split) for f, x in ((inner.query, hidden), (inner.key, memory), (inner.value, memory))
    )
    return module.output.LayerNorm(module.output.dense(softmax_attention(q, k, v, heads)) + hidden)


def timm_block(block: nn.Module, hidden: Tensor, heads: Tensor) -> Tensor:
    attn, normed = block.attn, block.norm1(hidden)
    q, k, v = attn.qkv(normed).chunk(3, -1)
    q, k, v = (x.reshape(len(hidden), len(heads), -1) for x in (q, k, v))
    hidden = hidden + block.ls1(attn.proj(softmax_attention(attn.q_norm(q), attn.k_norm(k), v, heads)))
    return hidden + block.ls2(block.mlp(block.norm2(hidden)))


class Gathered:
    """Tokens of one stream with their original positions."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden, self.positions = hidden, torch.arange(len(hidden))

    def gather(self, keep_N: Tensor) -> None:
        chosen = keep_N[self.positions]
        self.hidden, self.positions = self.hidden[chosen], self.positions[chosen]


def plain_meter(host: nn.Module, inputs: dict[str, Tensor], log: Decisions) -> Tensor:
    """Logits of one instance under the given decisions."""

    def keep(stream: str, layer: int, kind: str) -> Tensor:
        return log.keep[f"{stream}.{layer}.{kind}"][0]

    text = Gathered(host.text_transformer.embeddings(input_ids=inputs["input_ids"])[0])
    for index, layer in enumerate(host.text_transformer.encoder.layer):
        text.gather(keep("text", index, "token"))
        heads = keep("text", index, "self_head")
        if heads.all():  # the untouched host layer
            text.hidden = layer(text.hidden[None])[0]
            continue
        attended = bert_attention(layer.attention, text.hidden, text.hidden, heads)
        text.hidden = layer.output(layer.intermediate(attended), attended)

    vit = host.vit_model
    image = Gathered(vit.norm_pre(vit._pos_embed(vit.patch_embed(inputs["pixel_values"])))[0])
    for index, block in enumerate(vit.blocks):
        image.gather(keep("vision", index, "token"))
        heads = keep("vision", index, "self_head")
        image.hidden = block(image.hidden[None])[0] if heads.all() else timm_block(block, image.hidden, heads)
    image.hidden = vit.norm(image.hidden)

    types = host.token_type_embeddings(torch.tensor([0, 1]))
    text.hidden = host.cross_modal_text_transform(text.hidden) + types[0]
    image.hidden = host.cross_modal_image_transform(image.hidden) + types[1]
    sides = {"text": (text, host.cross_modal_text_layers), "vision": (image, host.cross_modal_image_layers)}
    depth = {"text": len(host.text_transformer.encoder.layer), "vision": len(vit.blocks)}
    for number in range(len(host.cross_modal_text_layers)):
        for stream, (side, _) in sides.items():
            side.gather(keep(stream, depth[stream] + number, "token"))
        new = {}
        for stream, other in (("text", "vision"), ("vision", "text")):
            side, layers = sides[stream]
            index, layer, memory = depth[stream] + number, layers[number], sides[other][0].hidden
            hidden = bert_attention(
                layer.attention, side.hidden, side.hidden, keep(stream, index, "self_head")
            )
            hidden = bert_attention(layer.crossattention, hidden, memory, keep(stream, index, "cross_head"))
            new[stream] = layer.output(layer.intermediate(hidden), hidden)
        text.hidden, image.hidden = new["text"], new["vision"]

    pooled = (
        torch.tanh(host.cross_modal_text_pooler.dense(text.hidden[0])),
        torch.tanh(host.cross_modal_image_pooler.dense(image.hidden[0])),
    )
    return host.vqa_classifier(torch.cat(pooled)[None])


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_packed_equals_plain_layers_on_gathered_tokens(variant: Variant) -> None:
    model = tiny.attach(variant.build(), "cross_modal", "global_head")
    untouched = variant.build()
    inputs = tiny.ragged_inputs(untouched)
    batched = model(inputs, "packed")
    for index in range(len(tiny.LENGTHS)):
        expected = plain_meter(untouched, tiny.instance(inputs, index), batched.decisions.instance(index))
        assert_close(batched.output[index : index + 1], expected, rtol=0.0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["masked", "packed"])
@pytest.mark.parametrize("seed", range(6))
def test_both_modes_equal_plain_layers_under_any_decisions(mode: str, seed: int) -> None:
    variant = VARIANTS[seed % len(VARIANTS)]
    model, untouched = tiny.attach(variant.build(seed), "cross_modal", "global_head"), variant.build(seed)
    inputs = tiny.ragged_inputs(untouched, seed)
    forward = model(inputs, mode, replay=tiny.random_decisions(model, inputs, seed))
    for index in range(len(tiny.LENGTHS)):
        expected = plain_meter(untouched, tiny.instance(inputs, index), forward.decisions.instance(index))
        assert_close(forward.output[index : index + 1], expected, rtol=0.0, atol=1e-5)

"""What BLIP tells the trimming engine: layers, sites, costs, typical sizes.

Costs are MACs as torchprofile counts them. Streams are ``vision``, ``text``, ``decoder`` and, where the
question guides through a pass of its own, ``guidance``.

With ``as_published`` these are the counts of the paper's tables at 288 pixels: 71.2 G for NLVR2 (19 text
tokens), 38.6 G for VQA (10 tokens; 3 beams, 4 steps). For captioning (3 beams, prompt of 4 tokens) 15 steps
are 243.8 G and 16, the most that ``max_length`` 20 allows, 257.9 G; the paper's 246.3 G is between the two,
as a mean over captions of different lengths would be.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from smarttrim_cli.backbones._blip_layers import TwinCrossAttention
from smarttrim_cli.pruning.cost import Number, full_counts, total_macs
from smarttrim_cli.pruning.sites import (
    CROSS_HEAD,
    HOSTED,
    SELF_HEAD,
    Architecture,
    AttentionSpec,
    FixedCost,
    LayerSpec,
    TokenCost,
)


def architecture(model: Any) -> Architecture:
    """Layers, sites and costs."""
    layers, costs = _vision_layers(model), _vision_costs(model)
    guided = _guided_by_text(model)
    if hasattr(model, "text_encoder"):
        layers += _text_layers(model)
        costs.append(TokenCost("text_encoder", "text", -1, model.options.text.config.hidden_size))
    own_pass = guided and model.options.guidance == "text_encoder"
    if own_pass:
        layers += _guidance_layers(model)
        costs.append(TokenCost("trimmers", "guidance", -1, model.options.text.config.hidden_size))
    if hasattr(model, "text_decoder"):
        layers += _decoder_layers(model)
        costs.append(TokenCost("decoder", "decoder", -1, model.options.text.config.hidden_size))
        costs.append(TokenCost("decoder", "decoder", -1, _language_head(model), run_on="logits"))
    copies = {"vision": model.form.images} if model.form.images > 1 else {}
    overhead = ("guidance",) if own_pass else ()
    return Architecture(tuple(layers), _fixed_costs(model), tuple(costs), copies, overhead)


def _guided_by_text(model: Any) -> bool:
    """Whether the vision encoder knows the text: not where an image is encoded once for many, or has none."""
    return model.form.name in ("vqa", "nlvr2", "snli_ve")


def _vision_layers(model: Any) -> list[LayerSpec]:
    config = model.options.vision.config
    guided = _guided_by_text(model)
    return [
        LayerSpec(
            stream="vision",
            index=index,
            part="vision_encoder",
            width=config.hidden_size,
            mlp_width=config.intermediate_size,
            self_attention=_attention(f"vision_model.encoder.layers.{index}.self_attn", config),
            guide="text" if guided else None,
            guide_width=model.options.text.config.hidden_size if guided else 0,
            extra_macs=2 * config.hidden_size,  # two norms
            input_of=f"vision_model.encoder.layers.{index + 1}.layer_norm1"
            if index + 1 < config.num_hidden_layers
            else "vision_model.post_layernorm",
        )
        for index in range(config.num_hidden_layers)
    ]


def _text_layers(model: Any) -> list[LayerSpec]:
    config, vision = model.options.text.config, model.options.vision.config
    width, last = config.hidden_size, vision.num_hidden_layers - 1
    specs = []
    for index, layer in enumerate(model.text_encoder.encoder.layer):
        path = f"text_encoder.encoder.layer.{index}"
        twin = isinstance(layer.crossattention, TwinCrossAttention)
        memory = {"memory_stream": "vision", "memory_layer": last, "memory_width": vision.hidden_size}
        first, second = (
            _attention(f"{path}.crossattention", config, **memory, memory_copy=number if twin else None)
            for number in (0, 1)
        )
        merges = twin and layer.crossattention.output.merge_layer is not None
        specs.append(
            LayerSpec(
                stream="text",
                index=index,
                part="text_encoder",
                width=width,
                mlp_width=config.intermediate_size,
                self_attention=_attention(f"{path}.attention", config),
                cross_attention=first,
                second_cross_attention=second if twin else None,
                guide="vision",
                guide_width=vision.hidden_size,
                extra_macs=3 * width + (2 * width * width if merges else 0),  # norms, merge_layer
                output_of=f"{path}.output",
            )
        )
    return specs


def _guidance_layers(model: Any) -> list[LayerSpec]:
    """The text encoder without its cross-attention, run for the trimmers alone; nothing is trimmed there."""
    config = model.options.text.config
    return [
        LayerSpec(
            stream="guidance",
            index=index,
            part="trimmers",
            width=config.hidden_size,
            mlp_width=config.intermediate_size,
            self_attention=_attention(f"text_encoder.encoder.layer.{index}.attention", config),
            extra_macs=2 * config.hidden_size,
            kinds=(),
        )
        for index in range(config.num_hidden_layers)
    ]


def _decoder_layers(model: Any) -> list[LayerSpec]:
    config, vision = model.options.text.config, model.options.vision.config
    memory, source = ("text", config) if hasattr(model, "text_encoder") else ("vision", vision)
    specs = []
    for index in range(config.num_hidden_layers):
        path = f"text_decoder.bert.encoder.layer.{index}"
        specs.append(
            LayerSpec(
                stream="decoder",
                index=index,
                part="decoder",
                width=config.hidden_size,
                mlp_width=config.intermediate_size,
                self_attention=_attention(f"{path}.attention", config),
                cross_attention=_attention(
                    f"{path}.crossattention",
                    config,
                    memory_stream=memory,
                    memory_layer=source.num_hidden_layers - 1,
                    memory_width=source.hidden_size,
                ),
                guide=memory,
                guide_width=source.hidden_size,
                extra_macs=3 * config.hidden_size,
                kinds=(SELF_HEAD, CROSS_HEAD),
                output_of=f"{path}.output",
            )
        )
    return specs


def _attention(path: str, config: Any, **memory: Any) -> AttentionSpec:
    heads = config.num_attention_heads
    return AttentionSpec(path, HOSTED, heads, config.hidden_size // heads, **memory)


def _vision_costs(model: Any) -> list[TokenCost]:
    """The norm behind the last layer."""
    config = model.options.vision.config
    return [TokenCost("vision_encoder", "vision", config.num_hidden_layers - 1, config.hidden_size)]


def _language_head(model: Any) -> int:
    """Transform, norm and vocabulary, for a token."""
    config = model.options.text.config
    width: int = config.hidden_size
    return width * width + width + width * config.vocab_size


def _fixed_costs(model: Any) -> tuple[FixedCost, ...]:
    patches = model.vision_model.embeddings
    images = FixedCost(
        "vision_encoder", patches.num_patches * patches.patch_embedding.weight.numel(), per_row_of="vision"
    )
    width = model.options.text.config.hidden_size
    if hasattr(model, "cls_head"):
        return images, FixedCost("head", width * width + width * model.form.num_labels)
    if hasattr(model, "itm_head"):
        return images, FixedCost("head", 2 * width, per_row_of="text")
    return (images,)


def image_feature_macs(model: Any) -> int:
    """The projection of an encoded image's CLS to its feature."""
    return model.options.vision.config.hidden_size * model.feature_width


def text_feature_macs(model: Any, tokens: Number) -> Number:
    """A text's feature: the text encoder without cross-attention, and a projection. Never trimmed."""
    width = model.options.text.config.hidden_size
    alone = Architecture(
        tuple(_guidance_layers(model)),
        (FixedCost("head", width * model.feature_width),),
        (TokenCost("text_encoder", "guidance", -1, width),),
    )
    return total_macs(alone, full_counts(alone, {"guidance": tokens}))


def token_counts(model: Any, text_tokens: int) -> dict[str, float]:
    """What the streams of an instance start with; of a decoder, its work.

    Where candidates are ranked, that is one token, and then all of every candidate that is left by it; else
    ``form.new_tokens`` steps, of which all beams run from the prompt on, as in the official code. What
    follows is predicted of every candidate's tokens, but of a prompt's last one only.
    """
    counts: dict[str, float] = {"vision": model.vision_model.embeddings.num_patches + 1}
    if hasattr(model, "text_encoder"):
        counts["text"] = text_tokens
    if _guided_by_text(model) and model.options.guidance == "text_encoder":
        counts["guidance"] = text_tokens
    if hasattr(model, "text_decoder") and model.decoding.rank and model.form.candidate_tokens:
        rows, tokens = model.decoding.num_candidates, model.form.candidate_tokens
        counts["decoder"] = 1 + rows * tokens
        counts["decoder.pairs"] = 1 + rows * tokens * tokens
        counts["decoder.logits"] = counts["decoder"]
        counts["decoder.row_calls"] = 1 + rows
    elif hasattr(model, "text_decoder"):
        prompt, beams, steps = (
            model.form.prompt_tokens,
            model.decoding.num_beams,
            max(model.form.new_tokens, 1),
        )
        later = steps - 1  # one token each, which sees all before it
        counts["decoder"] = beams * (prompt + later)
        counts["decoder.pairs"] = beams * (prompt * prompt + later * prompt + later * (later + 1) / 2)
        counts["decoder.logits"] = counts["decoder.row_calls"] = beams * steps
    return counts


def example_inputs(model: Any, text_tokens: int, batch: int, seed: int) -> dict[str, Tensor]:
    """Random inputs of the right shapes; generating forms write as many tokens as is typical."""
    generator = torch.Generator().manual_seed(seed)
    size, text = model.options.image_size, model.options.text.config
    images = () if model.form.images == 1 else (model.form.images,)
    inputs = {"pixel_values": torch.randn(batch, *images, 3, size, size, generator=generator)}
    if hasattr(model, "text_decoder"):
        inputs["num_steps"] = torch.tensor(model.form.steps_of(seed))
    if model.form.name == "captioning":
        text_tokens = model.form.prompt_tokens
    shape = (batch, 1, text_tokens) if model.form.name == "retrieval" else (batch, text_tokens)
    special = {text.pad_token_id, text.sep_token_id, model.options.dec_id, model.options.enc_id}
    words = torch.tensor([token for token in range(text.vocab_size) if token not in special])
    ids = words[torch.randint(0, len(words), shape, generator=generator)]
    if model.form.name == "captioning":
        return {**inputs, "prompt_ids": ids}
    ids[..., -1] = text.sep_token_id
    return {**inputs, "input_ids": ids, "attention_mask": torch.ones(shape, dtype=torch.long)}

"""METER's layers, sites and costs; see :mod:`smarttrim_cli.pruning.cost` for what is counted."""

from __future__ import annotations

from math import ceil
from typing import Any

from timm.models.swin_transformer import PatchMerging, SwinTransformer
from torch import nn

from smarttrim_cli.backbones._meter_heads import ANSWERING, head_macs
from smarttrim_cli.pruning.sites import Architecture, AttentionSpec, FixedCost, LayerSpec, TokenCost

Model = Any
"""A ``Meter``."""

Host = Any
"""A module of timm's, whose parts nn.Module does not know the types of."""


def architecture(model: Model) -> Architecture:
    """Layers, sites and costs of a model in its form."""
    layers = (*_text_layers(model), *_vision_layers(model), *_cross_layers(model))
    images = model.form.images
    copies = {"text": images, "vision": images} if images > 1 else {}
    return Architecture(layers, _fixed_costs(model), _token_costs(model), copies)


def image_tokens(vit: Host) -> int:
    """Tokens that an image has when it enters its stream."""
    if not isinstance(vit, SwinTransformer):
        return int(vit.patch_embed.num_patches) + 1
    last: Host = vit.layers[-1]
    rows, columns = last.output_resolution
    return int(rows * columns)


def _depths(model: Model) -> dict[str, int]:
    """Layers of each stream before the co-attention layers."""
    vision = len(model.vit_model.blocks) if model.image_has_cls else 0
    return {"text": len(model.text_transformer.encoder.layer), "vision": vision}


def _text_layers(model: Model) -> list[LayerSpec]:
    config = model.text_transformer.config
    heads = config.num_attention_heads
    return [
        LayerSpec(
            stream="text",
            index=index,
            part="text_encoder",
            width=config.hidden_size,
            mlp_width=config.intermediate_size,
            self_attention=AttentionSpec(
                f"text_transformer.encoder.layer.{index}.attention",
                "bert",
                heads,
                config.hidden_size // heads,
            ),
            extra_macs=2 * config.hidden_size,
            output_of=f"text_transformer.encoder.layer.{index}",
        )
        for index in range(config.num_hidden_layers)
    ]


def _vision_layers(model: Model) -> list[LayerSpec]:
    """Blocks of a ViT; windows of a Swin Transformer have no sites and count as fixed costs."""
    if not model.image_has_cls:
        return []
    width = model.vit_model.embed_dim
    return [
        LayerSpec(
            stream="vision",
            index=index,
            part="vision_encoder",
            width=width,
            mlp_width=(block.mlp.fc1.weight.numel() + block.mlp.fc2.weight.numel()) // (2 * width),
            self_attention=AttentionSpec(
                f"vit_model.blocks.{index}.attn", "timm", block.attn.num_heads, block.attn.head_dim
            ),
            guide="text",
            guide_width=model.text_transformer.config.hidden_size,
            extra_macs=_block_extra_macs(block),
            output_of=f"vit_model.blocks.{index}",
        )
        for index, block in enumerate(model.vit_model.blocks)
    ]


def _block_extra_macs(block: Host) -> int:
    """Element-wise MACs per token of a timm block: norms, scales and QuickGELU (two products)."""
    width, inner = block.mlp.fc1.in_features, block.mlp.fc1.out_features
    scales = sum(width for name in ("ls1", "ls2") if not isinstance(getattr(block, name), nn.Identity))
    norms = sum(
        width for name in ("q_norm", "k_norm") if not isinstance(getattr(block.attn, name), nn.Identity)
    )
    quick_gelu = 2 * inner if "quick" in type(block.mlp.act).__name__.lower() else 0
    return 2 * width + scales + norms + quick_gelu


def _cross_layers(model: Model) -> list[LayerSpec]:
    options, depth = model.options, _depths(model)
    width, heads = options.hidden_size, options.num_attention_heads
    specs = []
    for number in range(options.num_cross_layers):
        for stream, other, name in (("text", "vision", "text"), ("vision", "text", "image")):
            path = f"cross_modal_{name}_layers.{number}"
            specs.append(
                LayerSpec(
                    stream=stream,
                    index=depth[stream] + number,
                    part="cross_modal",
                    width=width,
                    mlp_width=options.intermediate_size,
                    self_attention=AttentionSpec(f"{path}.attention", "bert", heads, width // heads),
                    cross_attention=AttentionSpec(
                        f"{path}.crossattention",
                        "bert",
                        heads,
                        width // heads,
                        other,
                        depth[other] + number,
                        width,
                    ),
                    guide=other,
                    guide_width=width,
                    extra_macs=3 * width,
                    output_of=path,
                )
            )
    return specs


def _fixed_costs(model: Model) -> tuple[FixedCost, ...]:
    """What no decision changes; a head that joins several images runs once, all else for every row."""
    width, joins = model.options.hidden_size, model.form.images > 1
    vit = model.vit_model
    vision = _swin_macs(vit) if isinstance(vit, SwinTransformer) else _patch_macs(vit)
    average = 0 if model.image_has_cls else width
    answer = head_macs(model.get_submodule(ANSWERING[model.form.name]))
    return (
        FixedCost("vision_encoder", vision, "vision"),
        FixedCost("head", 2 * width * width + average, "vision"),
        FixedCost("head", answer, None if joins else "vision"),
    )


def _patch_macs(vit: Host) -> int:
    patches = vit.patch_embed.num_patches
    pre_norm = 0 if isinstance(vit.norm_pre, nn.Identity) else vit.embed_dim * (patches + 1)
    return patches * vit.patch_embed.proj.weight.numel() + pre_norm


def _swin_macs(vit: Host) -> int:
    """A whole Swin Transformer."""
    patches = vit.patch_embed.num_patches
    norm = 0 if isinstance(vit.patch_embed.norm, nn.Identity) else vit.embed_dim
    macs = patches * (vit.patch_embed.proj.weight.numel() + norm)
    for stage in vit.layers:
        rows, columns = stage.output_resolution
        if isinstance(stage.downsample, PatchMerging):
            macs += rows * columns * (stage.downsample.reduction.weight.numel() + 4 * stage.downsample.dim)
        macs += sum(_window_block_macs(block, rows, columns) for block in stage.blocks)
    return macs + image_tokens(vit) * vit.num_features


def _window_block_macs(block: Host, rows: int, columns: int) -> int:
    """Attention within windows (the grid is padded to whole ones, queries are scaled), MLP and two norms."""
    attn, (height, width) = block.attn, block.window_size
    padded = ceil(rows / height) * height * ceil(columns / width) * width
    inner = attn.proj.in_features
    scaled = 0 if attn.fused_attn else inner
    attention = attn.qkv.weight.numel() + attn.proj.weight.numel() + 2 * height * width * inner + scaled
    mlp = block.mlp.fc1.weight.numel() + block.mlp.fc2.weight.numel() + 2 * block.dim
    return padded * attention + rows * columns * mlp


def _token_costs(model: Model) -> tuple[TokenCost, ...]:
    """Norm of the text's embeddings, last norm of a ViT, transforms to the co-attention width."""
    vit, text, width = model.vit_model, model.text_transformer.config, model.options.hidden_size
    last = {stream: depth - 1 for stream, depth in _depths(model).items()}
    final_norm = vit.num_features if model.image_has_cls and not isinstance(vit.norm, nn.Identity) else 0
    return (
        TokenCost("text_encoder", "text", -1, text.hidden_size),
        TokenCost("vision_encoder", "vision", last["vision"], final_norm),
        TokenCost("cross_modal", "text", last["text"], text.hidden_size * width),
        TokenCost("cross_modal", "vision", last["vision"], vit.num_features * width),
    )

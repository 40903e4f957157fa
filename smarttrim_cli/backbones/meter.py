"""METER (Dou et al., 2022): a ViT, a text encoder and co-attention layers, with the official parameter names.

Sources: the METER paper and the official implementation's ``METERTransformerSS``. The vision encoder is any
timm ``VisionTransformer`` with a CLS token (``vit_model``), the text encoder any Hugging Face model of the
BERT family (``text_transformer``); the co-attention layers are in :mod:`._coattention`.

The text encoder runs first: its final CLS guides the trimmers of the vision encoder.
Legend: B batch, N image tokens, L text tokens, D width.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import timm
import torch
from pydantic import BaseModel, ConfigDict, Field
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from smarttrim_cli.backbones._coattention import CoAttentionLayer, Pooler
from smarttrim_cli.errors import UserError
from smarttrim_cli.pruning.context import current, enter, leave, trim
from smarttrim_cli.pruning.sites import Architecture, AttentionSpec, FixedCost, LayerSpec, TokenCost

TEXT_MODELS = ("bert", "roberta", "xlm-roberta", "camembert", "data2vec-text", "ernie")
"""Hugging Face model types whose layers are built like BERT's (``attention.self``, ``attention.output``)."""

_POSITION_OFFSET = 2
"""RoBERTa's positions start behind its padding index 1."""


class VisionOptions(BaseModel):
    """The vision encoder."""

    model_config = ConfigDict(extra="forbid")
    model: str = Field(
        default="vit_base_patch16_clip_quickgelu_224", description="name of a timm VisionTransformer"
    )
    args: dict[str, Any] = Field(
        default={"depth": 11}, description="arguments of timm.create_model, e.g. depth"
    )
    sincos_pos_embed: bool = Field(
        default=False, description="start from 2-d sine-cosine position embeddings"
    )
    initializer_range: float | None = Field(
        default=None,
        gt=0,
        description="standard deviation of new linear weights; null leaves timm's initialisation",
    )


class TextOptions(BaseModel):
    """The text encoder."""

    model_config = ConfigDict(extra="forbid")
    model_type: str = Field(default="roberta", description="Hugging Face model type of the BERT family")
    config: dict[str, Any] = Field(
        default={
            "max_position_embeddings": 514,
            "type_vocab_size": 1,
            "vocab_size": 50265,
            "layer_norm_eps": 1e-5,
        },
        description="settings of its configuration class",
    )


class Options(BaseModel):
    """Recipe section of this backbone; the defaults are METER-base (CLIP ViT-B/16 and RoBERTa-base)."""

    model_config = ConfigDict(extra="forbid")
    checkpoint: str | None = Field(
        default=None,
        description="folder of weights to start from, or builtin:NAME for one shipped with the package",
    )
    tokenizer: str = Field(
        default="roberta-base",
        description="Hugging Face tokenizer, name or folder; train: a word-level one from the training texts",
    )
    max_text_length: int = Field(default=50, ge=3, description="longer texts are cut to so many tokens")
    image_size: int = Field(default=288, ge=8, description="height and width of the input image, pixels")
    vision: VisionOptions = Field(default=VisionOptions())
    text: TextOptions = Field(default=TextOptions())
    hidden_size: int = Field(default=768, ge=1, description="width of the co-attention layers")
    num_attention_heads: int = Field(default=12, ge=1, description="heads of the co-attention layers")
    intermediate_size: int = Field(
        default=3072, ge=1, description="feed-forward width of the co-attention layers"
    )
    num_cross_layers: int = Field(default=6, ge=1, description="number of co-attention layers per modality")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="dropout of the co-attention layers")
    initializer_range: float = Field(
        default=0.02, gt=0, description="standard deviation of new weights; narrow models need more than 0.02"
    )


class Meter(nn.Module):
    """METER with a classification head (``vqa_classifier``)."""

    def __init__(self, options: Options, num_labels: int) -> None:
        super().__init__()
        self.options = options
        self.vit_model = _build_vision(options)
        self.text_transformer = _build_text(options.text, options.max_text_length)
        width, heads = options.hidden_size, options.num_attention_heads
        if width % heads:
            raise UserError(
                f"hidden_size {width} is not a multiple of num_attention_heads {heads}", where="backbone"
            )
        self.cross_modal_text_transform = nn.Linear(self.text_transformer.config.hidden_size, width)
        self.cross_modal_image_transform = nn.Linear(self.vit_model.embed_dim, width)
        self.token_type_embeddings = nn.Embedding(2, width)
        for name in ("text", "image"):
            layers = [
                CoAttentionLayer(width, heads, options.intermediate_size, options.dropout)
                for _ in range(options.num_cross_layers)
            ]
            setattr(self, f"cross_modal_{name}_layers", nn.ModuleList(layers))
            setattr(self, f"cross_modal_{name}_pooler", Pooler(width))
        self.vqa_classifier = nn.Sequential(
            nn.Linear(2 * width, 2 * width),
            nn.LayerNorm(2 * width),
            nn.GELU(),
            nn.Linear(2 * width, num_labels),
        )
        for name, module in self.named_children():
            if name not in ("vit_model", "text_transformer"):
                module.apply(partial(_init_weights, std=options.initializer_range))

    # --- forward, the same in all modes ---

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Answer logits.

        Args:
            pixel_values: (B, 3, H, W), preprocessed.
            input_ids: (B, L).
            attention_mask: (B, L), 0 on padding.

        Returns:
            (B, num_labels)
        """
        return self.vqa_classifier(self.features(pixel_values, input_ids, attention_mask))  # type: ignore[no-any-return]

    def features(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Pooled text and image CLS, (B, 2 * hidden_size)."""
        mask = self.host_mask(attention_mask)
        text = self.encode_text(input_ids, attention_mask, mask)
        image = self.encode_image(pixel_values)
        text, image = self.cross_modal(text, image, mask)
        return self.pool(text, image)

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor, mask: Tensor | None) -> Tensor:
        """Text encoder: (B, L) to (B, L, D), packed under a packed context."""
        hidden = enter("text", self.text_transformer.embeddings(input_ids=input_ids), attention_mask)
        for index, layer in enumerate(self.text_transformer.encoder.layer):
            (hidden,) = trim(text=(index, hidden))
            hidden = layer(hidden, mask)
        leave("text", hidden)
        return hidden

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """Vision encoder: (B, 3, H, W) to (B, N, D), packed under a packed context."""
        vit = self.vit_model
        hidden = vit.norm_pre(vit._pos_embed(vit.patch_embed(pixel_values)))
        hidden = enter("vision", hidden)
        for index, block in enumerate(vit.blocks):
            (hidden,) = trim(vision=(index, hidden))
            hidden = block(hidden)
        return vit.norm(hidden)  # type: ignore[no-any-return]

    def cross_modal(self, text: Tensor, image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Co-attention layers; both sides read the other's previous state."""
        types = self.token_type_embeddings.weight
        text = self.cross_modal_text_transform(text) + types[0]
        image = self.cross_modal_image_transform(image) + types[1]
        text_depth, image_depth = len(self.text_transformer.encoder.layer), len(self.vit_model.blocks)
        pairs = zip(self.cross_modal_text_layers, self.cross_modal_image_layers, strict=True)
        for index, (text_layer, image_layer) in enumerate(pairs):
            text, image = trim(text=(text_depth + index, text), vision=(image_depth + index, image))
            text, image = text_layer(text, image, mask, None), image_layer(image, text, None, mask)
        return text, image

    def pool(self, text: Tensor, image: Tensor) -> Tensor:
        """Poolers on the two CLS tokens, (B, 2 * hidden_size)."""
        pooled_text = self.cross_modal_text_pooler(leave("text", text))
        return torch.cat((pooled_text, self.cross_modal_image_pooler(leave("vision", image))), -1)

    @staticmethod
    def host_mask(attention_mask: Tensor) -> Tensor | None:
        """Boolean (B, 1, 1, L) mask for the host's own attention; None under a context or without padding."""
        if current() is not None or bool(attention_mask.all()):
            return None
        return attention_mask.bool()[:, None, None, :]

    # --- what the engine asks ---

    def architecture(self) -> Architecture:
        """Layers, sites and costs."""
        text, vision, cross = _text_layers(self), _vision_layers(self), _cross_layers(self)
        return Architecture((*text, *vision, *cross), _fixed_costs(self), _token_costs(self))

    def token_counts(self, text_tokens: int) -> dict[str, int]:
        """Tokens per stream of an instance with so many text tokens, special tokens included."""
        return {"text": text_tokens, "vision": self.vit_model.patch_embed.num_patches + 1}

    def example_inputs(self, text_tokens: int, batch: int = 1, seed: int = 0) -> dict[str, Tensor]:
        """Random inputs of the right shapes, for models without data."""
        generator = torch.Generator().manual_seed(seed)
        size, vocab = self.options.image_size, self.text_transformer.config.vocab_size
        ids = torch.randint(3, vocab, (batch, text_tokens), generator=generator)
        ids[:, 0], ids[:, -1] = 0, 2
        return {
            "pixel_values": torch.randn(batch, 3, size, size, generator=generator),
            "input_ids": ids,
            "attention_mask": torch.ones(batch, text_tokens, dtype=torch.long),
        }

    @staticmethod
    def part_of(parameter: str) -> str:
        """Part that a parameter belongs to, for learning-rate multipliers."""
        if parameter.startswith("vit_model."):
            return "vision_encoder"
        if parameter.startswith("text_transformer."):
            return "text_encoder"
        return "head" if parameter.startswith("vqa_classifier.") else "cross_modal"


def build(options: Options, num_labels: int) -> Meter:
    """METER with random weights; the caller loads a checkpoint."""
    return Meter(options, num_labels)


def _init_weights(module: nn.Module, std: float) -> None:
    """The official initialisation of everything outside the two encoders (there ``std`` is 0.02)."""
    if isinstance(module, nn.Linear | nn.Embedding):
        module.weight.data.normal_(mean=0.0, std=std)
    if isinstance(module, nn.Linear):
        module.bias.data.zero_()


def _build_vision(options: Options) -> VisionTransformer:
    section = options.vision
    args = {"img_size": options.image_size, "num_classes": 0, **section.args}
    try:
        vit = timm.create_model(section.model, pretrained=False, **args)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise UserError(f"timm cannot build {section.model!r}: {error}", where="backbone.vision") from error
    if not _is_plain_vit(vit):
        raise UserError(
            f"{section.model!r} is not a plain timm VisionTransformer with a CLS as only prefix token",
            where="backbone.vision.model",
            hint="choose a model of the vit_* family with a class token, such as vit_base_patch16_224",
        )
    if section.initializer_range is not None:
        for module in vit.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=section.initializer_range)
    if section.sincos_pos_embed:
        vit.pos_embed.data[:, 1:] = _sincos_grid(vit.patch_embed.grid_size, vit.embed_dim)
    return vit


def _is_plain_vit(vit: nn.Module) -> bool:
    """Whether ``encode_image`` repeats all that this model's own forward does."""
    if not isinstance(vit, VisionTransformer):
        return False
    prefix = vit.cls_token is not None and vit.num_prefix_tokens == 1
    plain = all(type(block) is Block for block in vit.blocks) and isinstance(vit.patch_drop, nn.Identity)
    return prefix and plain


def _sincos_grid(grid: tuple[int, int], width: int) -> Tensor:
    """2-d sine-cosine embeddings, (1, rows * columns, width): a quarter each for sin and cos of both."""
    frequencies = 1.0 / 10.0 ** (torch.arange(width // 4) / (width / 4))
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    angles = [place.flatten()[:, None] * frequencies for place in (rows, columns)]
    return 0.5 * torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], -1)[None]


def _build_text(section: TextOptions, longest: int) -> nn.Module:
    try:
        config = AutoConfig.for_model(section.model_type, **section.config)
        text = AutoModel.from_config(config, attn_implementation="sdpa", add_pooling_layer=False)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"cannot build a {section.model_type!r} text encoder: {error}", where="backbone.text"
        ) from error
    if config.max_position_embeddings < longest + _POSITION_OFFSET:
        raise UserError(
            f"{config.max_position_embeddings} positions are too few for texts of {longest} tokens",
            where="backbone.text.config.max_position_embeddings",
            hint=f"at least {longest + _POSITION_OFFSET}, or a smaller max_text_length",
        )
    layers = getattr(getattr(text, "encoder", None), "layer", None)
    if section.model_type not in TEXT_MODELS or layers is None:
        raise UserError(
            f"{section.model_type!r} is not a text encoder whose layers are those of BERT",
            where="backbone.text.model_type",
            hint=f"choose one of {', '.join(TEXT_MODELS)}",
        )
    return text


def _text_layers(model: Meter) -> list[LayerSpec]:
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
        )
        for index in range(config.num_hidden_layers)
    ]


def _vision_layers(model: Meter) -> list[LayerSpec]:
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
        )
        for index, block in enumerate(model.vit_model.blocks)
    ]


def _block_extra_macs(block: nn.Module) -> int:
    """Element-wise MACs per token of a timm block: norms, scales and QuickGELU (two products)."""
    width, inner = block.mlp.fc1.in_features, block.mlp.fc1.out_features
    scales = sum(width for name in ("ls1", "ls2") if not isinstance(getattr(block, name), nn.Identity))
    norms = sum(
        width for name in ("q_norm", "k_norm") if not isinstance(getattr(block.attn, name), nn.Identity)
    )
    quick_gelu = 2 * inner if "quick" in type(block.mlp.act).__name__.lower() else 0
    return 2 * width + scales + norms + quick_gelu


def _cross_layers(model: Meter) -> list[LayerSpec]:
    options = model.options
    width, heads = options.hidden_size, options.num_attention_heads
    depth = {"text": len(model.text_transformer.encoder.layer), "vision": len(model.vit_model.blocks)}
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
                )
            )
    return specs


def _fixed_costs(model: Meter) -> tuple[FixedCost, ...]:
    vit, width = model.vit_model, model.options.hidden_size
    patches, conv = vit.patch_embed.num_patches, vit.patch_embed.proj
    pre_norm = 0 if isinstance(vit.norm_pre, nn.Identity) else vit.embed_dim * (patches + 1)
    labels = model.vqa_classifier[-1].out_features
    return (
        FixedCost("vision_encoder", patches * conv.weight.numel() + pre_norm),
        FixedCost("head", 2 * width * width + (2 * width) ** 2 + 2 * width + 2 * width * labels),
    )


def _token_costs(model: Meter) -> tuple[TokenCost, ...]:
    vit, text, width = model.vit_model, model.text_transformer.config, model.options.hidden_size
    final_norm = 0 if isinstance(vit.norm, nn.Identity) else vit.embed_dim
    last_vision, last_text = len(vit.blocks) - 1, text.num_hidden_layers - 1
    return (
        TokenCost("text_encoder", "text", -1, text.hidden_size),
        TokenCost("vision_encoder", "vision", last_vision, final_norm),
        TokenCost("cross_modal", "text", last_text, text.hidden_size * width),
        TokenCost("cross_modal", "vision", last_vision, vit.embed_dim * width),
    )

"""METER's encoders, built by the libraries they come from: timm for the images, transformers for the text."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.layers import PatchEmbed
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from smarttrim_cli import registry
from smarttrim_cli.backbones._meter_options import Options, TextOptions
from smarttrim_cli.errors import UserError

TEXT_MODELS = ("bert", "roberta", "xlm-roberta", "camembert", "data2vec-text", "ernie")
"""Hugging Face model types whose layers are built like BERT's (``attention.self``, ``attention.output``)."""

SWIN_STRIDE = 32
"""Pixels per token of a Swin Transformer's last stage; the official METER has windows of image size / 32."""


def build_vision(options: Options) -> VisionTransformer | SwinTransformer:
    """The vision encoder with random weights.

    Raises:
        UserError: timm has no such model, or METER cannot use it.
    """
    section = options.vision
    args: dict[str, Any] = {"img_size": options.image_size, "num_classes": 0}
    if section.model.startswith("swin"):
        args["window_size"] = max(options.image_size // SWIN_STRIDE, 1)
    try:
        vit: Any = timm.create_model(section.model, pretrained=False, **{**args, **section.args})
    except Exception as error:  # of a wrong size timm and torch raise anything, such as ZeroDivisionError
        raise UserError(f"timm cannot build {section.model!r}: {error}", where="backbone.vision") from error
    if not (_is_plain_vit(vit) or type(vit) is SwinTransformer):
        raise UserError(
            f"{section.model!r} is not a plain timm VisionTransformer with a CLS as only prefix token and "
            "patches of the image itself, nor a Swin Transformer (version 1)",
            where="backbone.vision.model",
            hint="choose a model of the vit_* family with a class token, such as vit_base_patch16_224",
        )
    if section.initializer_range is not None:
        for module in vit.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=section.initializer_range)
    if section.sincos_pos_embed:
        _start_from_sincos(vit)
    return vit


def _is_plain_vit(vit: nn.Module) -> bool:
    """Whether ``encode_image`` repeats all that this model's own forward does, and all its MACs are known."""
    if not isinstance(vit, VisionTransformer):
        return False
    prefix = vit.cls_token is not None and vit.num_prefix_tokens == 1
    plain = all(type(block) is Block for block in vit.blocks) and isinstance(vit.patch_drop, nn.Identity)
    return prefix and plain and type(vit.patch_embed) is PatchEmbed  # not the features of a ResNet


def _start_from_sincos(vit: Any) -> None:
    if isinstance(vit, SwinTransformer):
        raise UserError(
            "a Swin Transformer has no position embeddings", where="backbone.vision.sincos_pos_embed"
        )
    vit.pos_embed.data[:, 1:] = _sincos_grid(vit.patch_embed.grid_size, vit.embed_dim)


def _sincos_grid(grid: tuple[int, int], width: int) -> Tensor:
    """2-d sine-cosine embeddings, (1, rows * columns, width): a quarter each for sin and cos of both."""
    frequencies = 1.0 / 10.0 ** (torch.arange(width // 4) / (width / 4))
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    angles = [place.flatten()[:, None] * frequencies for place in (rows, columns)]
    return 0.5 * torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], -1)[None]


def text_config(section: TextOptions) -> Any:
    """The text encoder's Hugging Face configuration.

    Raises:
        UserError: There is no such model type, or it has no such setting.
    """
    try:
        _refuse_unknown(section, AutoConfig.for_model(section.model_type))
        return AutoConfig.for_model(section.model_type, **section.config)
    except UserError:
        raise
    except Exception as error:  # transformers checks by exceptions of its own
        raise _cannot_build(section, error) from error


def _refuse_unknown(section: TextOptions, defaults: Any) -> None:
    """Transformers keeps whatever a configuration is given; a misspelled key would change nothing."""
    for key in section.config:
        if not hasattr(defaults, key):
            nearest = registry.did_you_mean(key, defaults.to_dict())
            question = f"; did you mean {nearest}?" if nearest else ""
            raise UserError(
                f"{section.model_type!r} has no setting {key!r}{question}",
                where=f"backbone.text.config.{key}",
            )


def build_text(section: TextOptions, longest: int) -> nn.Module:
    """The text encoder with random weights, for texts of at most ``longest`` tokens.

    Raises:
        UserError: It cannot be built, is not of the BERT family, or has too few positions.
    """
    config = text_config(section)
    try:
        text = AutoModel.from_config(config, attn_implementation="sdpa", add_pooling_layer=False)
    except Exception as error:  # of a wrong size torch and transformers raise anything
        raise _cannot_build(section, error) from error
    needed = longest + (config.pad_token_id or 0) + 1  # RoBERTa's positions start behind its padding index
    if config.max_position_embeddings < needed:
        raise UserError(
            f"{config.max_position_embeddings} positions are too few for texts of {longest} tokens",
            where="backbone.text.config.max_position_embeddings",
            hint=f"at least {needed}, or a smaller max_text_length",
        )
    layers = getattr(getattr(text, "encoder", None), "layer", None)
    if section.model_type not in TEXT_MODELS or layers is None:
        raise UserError(
            f"{section.model_type!r} is not a text encoder whose layers are those of BERT",
            where="backbone.text.model_type",
            hint=f"choose one of {', '.join(TEXT_MODELS)}",
        )
    return text


def _cannot_build(section: TextOptions, error: Exception) -> UserError:
    return UserError(f"cannot build a {section.model_type!r} text encoder: {error}", where="backbone.text")

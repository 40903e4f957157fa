"""METER's recipe section; the defaults are METER-base: CLIP ViT-B/16 without its last block, RoBERTa-base."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from smarttrim_cli.backbones._keep_layers import Keep, KeepCrossLayers

Layers = Annotated[int, Field(strict=True, ge=1, le=128)]
Heads = Annotated[int, Field(strict=True, ge=1, le=1000)]
Width = Annotated[int, Field(strict=True, ge=1, le=100_000)]
Pixels = Annotated[int, Field(strict=True, ge=1, le=10_000)]


class _VisionSizes(BaseModel):
    """Sizes among timm's arguments; Swin Transformers have lists of some. Others are timm's matter."""

    depth: Layers = 1
    depths: list[Layers] = []
    num_heads: Heads | list[Heads] = 1
    embed_dim: Width = 1
    patch_size: Pixels | list[Pixels] = 1
    window_size: Pixels | list[Pixels] = 1


class _TextSizes(BaseModel):
    """Sizes among the settings of a text encoder."""

    num_hidden_layers: Layers = 1
    num_attention_heads: Heads = 1
    hidden_size: Width = 1
    intermediate_size: Width = 1
    max_position_embeddings: Width = 1
    type_vocab_size: Width = 1
    vocab_size: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 1


class VisionOptions(BaseModel):
    """The vision encoder."""

    model_config = ConfigDict(extra="forbid")
    model: str = Field(
        default="vit_base_patch16_clip_quickgelu_224",
        description="name of a timm VisionTransformer, or of a Swin Transformer (swin_*)",
    )
    args: dict[str, Any] = Field(
        default={"depth": 11},
        description="arguments of timm.create_model, e.g. depth; none by default for a Swin Transformer",
    )
    sincos_pos_embed: bool = Field(
        default=False, description="start from 2-d sine-cosine position embeddings"
    )
    initializer_range: float | None = Field(
        default=None,
        gt=0,
        description="standard deviation of new linear weights; null leaves timm's initialisation",
    )

    @model_validator(mode="before")
    @classmethod
    def _no_depth_for_swin(cls, section: Any) -> Any:
        if isinstance(section, dict) and str(section.get("model", "")).startswith("swin"):
            return {"args": {}, **section}
        return section

    @field_validator("args")
    @classmethod
    def _has_sizes(cls, args: dict[str, Any]) -> dict[str, Any]:
        _VisionSizes.model_validate(args)
        return args


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

    @field_validator("config")
    @classmethod
    def _has_sizes(cls, config: dict[str, Any]) -> dict[str, Any]:
        _TextSizes.model_validate(config)
        return config


class Options(BaseModel):
    """Recipe section of this backbone; the defaults are METER-base (CLIP ViT-B/16 and RoBERTa-base)."""

    model_config = ConfigDict(extra="forbid")
    checkpoint: str | None = Field(
        default=None,
        description="weights to start from: an official METER checkpoint (.ckpt, or .safetensors with its "
        "names), a model folder, or builtin:NAME for one shipped with the package",
    )
    keep_layers: KeepCrossLayers | None = Field(
        default=None, description="a smaller model: these layers of the checkpoint's; null keeps all"
    )
    tokenizer: str = Field(
        default="roberta-base",
        description="Hugging Face tokenizer, name or folder; train: a word-level one from the training texts",
    )
    max_text_length: int = Field(
        default=50, ge=3, le=100_000, description="longer texts are cut to so many tokens"
    )
    image_size: int = Field(
        default=288, ge=8, le=10_000, description="height and width of the input image, pixels"
    )
    vision: VisionOptions = Field(default=VisionOptions())
    text: TextOptions = Field(default=TextOptions())
    hidden_size: int = Field(default=768, ge=1, le=100_000, description="width of the co-attention layers")
    num_attention_heads: int = Field(
        default=12, ge=1, le=1000, description="heads of the co-attention layers"
    )
    intermediate_size: int = Field(
        default=3072, ge=1, le=100_000, description="feed-forward width of the co-attention layers"
    )
    num_cross_layers: int = Field(
        default=6, ge=1, le=128, description="number of co-attention layers per modality"
    )
    dropout: float = Field(default=0.1, ge=0, lt=1, description="dropout of the co-attention layers")
    initializer_range: float = Field(
        default=0.02, gt=0, description="standard deviation of new weights; narrow models need more than 0.02"
    )


LAYERS = {
    "vision": ("vit_model.blocks",),
    "text": ("text_transformer.encoder.layer",),
    "cross": ("cross_modal_text_layers", "cross_modal_image_layers"),
}
"""Where the layers are that ``keep_layers`` numbers."""


def smaller(section: dict[str, Any], keep: Keep) -> dict[str, Any]:
    """The recipe section of a model made of some layers of another; see :mod:`._keep_layers`."""
    options = Options.model_validate({key: value for key, value in section.items() if key != "name"})
    changes: dict[str, Any] = {}
    if "vision" in keep:
        args = {**options.vision.args, "depth": len(keep["vision"])}
        changes["vision"] = {**section.get("vision", {}), "args": args}
    if "text" in keep:
        config = {**options.text.config, "num_hidden_layers": len(keep["text"])}
        changes["text"] = {**section.get("text", {}), "config": config}
    if "cross" in keep:
        changes["num_cross_layers"] = len(keep["cross"])
    return {**section, **changes}

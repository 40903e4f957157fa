"""Recipe section of BLIP; the defaults are BLIP-base at 288 pixels.

Sources of the defaults: the official ``configs/med_config.json`` and ``models/vit.py``.
The fields of ``vision.config`` and ``text.config`` are those of transformers' ``BlipVisionConfig`` and
``BlipTextConfig``, but the defaults are the official ones: transformers' own have other numbers of heads,
epsilons and dropouts.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from smarttrim_cli.backbones._keep_layers import Keep, KeepLayers

DEC, ENC = "[DEC]", "[ENC]"
"""Tokens that replace [CLS]: the first of what the decoder writes, and of a text fused with an image."""


class VisionConfig(BaseModel):
    """Sizes of the ViT."""

    model_config = ConfigDict(extra="forbid")
    hidden_size: int = Field(default=768, ge=1, le=100_000, description="width")
    intermediate_size: int = Field(default=3072, ge=1, le=100_000, description="feed-forward width")
    num_hidden_layers: int = Field(default=12, ge=1, le=128, description="layers")
    num_attention_heads: int = Field(default=12, ge=1, le=1000, description="heads per layer")
    patch_size: int = Field(default=16, ge=1, le=10_000, description="height and width of a patch, pixels")
    hidden_act: str = Field(default="gelu", description="activation")
    layer_norm_eps: float = Field(default=1e-6, gt=0, description="epsilon of the norms")
    attention_dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout of attention weights")
    initializer_range: float = Field(default=0.02, gt=0, description="standard deviation of new weights")


class TextConfig(BaseModel):
    """Sizes and special tokens of text encoder and decoder."""

    model_config = ConfigDict(extra="forbid")
    vocab_size: int = Field(default=30524, ge=4, le=1_000_000, description="tokens, [DEC] and [ENC] included")
    hidden_size: int = Field(default=768, ge=1, le=100_000, description="width")
    intermediate_size: int = Field(default=3072, ge=1, le=100_000, description="feed-forward width")
    num_hidden_layers: int = Field(default=12, ge=1, le=128, description="layers")
    num_attention_heads: int = Field(default=12, ge=1, le=1000, description="heads per attention")
    max_position_embeddings: int = Field(default=512, ge=1, le=100_000, description="positions")
    hidden_act: str = Field(default="gelu", description="activation")
    layer_norm_eps: float = Field(default=1e-12, gt=0, description="epsilon of the norms")
    hidden_dropout_prob: float = Field(default=0.1, ge=0, lt=1, description="dropout")
    attention_probs_dropout_prob: float = Field(
        default=0.1, ge=0, lt=1, description="dropout of attention weights"
    )
    initializer_range: float = Field(default=0.02, gt=0, description="standard deviation of new weights")
    pad_token_id: int = Field(default=0, ge=0, description="token id of padding")
    sep_token_id: int = Field(default=102, ge=0, description="token id that ends a text")
    bos_token_id: int | None = Field(
        default=None, ge=0, description="token id of [DEC]; null: last but one of the vocabulary"
    )


class VisionOptions(BaseModel):
    """The vision encoder."""

    model_config = ConfigDict(extra="forbid")
    config: VisionConfig = Field(default=VisionConfig())


class TextOptions(BaseModel):
    """Text encoder and text decoder."""

    model_config = ConfigDict(extra="forbid")
    config: TextConfig = Field(default=TextConfig())


class Options(BaseModel):
    """Recipe section of this backbone."""

    model_config = ConfigDict(extra="forbid")
    checkpoint: str | None = Field(
        default=None,
        description="weights to start from: a model folder, a Hugging Face folder or an official .pth file",
    )
    keep_layers: KeepLayers | None = Field(
        default=None, description="a smaller model: these layers of the checkpoint's; null keeps all"
    )
    vision_checkpoint: str | None = Field(
        default=None,
        description="without a checkpoint, what the vision encoder starts from: a file or model folder with "
        "a ViT under timm's names, or builtin:NAME",
    )
    tokenizer: str = Field(
        default="bert-base-uncased",
        description="Hugging Face tokenizer, name or folder; train: a word-level one from the training texts",
    )
    max_text_length: int = Field(
        default=35, ge=3, le=100_000, description="longer texts are cut to so many tokens"
    )
    image_size: int = Field(
        default=288, ge=8, le=10_000, description="height and width of the input image, pixels"
    )
    vision: VisionOptions = Field(default=VisionOptions())
    text: TextOptions = Field(default=TextOptions())
    enc_token_id: int | None = Field(
        default=None, ge=0, description="token id of [ENC]; null: last of the vocabulary"
    )
    image_text_hidden_size: int = Field(
        default=256, ge=1, le=100_000, description="width of the contrastive features (retrieval)"
    )
    merge_layer_from: int = Field(
        default=6, ge=0, description="first text layer that merges two images by a linear layer (nlvr2)"
    )
    guidance: Literal["embeddings", "text_encoder"] = Field(
        default="embeddings",
        description="how the question guides the trimmers of the vision encoder: mean of its embeddings, "
        "or [CLS] of a pass through the text encoder without the image (its cost is counted)",
    )
    attend_to_padding: bool = Field(
        default=False,
        description="write answers with the question's padding attended to, as the official code does; "
        "then they depend on the other questions of a batch (mode full only)",
    )
    drop_path_rate: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="stochastic depth of the vision encoder; null: 0.1 for vqa, nlvr2 and snli_ve, else none",
    )

    @property
    def dec_id(self) -> int:
        """Token id of [DEC]."""
        text = self.text.config
        return text.vocab_size - 2 if text.bos_token_id is None else text.bos_token_id

    @property
    def enc_id(self) -> int:
        """Token id of [ENC]."""
        return self.text.config.vocab_size - 1 if self.enc_token_id is None else self.enc_token_id


def fit_to_tokenizer(section: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """A recipe section with the vocabulary and special tokens of a tokenizer.

    Where the tokenizer lacks [DEC] and [ENC], they get the ids behind its own, as in the official code.
    """
    known, size = tokenizer.get_vocab(), len(tokenizer)
    dec = known.get(DEC, size)
    enc = known.get(ENC, max(size, dec + 1))
    text = dict(section.get("text") or {})
    config = dict(text.get("config") or {})
    text["config"] = {
        **config,
        "vocab_size": max(config.get("vocab_size", 0), size, dec + 1, enc + 1),
        "pad_token_id": tokenizer.pad_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "bos_token_id": dec,
    }
    return {**section, "text": text, "enc_token_id": enc}


LAYERS = {
    "vision": ("vision_model.encoder.layers",),
    "text": ("text_encoder.encoder.layer", "text_decoder.bert.encoder.layer"),
}
"""Where the layers are that ``keep_layers`` numbers."""


def smaller(section: dict[str, Any], keep: Keep) -> dict[str, Any]:
    """The recipe section of a model made of some layers of another; see :mod:`._keep_layers`."""
    options = Options.model_validate({key: value for key, value in section.items() if key != "name"})
    changes: dict[str, Any] = {
        key: {"config": {**section.get(key, {}).get("config", {}), "num_hidden_layers": len(numbers)}}
        for key, numbers in keep.items()
    }
    if "text" in keep:  # layers go on merging two images, or not
        changes["merge_layer_from"] = sum(number < options.merge_layer_from for number in keep["text"])
    return {**section, **changes}

"""BLIP (Li et al., 2022): a ViT, a text encoder that fuses question and image, a text decoder that answers.

Sources: the BLIP paper and the official implementation (``models/``). The encoders and the decoder are
transformers' BLIP modules under their own names, so that Hugging Face folders load untouched; official
checkpoints are renamed (:mod:`._blip_checkpoint`). We run their layers ourselves, with scaled dot product
attention in all modes (:mod:`._blip_encoders`, :mod:`._blip_decoder`).

Whatever depends on a question is guided by it: it is known before the image is encoded. Captioning and
retrieval trim the image by itself: there is no text, or one image is encoded for many.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

from smarttrim_cli.backbones import _blip_costs
from smarttrim_cli.backbones._blip_checkpoint import (
    adapt,
    carry_vocabulary,
    load_official,
    may_be_fresh,
    save_official,
)
from smarttrim_cli.backbones._blip_contrastive import image_features, text_features
from smarttrim_cli.backbones._blip_encoders import encode_image
from smarttrim_cli.backbones._blip_forms import FORWARDS
from smarttrim_cli.backbones._blip_hf import load_hf, section_from_hf
from smarttrim_cli.backbones._blip_layers import TwinCrossAttention, classifier
from smarttrim_cli.backbones._blip_options import LAYERS, Options, fit_to_tokenizer, smaller
from smarttrim_cli.backbones._blip_vision_start import load_vision
from smarttrim_cli.errors import UserError
from smarttrim_cli.forms import CLASSIFIES, CONTRASTS, GENERATES, Decoding, Form
from smarttrim_cli.pruning.sites import Architecture

__all__ = [
    "FORMS",
    "LAYERS",
    "PREPROCESS",
    "Blip",
    "Options",
    "adapt",
    "build",
    "carry_vocabulary",
    "fit_to_tokenizer",
    "load_hf",
    "load_official",
    "load_vision",
    "may_be_fresh",
    "save_official",
    "section_from_hf",
    "smaller",
]

FORMS = {
    "vqa": GENERATES,
    "nlvr2": CLASSIFIES,
    "snli_ve": CLASSIFIES,
    "retrieval": CONTRASTS,
    "captioning": GENERATES,
}
PREPROCESS = "resize"
"""Images are resized to a square, bicubic."""

_PUBLISHED_DROP_PATH = {"vqa": 0.1, "nlvr2": 0.1, "snli_ve": 0.1}
_TEMPERATURE = 0.07
_PARTS = {"vision_model": "vision_encoder", "text_encoder": "text_encoder", "text_decoder": "decoder"}


class Blip(nn.Module):
    """BLIP in one of its forms."""

    def __init__(self, options: Options, form: Form) -> None:
        super().__init__()
        self.options, self.form = options, form
        vision, text = options.vision.config, options.text.config
        self.vision_model = BlipVisionModel(
            BlipVisionConfig(image_size=options.image_size, **vision.model_dump())
        )
        if form.name == "captioning":
            self.text_decoder = BlipTextLMHeadModel(_text_config(options, vision.hidden_size))
        else:
            self.text_encoder = BlipTextModel(
                _text_config(options, vision.hidden_size), add_pooling_layer=False
            )
        if form.name == "vqa":
            self.text_decoder = BlipTextLMHeadModel(_text_config(options, text.hidden_size))
        if form.images == 2:
            for index, layer in enumerate(self.text_encoder.encoder.layer):
                merge = index >= options.merge_layer_from
                layer.crossattention = TwinCrossAttention(self.text_encoder.config, merge)
        if FORMS[form.name] == CLASSIFIES:
            self.cls_head = classifier(text.hidden_size, form.num_labels)
        if form.name == "retrieval":
            self.vision_proj = nn.Linear(vision.hidden_size, options.image_text_hidden_size)
            self.text_proj = nn.Linear(text.hidden_size, options.image_text_hidden_size)
            self.itm_head = nn.Linear(text.hidden_size, 2)
            self.temp = nn.Parameter(torch.tensor(_TEMPERATURE))
        highest = options.drop_path_rate
        if highest is None:
            highest = _PUBLISHED_DROP_PATH.get(form.name, 0.0)
        deepest = max(vision.num_hidden_layers - 1, 1)
        self.drop_path_rates = [highest * index / deepest for index in range(vision.num_hidden_layers)]

    @property
    def decoding(self) -> Decoding:
        """How the form generates or ranks; it may be changed on a built model."""
        return self.form.decoding or Decoding()

    def forward(self, **inputs: Any) -> Any:
        """The pass of the form, in all modes: see :mod:`._blip_forms` for inputs and outputs."""
        return FORWARDS[self.form.name](self, **inputs)

    @property
    def feature_width(self) -> int:
        """Width of the features that retrieval compares."""
        return self.options.image_text_hidden_size

    def contrastive_features(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Normalised features of images or of texts, (B, E), for a first selection in retrieval.

        They are untrimmed: call this on the backbone itself. (Those of trimmed images come with
        ``EncodedImages``; texts are not trimmed for their features.) Their products are similarities in
        -1..1, which the official evaluation adds to the matching scores.
        """
        if pixel_values is not None:
            return image_features(self, encode_image(self, pixel_values))
        assert input_ids is not None and attention_mask is not None
        return text_features(self, input_ids, attention_mask)

    def feature_macs(self, text_tokens: Any) -> tuple[int, Any]:
        """MACs of the features of an image, once encoded, and of a text (or texts) with so many tokens."""
        return _blip_costs.image_feature_macs(self), _blip_costs.text_feature_macs(self, text_tokens)

    # --- what the engine asks ---

    def architecture(self) -> Architecture:
        """Layers, sites and costs."""
        return _blip_costs.architecture(self)

    def token_counts(self, text_tokens: int) -> dict[str, float]:
        """What the streams of an instance start with: see :func:`._blip_costs.token_counts`."""
        return _blip_costs.token_counts(self, text_tokens)

    def example_inputs(self, text_tokens: int, batch: int = 1, seed: int = 0) -> dict[str, Tensor]:
        """Random inputs of the right shapes, for models without data."""
        return _blip_costs.example_inputs(self, text_tokens, batch, seed)

    @staticmethod
    def part_of(parameter: str) -> str:
        """Part that a parameter belongs to, for learning-rate multipliers."""
        return _PARTS.get(parameter.split(".")[0], "head")


def build(options: Options, form: Form) -> Blip:
    """BLIP with random weights; the engine loads a checkpoint.

    Raises:
        UserError: It has no such form, or sizes do not fit together.
    """
    if form.name not in FORMS:
        raise UserError(
            f"BLIP has no form {form.name!r}", where="task.name", hint=f"it has {', '.join(FORMS)}"
        )
    _check(options, form)
    try:
        return Blip(options, form)
    except (ValueError, KeyError) as error:
        raise UserError(f"cannot build this BLIP: {error}", where="backbone") from error


def _text_config(options: Options, memory_width: int) -> BlipTextConfig:
    ids = {"bos_token_id": options.dec_id, "eos_token_id": options.text.config.sep_token_id}
    fields = {**options.text.config.model_dump(), **ids}
    return BlipTextConfig(encoder_hidden_size=memory_width, is_decoder=True, **fields)


def _check(options: Options, form: Form) -> None:
    """Sizes that have to fit together."""
    vision, text = options.vision.config, options.text.config
    for name, config in (("vision", vision), ("text", text)):
        if config.hidden_size % config.num_attention_heads:
            raise UserError(
                f"hidden_size {config.hidden_size} is not a multiple of num_attention_heads "
                f"{config.num_attention_heads}",
                where=f"backbone.{name}.config",
            )
    if options.image_size % vision.patch_size:
        raise UserError(
            f"{options.image_size} pixels are not a multiple of the patch size {vision.patch_size}",
            where="backbone.image_size",
        )
    ids = {"pad_token_id": text.pad_token_id, "sep_token_id": text.sep_token_id}
    for name, token in {**ids, "[DEC]": options.dec_id, "[ENC]": options.enc_id}.items():
        if token >= text.vocab_size:
            raise UserError(
                f"{name} is {token}, but the vocabulary has {text.vocab_size} tokens",
                where="backbone.text.config",
            )
    if form.decoding is not None and form.decoding.max_length <= form.prompt_tokens:
        raise UserError(
            f"max_length {form.decoding.max_length} leaves no room behind {form.prompt_tokens} given tokens",
            where="task",
        )
    longest = max(options.max_text_length, form.decoding.max_length if form.decoding else 0)
    if text.max_position_embeddings < longest:
        raise UserError(
            f"{text.max_position_embeddings} positions are too few for texts of {longest} tokens",
            where="backbone.text.config.max_position_embeddings",
        )

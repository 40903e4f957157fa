"""METER (Dou et al., 2022): two encoders and co-attention layers, with the official parameter names.

Sources: the METER paper and the official implementation's ``METERTransformerSS``. The vision encoder
(``vit_model``) is any timm ``VisionTransformer`` with a CLS token, or a Swin Transformer; the text encoder
(``text_transformer``) any Hugging Face model of the BERT family; the co-attention layers are in
:mod:`._coattention`, the heads in :mod:`._meter_heads`.

The text encoder runs first: its final CLS guides the trimmers of the vision encoder. A Swin Transformer has
no sites, its tokens are trimmed in the co-attention layers. Several passes of an instance (two images, or K
texts for an image) are rows of one batch, instance after instance.
Legend: B instances, R rows, N image tokens, L text tokens, K texts per image, D width.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from smarttrim_cli.backbones._coattention import CoAttentionLayer, Pooler
from smarttrim_cli.backbones._meter_checkpoint import adapt, load_official, save_official
from smarttrim_cli.backbones._meter_costs import architecture, image_tokens
from smarttrim_cli.backbones._meter_encoders import build_text, build_vision, text_config
from smarttrim_cli.backbones._meter_heads import ANSWERING, FORMS, HEADS, build_heads, rank_as_matching
from smarttrim_cli.backbones._meter_options import LAYERS, Options, smaller
from smarttrim_cli.errors import UserError
from smarttrim_cli.forms import MATCHES, Form, Ranking
from smarttrim_cli.pruning.context import current, enter, leave, trim
from smarttrim_cli.pruning.sites import Architecture

__all__ = [
    "FORMS",
    "LAYERS",
    "OFFICIAL_FILE",
    "PREPROCESS",
    "Meter",
    "Options",
    "adapt",
    "build",
    "fit_to_tokenizer",
    "load_official",
    "normalisation",
    "save_official",
    "smaller",
]

PREPROCESS = "shorter_side_center_crop"
"""Mode of ``data.images.Preprocess``."""

OFFICIAL_FILE = "official.ckpt"


class Meter(nn.Module):
    """METER with the heads of a form."""

    vit_model: Any  # timm's and Hugging Face's, whose parts nn.Module does not know the types of
    text_transformer: Any
    cross_modal_text_layers: nn.ModuleList
    cross_modal_image_layers: nn.ModuleList
    cross_modal_text_pooler: Pooler
    cross_modal_image_pooler: Pooler
    rank_output: nn.Linear  # of some forms
    itm_score: nn.Module
    mlm_score: nn.Module

    def __init__(self, options: Options, form: Form) -> None:
        super().__init__()
        self.options, self.form = options, form
        self.vit_model = build_vision(options)
        self.text_transformer = build_text(options.text, options.max_text_length)
        width, heads = options.hidden_size, options.num_attention_heads
        if width % heads:
            raise UserError(
                f"hidden_size {width} is not a multiple of num_attention_heads {heads}", where="backbone"
            )
        self.cross_modal_text_transform = nn.Linear(self.text_transformer.config.hidden_size, width)
        self.cross_modal_image_transform = nn.Linear(self.vit_model.num_features, width)
        self.token_type_embeddings = nn.Embedding(1 + form.images, width)
        for name in ("text", "image"):
            layers = [
                CoAttentionLayer(width, heads, options.intermediate_size, options.dropout)
                for _ in range(options.num_cross_layers)
            ]
            setattr(self, f"cross_modal_{name}_layers", nn.ModuleList(layers))
            setattr(self, f"cross_modal_{name}_pooler", Pooler(width))
        answering = build_heads(form, width, self.text_transformer.config.vocab_size)
        for name, head in answering.items():
            self.add_module(name, head)
        for name, module in self.named_children():
            if name not in ("vit_model", "text_transformer"):
                module.apply(partial(_init_weights, std=options.initializer_range))
        self.token_type_embeddings.weight.data[1:] = self.token_type_embeddings.weight.data[1]
        if "rank_output" in answering:
            rank_as_matching(answering)

    @property
    def image_has_cls(self) -> bool:
        """Whether the first image token is a CLS; a Swin Transformer has none, its tokens are averaged."""
        return not isinstance(self.vit_model, SwinTransformer)

    # --- forward, the same in all modes ---

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        other_images: Tensor | None = None,
    ) -> Tensor | Ranking:
        """Logits of the form's classes, or scores of pairs of image and text.

        Args:
            pixel_values: (B, 3, H, W), preprocessed; (B, 2, 3, H, W) where the form has two images.
            input_ids: (B, L); (B, K, L) for K texts per image.
            attention_mask: Like ``input_ids``, 0 on padding.
            other_images: (B, 3, H, W), to train retrieval: each instance's last text is for this image.

        Returns:
            (B, num_labels); (B, K) for K texts per image. With ``other_images`` scores (B, K - 1) and the
            logits of the matching head.
        """
        if other_images is not None:
            return self._ranking(pixel_values, input_ids, attention_mask, other_images)
        pooled = self.features(pixel_values, input_ids, attention_mask)
        if self.form.images > 1:
            pooled = pooled.unflatten(0, (-1, self.form.images)).flatten(1)
        answer: Tensor = self.get_submodule(ANSWERING[self.form.name])(pooled)
        return answer.view(input_ids.shape[:2]) if input_ids.dim() == 3 else answer

    def _ranking(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, other_images: Tensor
    ) -> Ranking:
        same = pixel_values[:, None].expand(-1, input_ids.shape[1] - 1, -1, -1, -1)
        images = torch.cat((same, other_images[:, None]), 1)
        pooled = self.features(images, input_ids, attention_mask).unflatten(0, input_ids.shape[:2])
        return Ranking(self.rank_output(pooled[:, :-1]).squeeze(-1), self.itm_score(pooled[:, -1]))

    def features(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Pooled text and image CLS of every row, (R, 2D)."""
        return self.pool(*self.encode(pixel_values, input_ids, attention_mask))

    def itm_logits(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits of "does not belong together" and "does", (R, 2): forms with ``itm_score``."""
        return self.itm_score(self.features(pixel_values, input_ids, attention_mask))

    def mlm_logits(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits of the word at every text token, (R, L, V): form ``pretraining``, tokens as they flow."""
        return self.mlm_score(self.encode(pixel_values, input_ids, attention_mask)[0])

    def encode(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Text (R, L, D) and image tokens (R, N, D) after the co-attention layers, as they flow.

        The arguments are those of :meth:`forward`, and ``pixel_values`` may be (B, K, 3, H, W), an image per
        text; under a packed context both are (1, T, D).
        """
        images, texts = self.form.images, input_ids.shape[1] if input_ids.dim() == 3 else 1
        if images > 1:
            pixel_values = pixel_values.flatten(0, 1)
            input_ids, attention_mask = (x.repeat_interleave(images, 0) for x in (input_ids, attention_mask))
        if input_ids.dim() == 3:
            one_each = pixel_values.dim() == 5
            pixel_values = (
                pixel_values.flatten(0, 1) if one_each else pixel_values.repeat_interleave(texts, 0)
            )
            input_ids, attention_mask = input_ids.flatten(0, 1), attention_mask.flatten(0, 1)
        mask, copies = self.host_mask(attention_mask), images * texts
        text = self.encode_text(input_ids, attention_mask, mask, copies)
        image = self.encode_image(pixel_values, copies)
        return self.cross_modal(text, image, mask, self._image_types(len(pixel_values)))

    def _image_types(self, rows: int) -> Tensor | None:
        """Token type embedding of every row's image, (R, D): left, right in turn; None for single images."""
        if self.form.images == 1:
            return None
        types_ID = self.token_type_embeddings.weight[1:]
        return types_ID.expand(rows // self.form.images, -1, -1).flatten(0, 1)

    def encode_text(
        self, input_ids: Tensor, attention_mask: Tensor, mask: Tensor | None, copies: int = 1
    ) -> Tensor:
        """Text encoder: (R, L) to (R, L, D), packed under a packed context; ``copies`` rows per instance."""
        hidden = self.text_transformer.embeddings(input_ids=input_ids)
        hidden = enter("text", hidden, attention_mask, copies=copies)
        for index, layer in enumerate(self.text_transformer.encoder.layer):
            (hidden,) = trim(text=(index, hidden))
            hidden = layer(hidden, mask)
        leave("text", hidden)
        return hidden

    def encode_image(self, pixel_values: Tensor, copies: int = 1) -> Tensor:
        """Vision encoder: (R, 3, H, W) to (R, N, D), packed under a packed context."""
        vit = self.vit_model
        if not self.image_has_cls:
            features = vit.forward_features(pixel_values).flatten(1, 2)
            return enter("vision", features, copies=copies, cls=False)
        hidden = vit.norm_pre(vit._pos_embed(vit.patch_embed(pixel_values)))
        hidden = enter("vision", hidden, copies=copies)
        for index, block in enumerate(vit.blocks):
            (hidden,) = trim(vision=(index, hidden))
            hidden = block(hidden)
        return vit.norm(hidden)

    def cross_modal(
        self, text: Tensor, image: Tensor, mask: Tensor | None, image_types_RD: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Co-attention layers; both sides read the other's previous state.

        Args:
            text: Of the text encoder.
            image: Of the vision encoder.
            mask: See :meth:`host_mask`.
            image_types_RD: Token type embedding of every row's image; None: that of a single image.
        """
        types = self.token_type_embeddings.weight
        image_types = types[1] if image_types_RD is None else _for_tokens("vision", image_types_RD)
        text = self.cross_modal_text_transform(text) + types[0]
        image = self.cross_modal_image_transform(image) + image_types
        text_depth = len(self.text_transformer.encoder.layer)
        image_depth = len(self.vit_model.blocks) if self.image_has_cls else 0
        pairs = zip(self.cross_modal_text_layers, self.cross_modal_image_layers, strict=True)
        for index, (text_layer, image_layer) in enumerate(pairs):
            text, image = trim(text=(text_depth + index, text), vision=(image_depth + index, image))
            text, image = text_layer(text, image, mask, None), image_layer(image, text, None, mask)
        return text, image

    def pool(self, text: Tensor, image: Tensor) -> Tensor:
        """Poolers on the two CLS tokens, (R, 2D)."""
        image_cls = leave("vision", image, cls=self.image_has_cls)
        pooled_text = self.cross_modal_text_pooler(leave("text", text))
        return torch.cat((pooled_text, self.cross_modal_image_pooler(image_cls)), -1)

    @staticmethod
    def host_mask(attention_mask: Tensor) -> Tensor | None:
        """Boolean (R, 1, 1, L) mask for the host's own attention; None under a context or without padding."""
        if current() is not None or bool(attention_mask.all()):
            return None
        return attention_mask.bool()[:, None, None, :]

    # --- what the engine asks ---

    def architecture(self) -> Architecture:
        """Layers, sites and costs; where an image has several texts, for one of them."""
        return architecture(self)

    def token_counts(self, text_tokens: int) -> dict[str, int]:
        """Tokens per stream and row of an instance with so many text tokens, special tokens included."""
        return {"text": text_tokens, "vision": image_tokens(self.vit_model)}

    def example_inputs(self, text_tokens: int, batch: int = 1, seed: int = 0) -> dict[str, Tensor]:
        """Random inputs of the right shapes, for models without data; one text per image."""
        generator = torch.Generator().manual_seed(seed)
        size, vocab = self.options.image_size, self.text_transformer.config.vocab_size
        ids = torch.randint(3, vocab, (batch, text_tokens), generator=generator)
        ids[:, 0], ids[:, -1] = 0, 2
        images = (self.form.images,) if self.form.images > 1 else ()
        if FORMS.get(self.form.name) == MATCHES:
            ids = ids[:, None]
        return {
            "pixel_values": torch.randn(batch, *images, 3, size, size, generator=generator),
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
        }

    @staticmethod
    def part_of(parameter: str) -> str:
        """Part that a parameter belongs to, for learning-rate multipliers."""
        child = parameter.partition(".")[0]
        if child in HEADS:
            return "head"
        return {"vit_model": "vision_encoder", "text_transformer": "text_encoder"}.get(child, "cross_modal")


def build(options: Options, form: Form) -> Meter:
    """METER with random weights in the form that a task needs; the caller loads a checkpoint.

    Raises:
        UserError: The recipe section asks for what cannot be built.
    """
    return Meter(options, form)


def fit_to_tokenizer(section: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """The backbone's recipe section with word embeddings for all of a tokenizer, and its padding id.

    A tokenizer made from the task's words gets as many as it has, where the section names no number.

    Raises:
        UserError: The section names a text encoder that cannot be built.
    """
    options = Options.model_validate({key: value for key, value in section.items() if key != "name"})
    config, changes = text_config(options.text), {}
    unfilled = section.get("tokenizer") == "train" and "vocab_size" not in options.text.config
    if config.vocab_size < len(tokenizer) or (unfilled and config.vocab_size > len(tokenizer)):
        changes["vocab_size"] = len(tokenizer)
    if tokenizer.pad_token_id is not None and config.pad_token_id != tokenizer.pad_token_id:
        changes["pad_token_id"] = tokenizer.pad_token_id
    if not changes:
        return section
    text = {**section.get("text", {}), "config": {**options.text.config, **changes}}
    return {**section, "text": text}


def normalisation(options: Options) -> dict[str, tuple[float, float, float]]:
    """``mean`` and ``std`` of ``data.images.Preprocess`` where they are not those of CLIP."""
    if options.vision.model.startswith("swin"):
        return {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
    return {}


def _for_tokens(stream: str, rows_RD: Tensor) -> Tensor:
    """One vector per row for all tokens of the row: (R, 1, D), or (1, T, D) under a packed context."""
    context = current()
    return rows_RD[:, None] if context is None else context.streams[stream].spread(rows_RD)


def _init_weights(module: nn.Module, std: float) -> None:
    """The official initialisation of everything outside the two encoders (there ``std`` is 0.02)."""
    if isinstance(module, nn.Linear | nn.Embedding):
        module.weight.data.normal_(mean=0.0, std=std)
    if isinstance(module, nn.Linear) and module.bias is not None:
        module.bias.data.zero_()

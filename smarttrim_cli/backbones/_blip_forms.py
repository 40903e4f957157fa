"""BLIP's forward passes, one per form; those of retrieval are in :mod:`._blip_contrastive`.

Sources: the official ``models/blip_vqa.py``, ``models/blip_nlvr.py`` and ``models/blip.py``.

Legend: B instances, L text tokens, A answers, C candidates, P prompt tokens, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from smarttrim_cli.backbones._blip_contrastive import retrieve
from smarttrim_cli.backbones._blip_decoder import answer_logits, rank, write
from smarttrim_cli.backbones._blip_encoders import encode_image, encode_pair, host_mask
from smarttrim_cli.pruning.decoder import Decoder


def classify(model: Any, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Logits (B, labels) from the fused [ENC]."""
    _, fused_BD = encode_pair(model, pixel_values, input_ids, attention_mask)
    return model.cls_head(fused_BD)


def answer(
    model: Any,
    pixel_values: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor,
    answer_ids: Tensor | None = None,
    answer_mask: Tensor | None = None,
    candidate_ids: Tensor | None = None,
    candidate_mask: Tensor | None = None,
    num_steps: Tensor | None = None,
) -> Tensor:
    """Answers to questions.

    ``answer_mask`` is for the loss alone: answers are padded on the right, and causality hides that.
    ``num_steps`` has exactly so many tokens written, for costs that do not depend on the weights.

    Returns:
        With ``answer_ids`` (B, A, T) their logits (B, A, T, V); with ``candidate_ids`` (C, T) scores (B, C),
        -inf where not pre-selected; with neither, written answers: tokens (B, T).
    """
    states, _ = encode_pair(model, pixel_values, input_ids, attention_mask)
    writing = answer_ids is None and candidate_ids is None
    unmasked = host_mask(attention_mask) is None or (writing and model.options.attend_to_padding)
    decoder = Decoder("decoder", "text", states, len(input_ids), None if unmasked else attention_mask)
    if answer_ids is not None:
        return answer_logits(model, decoder, answer_ids)
    if candidate_ids is not None and candidate_mask is not None:
        return rank(model, decoder, candidate_ids, candidate_mask)
    return write(model, decoder, input_ids[:, :1], num_steps)[0]


def caption(
    model: Any,
    pixel_values: Tensor,
    answer_ids: Tensor | None = None,
    answer_mask: Tensor | None = None,
    prompt_ids: Tensor | None = None,
    num_steps: Tensor | None = None,
) -> Tensor:
    """Captions of images; ``num_steps`` as for ``answer``.

    Returns:
        With ``answer_ids`` (B, 1, T), prompt included, their logits (B, 1, T, V); with ``prompt_ids`` (B, P),
        which have no end token, written captions: tokens (B, T), prompt included.
    """
    image = encode_image(model, pixel_values)
    decoder = Decoder("decoder", "vision", image, len(pixel_values))
    if answer_ids is not None:
        return answer_logits(model, decoder, answer_ids)
    assert prompt_ids is not None
    return write(model, decoder, prompt_ids, num_steps)[0]


FORWARDS: dict[str, Callable[..., Any]] = {
    "vqa": answer,
    "nlvr2": classify,
    "snli_ve": classify,
    "retrieval": retrieve,
    "captioning": caption,
}

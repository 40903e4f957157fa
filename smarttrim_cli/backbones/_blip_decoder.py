"""BLIP's text decoder: likelihoods of given answers, ranking of candidates, free writing.

The modules are transformers' ``BlipTextLMHeadModel``; attention, head decisions and caches are those of
:class:`~smarttrim_cli.pruning.decoder.Decoder`. Source of what is computed: the official
``models/blip_vqa.py`` (``rank_answer``) and ``models/blip.py``.

Legend: B instances, A answers, C candidates, k selected candidates, R rows (instance after instance),
T tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from smarttrim_cli.backbones._beam_search import beam_search
from smarttrim_cli.backbones._blip_encoders import add_and_norm, with_first
from smarttrim_cli.pruning.decoder import Decoder
from smarttrim_cli.pruning.projections import BertProjections

LABEL_SMOOTHING = 0.1
"""The official decoder smooths in its loss and, since ranking goes by that loss, in ranking."""


def decode(model: Any, decoder: Decoder, ids_RT: Tensor, logits: int | None = None) -> Tensor:
    """One pass over tokens: hidden states (R, T, D), which ``cls`` turns into logits of what follows.

    ``logits`` says of how many of a row's last tokens the caller takes them; None for all.
    """
    bert = model.text_decoder.bert
    positions_1T = torch.arange(decoder.length, decoder.length + ids_RT.shape[1], device=ids_RT.device)[None]
    hidden = bert.embeddings(input_ids=ids_RT, position_ids=positions_1T)
    for index, layer in enumerate(bert.encoder.layer):
        decoder.begin_layer(index, hidden)
        attended = decoder.self_attention(index, BertProjections(layer.attention), hidden, model.training)
        hidden = add_and_norm(layer.attention.output, attended, hidden)
        attended = decoder.cross_attention(
            index, BertProjections(layer.crossattention), hidden, model.training
        )
        hidden = add_and_norm(layer.crossattention.output, attended, hidden)
        hidden = layer.output(layer.intermediate(hidden), hidden)
    decoder.advance(hidden, logits)
    return hidden


def answer_logits(model: Any, decoder: Decoder, answer_ids: Tensor) -> Tensor:
    """Training: answers (B, A, T) to logits (B, A, T, V), [DEC] put at position 0."""
    ids_RT = with_first(answer_ids.flatten(0, 1), model.options.dec_id)
    logits = model.text_decoder.cls(decode(model, decoder, ids_RT))
    return logits.unflatten(0, answer_ids.shape[:2])


def rank(model: Any, decoder: Decoder, candidate_ids: Tensor, candidate_mask: Tensor) -> Tensor:
    """Scores (B, C) of candidates (C, T): label-smoothed log-likelihoods, summed over tokens.

    Only the ``num_candidates`` whose first token is likeliest are scored, the others get -inf.
    """
    batch, count = decoder.instances, len(candidate_ids)
    dec = candidate_ids.new_full((batch, 1), model.options.dec_id)
    first_BV = model.text_decoder.cls(decode(model, decoder, dec))[:, 0]
    first_BC = first_BV.float().softmax(-1)[:, candidate_ids[:, 1]]
    chosen_Bk = first_BC.sort(dim=1, descending=True, stable=True).indices[:, : model.decoding.num_candidates]

    ids_RT = with_first(candidate_ids[chosen_Bk.flatten()], model.options.dec_id)
    counted_RT = candidate_mask[chosen_Bk.flatten()]
    hidden_RTD = decode(model, decoder, ids_RT[:, :-1])
    score_R: Any = sum(
        _smoothed_log_likelihood(model.text_decoder.cls(hidden_RTD[:, t]), ids_RT[:, t + 1])
        * counted_RT[:, t + 1]
        for t in range(hidden_RTD.shape[1])  # one token at a time: all logits at once may not fit
    )
    scores_BC = torch.full((batch, count), float("-inf"), device=candidate_ids.device)
    return scores_BC.scatter(1, chosen_Bk, score_R.view(batch, -1))


def _smoothed_log_likelihood(logits_RV: Tensor, target_R: Tensor) -> Tensor:
    log_p_RV = logits_RV.float().log_softmax(-1)
    target_R = log_p_RV.gather(1, target_R[:, None]).squeeze(1)
    return (1 - LABEL_SMOOTHING) * target_R + LABEL_SMOOTHING * log_p_RV.mean(-1)


def write(
    model: Any, decoder: Decoder, prompt_BP: Tensor, num_steps: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Beam search from a prompt, [DEC] put at its position 0; ``num_steps`` fixes how long it goes on.

    Returns:
        Tokens (B, T), prompt included, padded behind the end token; length-normalised scores (B,).
    """
    decoder.caching = True

    def step(ids_RT: Tensor) -> Tensor:
        hidden_RTD = decode(model, decoder, ids_RT, logits=1)
        return model.text_decoder.cls(hidden_RTD[:, -1:])[:, -1]

    text = model.options.text.config
    prompt_BP = with_first(prompt_BP, model.options.dec_id)
    decoding = model.decoding
    if num_steps is not None:
        length = prompt_BP.shape[1] + int(num_steps)
        decoding = replace(decoding, min_length=length, max_length=length)
    return beam_search(
        step, decoder.reorder, prompt_BP, decoding, end=text.sep_token_id, padding=text.pad_token_id
    )

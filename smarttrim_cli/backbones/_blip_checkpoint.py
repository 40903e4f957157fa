"""Official BLIP checkpoints: their names, and what becomes of them in another form or resolution.

A file (``model_base.pth``, ``model_base_vqa_capfilt_large.pth``, ...) holds a state dict under ``model``.
Only the vision encoder's names differ from ours, which are transformers'. Not used are the momentum twins
(``*_m``), the queues of contrastive learning and the buffers ``position_ids``.

As the official ``load_checkpoint`` functions do (``models/blip.py``, ``models/blip_nlvr.py``,
``interpolate_pos_embed`` in ``models/vit.py``): position embeddings are resized, NLVR2's two cross-attentions
both start from the one of pre-training, a head of another size starts afresh.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from smarttrim_cli.backbones._loading import LoadReport, Log, load_tensors, read_tensors

_VISION = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj": "embeddings.patch_embedding",
    "norm": "post_layernorm",
}
_BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_POSITIONS = "vision_model.embeddings.position_embedding"
_UNUSED = re.compile(r"(^\w+_m\.)|(_queue$)|(^queue_ptr$)|(^ptr_queue$)|(\.position_ids$)")
_OF_WORDS = re.compile(r"\.word_embeddings\.weight$|\.cls\.predictions\.(decoder\.)?(weight|bias)$")
_FRESH = re.compile(r"^(cls_head|itm_head|vision_proj|text_proj|temp)\b|\.merge_layer\.")
"""What a checkpoint of another form may lack: heads, and the merging layers of NLVR2."""


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official names to ours; what is known to be of no use is left out."""
    return {_our_name(name): value for name, value in state.items() if not _UNUSED.search(name)}


def to_official(model: Any) -> dict[str, Tensor]:
    """The model's weights under their official names, buffers included."""
    state = {_official_name(name): value for name, value in model.state_dict().items()}
    for name in [name for name in state if name.endswith(".position_embeddings.weight")]:
        ids = torch.arange(len(state[name]))[None]
        state[name.replace("position_embeddings.weight", "position_ids")] = ids
    return state


def load_official(model: Any, path: str | Path, log: Log) -> LoadReport:
    """Load an official checkpoint, of this form, another one, or pre-training.

    Raises:
        UserError: The file is damaged, or does not fit the sizes of the model.
    """
    state = read_tensors(path)
    unused = sorted(name for name in state if _UNUSED.search(name))
    return place(model, from_official(state), where=str(path), unused=unused, log=log)


def save_official(model: Any, path: str | Path) -> None:
    """Write a file that the official code loads."""
    state = {name: value.detach().cpu().clone() for name, value in to_official(model).items()}
    torch.save({"model": state}, path)


def place(model: Any, tensors: dict[str, Tensor], *, where: str, unused: list[str], log: Log) -> LoadReport:
    """Load weights of any form under our names; see :func:`adapt`.

    Raises:
        UserError: They do not fit.
    """
    tensors, resized = adapt(model, tensors)
    return load_tensors(
        model,
        tensors,
        where=where,
        unused=unused,
        resized=resized,
        may_be_fresh=may_be_fresh,
        log=log,
    )


def may_be_fresh(name: str) -> bool:
    """Whether weights of this name start at random where a checkpoint of another form has none."""
    return _FRESH.search(name) is not None


def carry_vocabulary(model: Any, tensors: Mapping[str, Tensor], before: Any) -> dict[str, Tensor]:
    """Weights of a smaller vocabulary for a model with further words: known words keep their rows.

    [DEC] and [ENC] lie behind the words, so their rows move.

    Args:
        model: With the larger vocabulary.
        tensors: Weights of the smaller one.
        before: Options of the model that they are of.
    """
    after, own, result = model.options, model.state_dict(), dict(tensors)
    size = before.text.config.vocab_size
    if after.text.config.vocab_size == size:
        return result
    kept = min(before.dec_id, before.enc_id)
    for name, old in tensors.items():
        if name not in own or not _OF_WORDS.search(name) or len(old) != size:
            continue
        grown = own[name].clone()
        grown[:kept] = old[:kept]
        grown[after.dec_id], grown[after.enc_id] = old[before.dec_id], old[before.enc_id]
        result[name] = grown
    return result


def adapt(model: Any, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Weights of another form or resolution made to fit, and a line on what was resized."""
    tensors = _tied(_twinned(tensors) if model.form.images == 2 else tensors)
    own, lines = model.state_dict()[_POSITIONS], []
    found = tensors.get(_POSITIONS)
    if found is not None and _is_of_another_grid(found, own):
        tensors[_POSITIONS] = resize_positions(found, own.shape[1])
        before, after = (round((n - 1) ** 0.5) for n in (found.shape[1], own.shape[1]))
        lines = [f"{_POSITIONS} from {before}x{before} to {after}x{after} patches"]
    return tensors, lines


def _is_of_another_grid(found: Tensor, own: Tensor) -> bool:
    """Whether position embeddings are those of another square grid; all else does not fit, and is named."""
    if found.dim() != 3 or found.shape[1] == own.shape[1] or found.shape[2] != own.shape[2]:
        return False
    patches = found.shape[1] - 1
    return patches > 0 and isqrt(patches) ** 2 == patches


def resize_positions(positions_1ND: Tensor, size: int) -> Tensor:
    """Position embeddings for another number of tokens, (1, size, D): the grid bicubic, the CLS as it is."""
    cls_11D, grid_1ND = positions_1ND[:, :1], positions_1ND[:, 1:]
    before, after = (round(n**0.5) for n in (grid_1ND.shape[1], size - 1))
    grid = grid_1ND.unflatten(1, (before, before)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(after, after), mode="bicubic", align_corners=False)
    return torch.cat((cls_11D, grid.permute(0, 2, 3, 1).flatten(1, 2)), 1)


def _twinned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A single cross-attention as both of NLVR2's."""
    out: dict[str, Tensor] = {}
    for name, value in tensors.items():
        single = re.search(r"\.crossattention\.(self|output\.dense)(?=\.)", name)
        if single is None:
            out[name] = value
        else:
            out |= {f"{name[: single.end()]}{number}{name[single.end() :]}": value for number in (0, 1)}
    return out


def _tied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Completed by what a decoder's head shares with its embeddings, which some files store only once."""
    out = dict(tensors)
    head, embeddings = "text_decoder.cls.predictions", "text_decoder.bert.embeddings.word_embeddings.weight"
    same = (
        (f"{head}.decoder.weight", embeddings),
        (f"{head}.decoder.bias", f"{head}.bias"),
        (f"{head}.bias", f"{head}.decoder.bias"),
    )
    for name, twin in same:
        if name not in out and twin in out:
            out[name] = out[twin]
    return out


def _our_name(name: str) -> str:
    if not name.startswith("visual_encoder."):
        return name
    stem, suffix = _stem_and_suffix(name.removeprefix("visual_encoder."))
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", stem)
    if block is not None:
        stem = f"encoder.layers.{block[1]}.{_BLOCK.get(block[2], block[2])}"
    return f"vision_model.{_VISION.get(stem, stem)}{suffix}"


def _official_name(name: str) -> str:
    if not name.startswith("vision_model."):
        return name
    stem, suffix = _stem_and_suffix(name.removeprefix("vision_model."))
    layer = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", stem)
    if layer is not None:
        stem = f"blocks.{layer[1]}.{_inverse(_BLOCK)[layer[2]]}"
        return f"visual_encoder.{stem}{suffix}"
    return f"visual_encoder.{_inverse(_VISION)[stem]}{suffix}"


def _stem_and_suffix(name: str) -> tuple[str, str]:
    found = re.search(r"\.(weight|bias)$", name)
    return (name, "") if found is None else (name[: found.start()], found.group())


def _inverse(table: Mapping[str, str]) -> dict[str, str]:
    return {ours: official for official, ours in table.items()}

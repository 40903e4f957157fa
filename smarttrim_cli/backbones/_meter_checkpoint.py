"""Official METER checkpoints: their names and shapes to ours, and back.

Source: the state dict of ``METERTransformerSS`` (CLIP-ViT or Swin vision encoder). Text encoder, co-attention
layers and heads have our names there; the vision encoders have those of CLIP and of timm 0.4. Official files
hold more than the model uses: parts of CLIP's and RoBERTa's own heads, and buffers.
Legend: G grid positions, D width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from math import isqrt
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from smarttrim_cli.backbones._loading import LoadReport, Log, load_tensors, read_tensors
from smarttrim_cli.errors import UserError, naming
from smarttrim_cli.tensors import save_tensors

UNUSED = re.compile(
    r"vit_model\.(positional_embedding|ln_final\.(weight|bias)|.*\.(attn_mask|relative_position_index))"
    r"|text_transformer\.(pooler\.dense\.(weight|bias)|embeddings\.position_ids)"
)
"""Names in official files whose values the official forward never reads, or that follow from the sizes."""

_VIT = {
    "cls_token": "class_embedding",
    "pos_embed": "positional_embedding",
    "patch_embed.proj.weight": "conv1.weight",
    "norm_pre": "ln_pre",
    "norm": "ln_post",
}
_VIT_BLOCK = {
    "norm1": "ln_1",
    "norm2": "ln_2",
    "attn.qkv.weight": "attn.in_proj_weight",
    "attn.qkv.bias": "attn.in_proj_bias",
    "attn.proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def official_names(model: nn.Module) -> dict[str, str | None]:
    """Our name to the official one, for all that the model holds; None where there is no official one."""
    of_vision = _swin_name if isinstance(model.vit_model, SwinTransformer) else _clip_name
    names: dict[str, str | None] = {}
    for name in model.state_dict():
        inner = name.removeprefix("vit_model.")
        names[name] = of_vision(inner) if inner != name else name
    return names


def _clip_name(name: str) -> str | None:
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    table, prefix = (_VIT_BLOCK, f"transformer.resblocks.{block[1]}.") if block else (_VIT, "")
    rest = block[2] if block else name
    stem, _, leaf = rest.rpartition(".")
    found = table[rest] if rest in table else f"{table[stem]}.{leaf}" if stem in table else None
    return None if found is None else f"vit_model.visual.{prefix}{found}"


def _swin_name(name: str) -> str:
    """Merging patches ended a stage in timm 0.4; it begins the next one now."""
    moved = re.sub(r"^layers\.(\d+)(?=\.downsample\.)", lambda found: f"layers.{int(found[1]) - 1}", name)
    return f"vit_model.{moved}"


def from_official(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Tensors of an official state dict under the names and in the shapes of a model.

    Position embeddings are resized to the model's grid. A further image's token type starts as a copy of the
    first image's, ranking as matching: as the official code starts its fine-tuning.

    Args:
        state: Official names to tensors.
        model: A ``Meter``; only names and shapes are read.

    Returns:
        Our names to tensors, for all names that the state dict has; shapes that cannot be fitted are left.
    """
    own, found = model.state_dict(), {}
    for name, official in official_names(model).items():
        if official is not None and official in state:
            found[name] = _fitted(name, state[official], own[name].shape)
    if "rank_output.weight" in own and "rank_output.weight" not in found and "itm_score.fc.weight" in found:
        for leaf in ("weight", "bias"):
            found[f"rank_output.{leaf}"] = found[f"itm_score.fc.{leaf}"][1:]
    return found


def _fitted(name: str, value: Tensor, shape: torch.Size) -> Tensor:
    if name == "vit_model.cls_token" and value.numel() == shape.numel():
        return value.view(shape)
    if name == "vit_model.pos_embed" and value.dim() == 2:
        return resized_positions(value, shape[1] - 1)[None]
    if name.endswith("relative_position_bias_table") and value.dim() == 2:
        return _resized_grid(value, shape[0])
    if name == "token_type_embeddings.weight" and value.dim() == 2 and len(value) > 1:
        return value[[min(row, len(value) - 1) for row in range(shape[0])]]
    return value


def adapt(model: nn.Module, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Weights of a model of another resolution made to fit, and a line on everything that was resized."""
    own, result, lines = model.state_dict(), dict(tensors), []
    for name, value in tensors.items():
        if name == "vit_model.pos_embed" and name in own and value.dim() == 3:
            result[name] = resized_positions(value[0], own[name].shape[1] - 1)[None]
        elif name.endswith("relative_position_bias_table") and name in own and value.dim() == 2:
            result[name] = _resized_grid(value, own[name].shape[0])
        if result[name].shape != value.shape:
            lines.append(f"{name}: {tuple(value.shape)} to {tuple(result[name].shape)}")
    return result, lines


def resized_positions(positions_GD: Tensor, grid: int) -> Tensor:
    """Position embeddings for another number of patches (bicubic, corners not aligned), the CLS as it is.

    Args:
        positions_GD: (1 + G, D).
        grid: Number of patches wanted.

    Returns:
        (1 + grid, D); the argument where a grid is not square.
    """
    patches = _resized_grid(positions_GD[1:], grid)
    return positions_GD if len(patches) != grid else torch.cat((positions_GD[:1], patches))


def _resized_grid(values_GD: Tensor, wanted: int) -> Tensor:
    before, after = isqrt(len(values_GD)), isqrt(wanted)
    if len(values_GD) in (0, wanted) or before**2 != len(values_GD) or after**2 != wanted:
        return values_GD
    image = values_GD.T.reshape(1, -1, before, before)
    image = F.interpolate(image, size=(after, after), mode="bicubic", align_corners=False)
    return image[0].flatten(1).T


def to_official(model: nn.Module) -> dict[str, Tensor]:
    """A model's tensors under official names and in official shapes, without what only official files have.

    Raises:
        UserError: The model has weights that the official one has not.
    """
    names = official_names(model)
    foreign = [name for name, official in names.items() if official is None]
    if foreign:
        raise UserError(
            f"the official METER has no {', '.join(foreign[:3])}" + (" ..." if len(foreign) > 3 else ""),
            where="backbone.vision",
            hint="only models with a CLIP-ViT or a Swin Transformer have the official layout",
        )
    result: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        value = value.detach().cpu()
        value = value.flatten() if name == "vit_model.cls_token" else value
        value = value[0] if name == "vit_model.pos_embed" else value
        result[str(names[name])] = value.contiguous()
    return result


def load_official(model: nn.Module, path: str | Path, log: Log) -> LoadReport:
    """Load an official checkpoint into a model; its head may start afresh, with a word in the log.

    Args:
        model: A ``Meter``; unchanged if an error is raised.
        path: A Lightning ``.ckpt``, or a ``.safetensors`` file with the official names.
        log: Receives what was resized, left out and initialised afresh, by name.

    Raises:
        UserError: The file is missing or damaged, or does not fit the model.
    """
    state = read_tensors(path)
    tensors, names = from_official(state, model), official_names(model)
    used = set(names.values())
    part_of: Callable[[str], str] = model.part_of  # type: ignore[assignment]
    changed = [
        f"{name}: {tuple(state[str(names[name])].shape)} to {tuple(value.shape)}"
        for name, value in tensors.items()
        if names[name] in state and state[str(names[name])].numel() != value.numel()
    ]
    return load_tensors(
        model,
        tensors,
        where=str(path),
        unused=[name for name in state if name not in used],
        resized=changed,
        may_be_fresh=lambda name: part_of(name) == "head",
        log=log,
    )


def save_official(model: nn.Module, path: str | Path) -> None:
    """Write a model as an official checkpoint: Lightning's ``.ckpt``, or ``.safetensors``.

    Raises:
        UserError: The model has weights that the official one has not.
    """
    state = to_official(model)
    with naming(path):
        if str(path).endswith(".safetensors"):
            save_tensors(state, Path(path))
        else:
            torch.save({"state_dict": state}, path)

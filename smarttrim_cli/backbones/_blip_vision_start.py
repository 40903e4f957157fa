"""A BLIP whose vision encoder starts from a ViT with timm's names, as the official one does from DeiT.

Source: ``models/blip.py: create_vit`` and ``load_custom_pretrained`` of the official ``models/vit.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from smarttrim_cli.backbones._blip_checkpoint import adapt, from_official
from smarttrim_cli.errors import UserError

_METER = "vit_model."
_OURS, _OFFICIAL = "vision_model.", "visual_encoder."


def load_vision(model: Any, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load the vision encoder from a timm ViT, bare or that of a METER; positions are resized.

    Args:
        model: A BLIP.
        tensors: State dict of the ViT, or of a METER.
        where: The file, for messages.

    Raises:
        UserError: The ViT has other sizes.
    """
    if any(name.startswith(_METER) for name in tensors):
        tensors = {n.removeprefix(_METER): t for n, t in tensors.items() if n.startswith(_METER)}
    named = {_OFFICIAL + name: tensor for name, tensor in tensors.items() if not name.startswith("head.")}
    found, _ = adapt(model, from_official(named))
    own = {name: value for name, value in model.state_dict().items() if name.startswith(_OURS)}
    wrong = [name for name, value in own.items() if name not in found or found[name].shape != value.shape]
    if wrong or len(own) != len(named):
        what = f"{wrong[0]} is missing or of another shape" if wrong else "it has more layers"
        raise UserError(
            f"not a ViT of this vision encoder's sizes: {what}",
            where=where,
            hint="backbone.vision.config has to have its width, depth, heads and patch size",
        )
    model.load_state_dict({name: found[name] for name in own}, strict=False)

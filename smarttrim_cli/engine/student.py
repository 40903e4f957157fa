"""Students: smaller models made of some layers of the checkpoint's (``backbone.keep_layers``).

The full model is built and loaded first, however its checkpoint is stored; the student is a model of its own
that takes over the weights it needs. Its section in ``config.json`` is that of a plain model of its depths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from smarttrim_cli import registry
from smarttrim_cli.backbones._keep_layers import Keep, Layers, layer_depths, taken
from smarttrim_cli.engine.artifact import build_backbone
from smarttrim_cli.engine.starting import RANDOM, Start
from smarttrim_cli.errors import UserError

_KEY = "keep_layers"


def layers_of(name: str) -> Layers:
    """Where a backbone's layers are.

    Raises:
        UserError: It does not say.
    """
    plugin = registry.load("backbones", name)
    if not hasattr(plugin, "LAYERS"):
        raise UserError(f"backbone {name} cannot be made of fewer layers", where=f"backbone.{_KEY}")
    return plugin.LAYERS


def apart(section: dict[str, Any], start: Start) -> tuple[dict[str, Any], Keep]:
    """The section of the full model, and the layers to keep of it; none for all.

    Raises:
        UserError: Layers are to be kept of a model with random weights.
    """
    keep = {key: numbers for key, numbers in (section.get(_KEY) or {}).items() if numbers is not None}
    if keep and start.kind == RANDOM:
        raise UserError(
            "layers are kept of a checkpoint, but none is named",
            where=f"backbone.{_KEY}",
            hint="name one in backbone.checkpoint, or build a small model by its sizes",
        )
    return {key: value for key, value in section.items() if key != _KEY}, keep


def student_of(section: dict[str, Any], keep: Keep, full: nn.Module) -> tuple[dict[str, Any], nn.Module]:
    """Section and model of a student.

    Args:
        section: Of the full model.
        keep: Layers that stay.
        full: The full model, with its weights.

    Raises:
        UserError: The full model has no such layers.
    """
    layers, tensors = layers_of(section["name"]), full.state_dict()
    depths = layer_depths(tensors, layers)
    for key, numbers in keep.items():
        _check(key, numbers, depths.get(key, 0))
    section = registry.load("backbones", section["name"]).smaller(section, keep)
    student = build_backbone(section, full.form)  # type: ignore[arg-type]
    student.load_state_dict(taken(student.state_dict(), tensors, keep, layers))
    return section, student


def _check(key: str, numbers: Sequence[int], depth: int) -> None:
    where = f"backbone.{_KEY}.{key}"
    if depth == 0:
        raise UserError("the checkpoint's model has no layers of this kind to choose from", where=where)
    beyond = [number for number in numbers if number >= depth]
    if beyond:
        raise UserError(
            f"there is no layer {beyond[0]}: the checkpoint's model has {depth}",
            where=where,
            hint=f"layers are numbered from 0 to {depth - 1}",
        )

"""``backbone.keep_layers``: a smaller model made of some layers of a larger one, as FTKD's students are.

A backbone that can be made smaller has, beside its ``Options`` with the key, two names in its module:

- ``LAYERS``: key of ``keep_layers`` to the paths of the module lists whose layers it numbers;
- ``smaller(section, keep)``: the recipe section of the smaller model, from that of the larger one.

All else follows from parameter names. Source of the initialisation: the FTKD baseline of the SmartTrim paper.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from torch import Tensor

Layers = Mapping[str, Sequence[str]]
"""Key of ``keep_layers`` to paths of module lists."""
Keep = Mapping[str, Sequence[int]]
"""Key of ``keep_layers`` to numbers of layers that stay, ascending; without a key all of its kind stay."""


def _ascending(numbers: list[int]) -> list[int]:
    if sorted(set(numbers)) != numbers:
        raise ValueError(f"layers stay in their order, each once: {sorted(set(numbers))}, not {numbers}")
    return numbers


Numbers = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1), AfterValidator(_ascending)]


class KeepLayers(BaseModel):
    """Layers of the checkpoint that make a smaller model, by number from 0; all of those not named."""

    model_config = ConfigDict(extra="forbid")
    vision: Numbers | None = Field(default=None, description="layers of the vision encoder that stay")
    text: Numbers | None = Field(
        default=None, description="layers of the text encoder that stay, and of the text decoder"
    )


class KeepCrossLayers(KeepLayers):
    """The same for a backbone with cross-modal layers."""

    text: Numbers | None = Field(default=None, description="layers of the text encoder that stay")
    cross: Numbers | None = Field(default=None, description="cross-modal layers that stay")


def layer_depths(names: Iterable[str], layers: Layers) -> dict[str, int]:
    """Number of layers per key of a model with these parameter names; 0 where there are none."""
    highest = dict.fromkeys(layers, -1)
    for name in names:
        for key, paths in layers.items():
            for path in paths:
                found = _numbered(name, path)
                if found is not None:
                    highest[key] = max(highest[key], int(found[1]))
    return {key: number + 1 for key, number in highest.items()}


def source_name(name: str, keep: Keep, layers: Layers) -> str:
    """What a module or parameter of the smaller model is called in the larger one."""
    for key, numbers in keep.items():
        for path in layers[key]:
            found = _numbered(name, path)
            if found is not None:
                return f"{path}.{numbers[int(found[1])]}{found[2]}"
    return name


def taken(
    names: Iterable[str], tensors: Mapping[str, Tensor], keep: Keep, layers: Layers
) -> dict[str, Tensor]:
    """Weights of the smaller model, which has these parameter names, out of those of the larger one."""
    return {name: tensors[source_name(name, keep, layers)] for name in names}


def _numbered(name: str, path: str) -> re.Match[str] | None:
    """Number of a layer of a module list, and the rest of the name."""
    return re.fullmatch(rf"{re.escape(path)}\.(\d+)((?:\..+)?)", name)

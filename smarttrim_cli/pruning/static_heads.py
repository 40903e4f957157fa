"""Heads that go for every instance alike: what is left of the weights is taken out once, and kept.

Where decisions differ between instances, heads are another matrix for each, and leaving them out saves less
time than MACs (:mod:`.packed_attention`). Where a trimmer's decisions are ``static`` the smaller matrices
serve all of a batch and all batches, laid out for the CPU's kernels where the model is prepared
(:mod:`.prepared`). They are made when first needed, and again when the weights or the decisions have changed.

Legend: H heads, h kept heads, E head width, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smarttrim_cli.pruning.prepared import LaidOutLinear, PreparedLinear, version_of

Part = tuple[Tensor, Tensor | None]
"""Some rows or columns of a layer's weight, and what goes with them of its bias."""


class StaticHeads:
    """The heads that one attention keeps for every instance.

    Args:
        kept: Their numbers.
        device: Of the weights.
    """

    def __init__(self, kept: tuple[int, ...], device: torch.device) -> None:
        self.kept = kept
        self.index_h = torch.tensor(kept, dtype=torch.long, device=device)
        self._parts: dict[int, tuple[Any, nn.Linear, Callable[[Tensor], Tensor]]] = {}

    def through(self, x: Tensor, linear: nn.Linear, cut: Callable[[nn.Linear, Tensor], Part]) -> Tensor:
        """``x`` through the part of a layer that belongs to these heads.

        Args:
            x: (..., inputs of the part).
            linear: The whole layer.
            cut: Takes the part out, given the layer and the heads' numbers.
        """
        traced = torch.jit.is_tracing() or torch.compiler.is_compiling()  # what is made then is not kept
        if traced or (torch.is_grad_enabled() and linear.weight.requires_grad):
            return F.linear(x, *cut(linear, self.index_h))
        versions = version_of(linear.weight), None if linear.bias is None else version_of(linear.bias)
        made = self._parts.get(id(linear))
        if made is None or made[0] != (versions, type(linear)):
            made = self._parts[id(linear)] = (
                (versions, type(linear)),
                linear,
                _layer(linear, cut, self.index_h),
            )
        return made[2](x)


def _layer(
    linear: nn.Linear, cut: Callable[[nn.Linear, Tensor], Part], index_h: Tensor
) -> Callable[[Tensor], Tensor]:
    weight, bias = (None if part is None else part.detach() for part in cut(linear, index_h))
    assert weight is not None
    if isinstance(linear, PreparedLinear):
        return LaidOutLinear(weight, bias)
    return lambda x: F.linear(x, weight, bias)


class StaticHeadsOf:
    """The static heads of a model's sites, by name."""

    def __init__(self) -> None:
        self._sites: dict[str, StaticHeads] = {}

    def at(self, name: str, kept: tuple[int, ...], device: torch.device) -> StaticHeads:
        """Those of a site, as they were the last time if the same heads are kept."""
        found = self._sites.get(name)
        if found is None or found.kept != kept or found.index_h.device != device:
            found = self._sites[name] = StaticHeads(kept, device)
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> StaticHeadsOf:
        return StaticHeadsOf()

    def __reduce__(self) -> tuple[Any, ...]:
        return StaticHeadsOf, ()

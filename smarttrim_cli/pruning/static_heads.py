"""Heads that go for every instance alike: what is left of the weights is taken out once, and kept.

Where decisions differ between instances, heads are another matrix for each, and leaving them out saves less
time than MACs (:mod:`.packed_attention`). Where a trimmer's decisions are ``static`` the smaller matrices
serve all of a batch and all batches, laid out for the CPU's kernels where the model is prepared
(:mod:`.prepared`). They are made when first needed, and again when the weights or the decisions have changed.
So are the decisions themselves: there is one per attention, and asking for it takes a dozen small operators.

Legend: H heads, h kept heads, E head width, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smarttrim_cli.pruning.prepared import LaidOutLinear, PreparedLinear, for_good, versions_of

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
        with for_good():
            self.index_h = torch.tensor(kept, dtype=torch.long, device=device)
        self._parts: dict[tuple[int, ...], tuple[Any, Sequence[nn.Linear], Callable[[Tensor], Tensor]]] = {}

    def through(
        self, x: Tensor, linears: Sequence[nn.Linear], cut: Callable[[nn.Linear, Tensor], Part]
    ) -> Tensor:
        """``x`` through the parts of layers that belong to these heads: what they make of it, side by side.

        Args:
            x: (..., inputs of a part).
            linears: The whole layers; either all have a bias or none.
            cut: Takes a part out, given its layer and the heads' numbers.
        """
        traced = torch.jit.is_tracing() or torch.compiler.is_compiling()  # what is made then is not kept
        learned = torch.is_grad_enabled() and any(linear.weight.requires_grad for linear in linears)
        if traced or learned:
            outputs = [F.linear(x, *cut(linear, self.index_h)) for linear in linears]
            return outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
        key, made_of = tuple(map(id, linears)), (versions_of(linears), *map(type, linears))
        made = self._parts.get(key)
        if made is None or made[0] != made_of:
            made = self._parts[key] = made_of, linears, _layer(linears, cut, self.index_h)
        return made[2](x)


def _layer(
    linears: Sequence[nn.Linear], cut: Callable[[nn.Linear, Tensor], Part], index_h: Tensor
) -> Callable[[Tensor], Tensor]:
    with for_good():
        parts = [cut(linear, index_h) for linear in linears]
        weight = torch.cat([part for part, _ in parts]).detach()
        biases = [bias for _, bias in parts if bias is not None]
        bias = torch.cat(biases).detach() if biases else None
    if isinstance(linears[0], PreparedLinear):
        return LaidOutLinear(weight, bias)
    return lambda x: F.linear(x, weight, bias)


@dataclass(frozen=True)
class StaticDecision:
    """What a site always decides.

    Attributes:
        mask_1H: Keep mask, float.
        kept: Numbers of the kept heads; None keeps all.
        made_of: Threshold, and the trimmer's tensors with their versions. Holding them rules out that
            others come to lie where they were.
    """

    mask_1H: Tensor
    kept: tuple[int, ...] | None
    made_of: tuple[Any, ...]

    def holds(self, made_of: tuple[Any, ...]) -> bool:
        """Whether it was made of the very same."""
        return len(made_of) == len(self.made_of) and all(
            a is b or (not isinstance(a, Tensor) and a == b)
            for a, b in zip(made_of, self.made_of, strict=True)
        )


class StaticHeadsOf:
    """The static heads of a model's sites, by name."""

    def __init__(self) -> None:
        self._sites: dict[str, StaticHeads] = {}
        self._decisions: dict[str, StaticDecision] = {}

    def decision(
        self, name: str, trimmer: nn.Module, threshold: float, decide: Callable[[], Tensor]
    ) -> StaticDecision:
        """What a site decides, as it was the last time if neither its trimmer nor the threshold has changed.

        Args:
            name: Of the site.
            trimmer: Its scores depend on buffers and parameters of its own alone.
            threshold: What scores must be above.
            decide: Gives the keep mask (1, H), float.
        """
        if trimmer._modules:
            tensors: tuple[Any, ...] = (*trimmer.buffers(), *trimmer.parameters())
        else:  # quicker, and the usual case
            tensors = (*trimmer._buffers.values(), *trimmer._parameters.values())
        versions = (0 if t is None else object() if t.is_inference() else t._version for t in tensors)
        made_of = (threshold, *tensors, *versions)
        found = self._decisions.get(name)
        if found is None or not found.holds(made_of):
            with for_good():
                mask_1H = decide()
            kept = tuple(head for head, on in enumerate(mask_1H[0].tolist()) if on > 0.5)
            everything = len(kept) == mask_1H.shape[1]
            found = StaticDecision(mask_1H, None if everything else kept, made_of)
            self._decisions[name] = found
        return found

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

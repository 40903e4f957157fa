"""Weights laid out once for the CPU's matrix kernels, for inference.

torch multiplies float32 matrices on CPUs by a library that lays the weights out anew at every call, which is
most of the time where tokens are few, and on some processors is slow in itself. oneDNN, which comes with
torch, takes weights that were laid out before. ``prepare`` swaps the class of every linear layer of a model
for one that uses it wherever it can be used: on a CPU, in float32, without gradients. Parameters, names and
files stay as they are; the layout is a copy beside the weights, made at the first use and again when they
change. Results differ from torch's own by rounding.

Source of the operators: torch's ``aten/src/ATen/native/mkldnn/Linear.cpp``, those of its own CPU inference.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_WEIGHTS = 1 << 18
MIN_MACS = 1 << 24
"""A call of these kernels takes longer than one of torch's own: many weights or much work must pay for it."""

MIN_JOINT = 1 << 15
"""The same for :class:`LaidOutLinear`, whose calls check less."""

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "4096")
"""Kernels that oneDNN keeps, for every number of rows and shape of weights that was met; read at its first
use. With its own 1024, those of models whose batches differ in size are made anew again and again."""


def _operators() -> tuple[Any, Any] | None:
    try:
        return torch.ops.mkldnn._linear_pointwise.default, torch.ops.mkldnn._reorder_linear_weight.default
    except AttributeError:
        return None


_OPERATORS = _operators() if torch.backends.mkldnn.is_available() else None


def usable(x: Tensor) -> bool:
    """Whether prepared kernels can be used here and now; not while a forward is traced, whose MACs count."""
    return (
        _OPERATORS is not None
        and x.is_cpu
        and x.dtype is torch.float32
        and not torch.is_grad_enabled()
        and not torch.jit.is_tracing()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and x.numel() > 0
    )


def version_of(weight: Tensor) -> tuple[int, object]:
    """What changes when a weight is replaced or written to, but for two ways that torch does not count.

    Fused optimizers are one: what was laid out is dropped in passes that take gradients. Writing through
    ``.data`` is the other: see :meth:`.TrimmedModel.forget`. Of weights made in inference mode torch
    counts nothing: they are taken to change each time.
    """
    return weight.data_ptr(), object() if weight.is_inference() else weight._version


def versions_of(linears: Sequence[nn.Linear]) -> tuple[Any, ...]:
    """The same for layers, with their biases."""
    return tuple(
        None if tensor is None else version_of(tensor)
        for linear in linears
        for tensor in (linear.weight, linear.bias)
    )


@contextmanager
def for_good() -> Iterator[None]:
    """What is made here may be made in inference mode and used where gradients are taken later."""
    with torch.inference_mode(False), torch.no_grad():
        yield


@dataclass(frozen=True)
class _Joined:
    """Layers of one input as one: what they are, of which versions, and their weights and biases."""

    linears: Sequence[nn.Linear]
    versions: tuple[Any, ...]
    laid_out: Tensor
    bias: Tensor | None


class _Layout:
    """Weights as oneDNN wants them, and what they were made from; those of layers joined to this one, too."""

    def __init__(self) -> None:
        self.laid_out: Tensor | None = None
        self.version: tuple[int, object] | None = None
        self.joined: dict[tuple[int, ...], _Joined] = {}

    def of(self, weight: Tensor) -> Tensor:
        version = version_of(weight)
        if self.laid_out is None or version != self.version:
            assert _OPERATORS is not None
            self.laid_out, self.version = _OPERATORS[1](weight.detach(), None), version
        return self.laid_out

    def with_others(self, linears: Sequence[nn.Linear]) -> _Joined:
        key, versions = tuple(map(id, linears)), versions_of(linears)
        made = self.joined.get(key)
        if made is None or made.versions != versions:
            assert _OPERATORS is not None
            with for_good():
                weight = torch.cat([linear.weight for linear in linears])
                bias = None if linears[0].bias is None else torch.cat([linear.bias for linear in linears])
                laid_out = _OPERATORS[1](weight, None)
            made = self.joined[key] = _Joined(linears, versions, laid_out, bias)
        return made

    def forget(self) -> None:
        self.laid_out = None
        self.joined.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Layout:
        return _Layout()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Layout, ()


class PreparedLinear(nn.Linear):
    """``nn.Linear`` on prepared weights where they can be used; else as it was."""

    _layout: _Layout

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D')."""
        weights = self.weight.numel()
        large = weights >= MIN_WEIGHTS or x.numel() * self.out_features >= MIN_MACS
        if not large or not usable(x):
            if torch.is_grad_enabled() and self.weight.requires_grad:
                self._layout.forget()
            return F.linear(x, self.weight, self.bias)
        assert _OPERATORS is not None
        out: Tensor = _OPERATORS[0](x, self._layout.of(self.weight), self.bias, "none", [], "")
        return out


class LaidOutLinear:
    """A linear layer of weights that belong to no module, laid out; a gelu can follow in the same kernel.

    Args:
        weight: (D', D).
        bias: (D'), or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()
        self.laid_out: Tensor | None = None

    def __call__(self, x: Tensor, gelu: bool = False) -> Tensor:
        """(..., D) to (..., D')."""
        if self.weight.numel() < MIN_JOINT or not usable(x):
            out = F.linear(x, self.weight, self.bias)
            return F.gelu(out) if gelu else out
        assert _OPERATORS is not None
        if self.laid_out is None:
            self.laid_out = _OPERATORS[1](self.weight, None)
        post: tuple[str, list[Any], str] = ("gelu", [], "none") if gelu else ("none", [], "")
        result: Tensor = _OPERATORS[0](x, self.laid_out, self.bias, *post)
        return result


def joined_linear(linears: Sequence[nn.Linear], x: Tensor) -> Tensor | None:
    """What several layers make of one input, side by side, by one call; None where they are not prepared.

    A call on few rows takes about as long for three layers' weights as for one's: queries, keys and values.

    Args:
        linears: Layers of the same input, either all with a bias or none.
        x: (..., D).
    """
    if not all(isinstance(linear, PreparedLinear) for linear in linears):
        return None
    layout = cast(PreparedLinear, linears[0])._layout
    if not usable(x):
        if torch.is_grad_enabled():  # what learns may not be the first
            layout.joined.clear()
        return None
    outputs = sum(linear.out_features for linear in linears)
    if outputs * linears[0].in_features < MIN_WEIGHTS and x.numel() * outputs < MIN_MACS:
        return None
    joined = layout.with_others(linears)
    assert _OPERATORS is not None
    out: Tensor = _OPERATORS[0](x, joined.laid_out, joined.bias, "none", [], "")
    return out


def part_of_linear(linear: nn.Linear, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x`` through some rows or columns of a layer's weight, given as a tensor of their own."""
    if isinstance(linear, PreparedLinear) and usable(x):
        assert _OPERATORS is not None
        out: Tensor = _OPERATORS[0](x, weight, bias, "none", [], "")
        return out
    return F.linear(x, weight, bias)


def prepare(model: nn.Module) -> None:
    """Let a model's linear layers use prepared weights; idempotent.

    It takes as much memory again as the weights of these layers, and those of queries, keys and values once
    more where they were used both one by one and joined. Training goes on as before.
    """
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = cast(Any, PreparedLinear)
            module.__dict__["_layout"] = _Layout()


def forget(model: nn.Module) -> None:
    """Drop all layouts; they are made again when next used."""
    for module in model.modules():
        if isinstance(module, PreparedLinear):
            module._layout.forget()


def restore(model: nn.Module) -> None:
    """Undo :func:`prepare`, and free its memory."""
    for module in model.modules():
        if isinstance(module, PreparedLinear):
            module.__class__ = cast(Any, nn.Linear)
            del module.__dict__["_layout"]

"""How to read the projections of the host libraries' attention modules, whole or for some heads only.

One adapter per style of host code: timm's fused ``qkv`` and the BERT family's ``self``/``output`` pair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from timm.layers import Attention
from torch import Tensor, nn

from smarttrim_cli.errors import UserError
from smarttrim_cli.pruning.prepared import PreparedLinear, joined_linear, part_of_linear
from smarttrim_cli.pruning.static_heads import Part, StaticHeads

Heads = Tensor | StaticHeads | None
"""Numbers of heads, for this call or for all; None: all heads."""


class Projections(Protocol):
    """The projections of a host attention, whole or for some heads only.

    ``prepared`` says whether its weights are those of :mod:`.prepared`.
    """

    num_heads: int
    head_dim: int
    scale: float
    dropout: float
    prepared: bool

    def project(self, query: Tensor, memory: Tensor, heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (..., N, h, E), keys and values (..., M, h, E) for the named heads (None: all)."""
        ...

    def merge(self, context: Tensor, heads: Heads) -> Tensor:
        """Output projection of contexts (..., N, h, E) of the named heads, bias included."""
        ...

    def empty(self, query: Tensor) -> Tensor:
        """What the module returns when all heads are dropped: its output bias for every query token."""
        ...


class CrossProjections(Projections, Protocol):
    """Those of a cross-attention, in two halves."""

    def queries(self, query: Tensor, heads: Heads) -> Tensor:
        """Queries alone, for cross-attention."""
        ...

    def keys_values(self, memory: Tensor, heads: Heads) -> tuple[Tensor, Tensor]:
        """Keys and values alone, for cross-attention."""
        ...


def _rows(weight: Tensor, heads: Tensor, head_dim: int) -> Tensor:
    """Rows of a (H*E, D) weight or (H*E,) bias that belong to some heads."""
    return weight.unflatten(0, (-1, head_dim)).index_select(0, heads).flatten(0, 1)


def _columns(weight: Tensor, heads: Tensor, head_dim: int) -> Tensor:
    """Columns of a (D, H*E) weight that belong to some heads."""
    return weight.unflatten(1, (-1, head_dim)).index_select(1, heads).flatten(1, 2)


def _through(x: Tensor, linear: nn.Linear, heads: Heads, cut: Callable[[nn.Linear, Tensor], Part]) -> Tensor:
    """``x`` through a layer, or through the part of it that ``cut`` takes out for some heads."""
    if heads is None:
        return linear(x)
    if isinstance(heads, StaticHeads):
        return heads.through(x, (linear,), cut)
    return part_of_linear(linear, x, *cut(linear, heads))


def _side_by_side(x: Tensor, linears: Sequence[nn.Linear], heads: Heads, head_dim: int) -> tuple[Tensor, ...]:
    """``x`` (..., D) projected by some layers, (..., h, E) each, in one call where that can be."""

    def cut(linear: nn.Linear, index: Tensor) -> Part:
        bias = None if linear.bias is None else _rows(linear.bias, index, head_dim)
        return _rows(linear.weight, index, head_dim), bias

    joined = None
    if len({linear.bias is None for linear in linears}) == 1 < len(linears):
        if heads is None:
            joined = joined_linear(linears, x)
        elif isinstance(heads, StaticHeads):
            joined = heads.through(x, linears, cut)
    if joined is not None:
        return joined.unflatten(-1, (len(linears), -1, head_dim)).unbind(-3)
    return tuple(_through(x, linear, heads, cut).unflatten(-1, (-1, head_dim)) for linear in linears)


def _merge(context: Tensor, linear: nn.Linear, heads: Heads, head_dim: int) -> Tensor:
    def cut(linear: nn.Linear, index: Tensor) -> Part:
        return _columns(linear.weight, index, head_dim), linear.bias

    return _through(context.flatten(-2), linear, heads, cut)


def _bias_only(query: Tensor, linear: nn.Linear) -> Tensor:
    nothing = query.new_zeros(*query.shape[:-1], linear.out_features)
    # a sum: torch's flop counter takes a view of a parameter for one that wants gradients, and fails
    return nothing if linear.bias is None else nothing + linear.bias.to(query.dtype)


class TimmProjections:
    """``timm.layers.Attention``: one fused ``qkv``, optional norms of queries and keys, ``proj``."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.num_heads, self.head_dim, self.scale = module.num_heads, module.head_dim, module.scale
        self.dropout = module.attn_drop.p
        self.prepared = isinstance(module.qkv, PreparedLinear)

    @staticmethod
    def check(module: nn.Module, path: str) -> None:
        """Refuse variants whose forward does more than this adapter repeats."""
        plain = type(module) is Attention and getattr(module, "gate", None) is None
        if not plain or not isinstance(getattr(module, "norm", nn.Identity()), nn.Identity):
            raise UserError(
                f"attention of type {type(module).__name__}, or with gates or output norms, is not supported",
                where=path,
                hint="choose a timm ViT built on timm.layers.Attention",
            )

    def project(self, query: Tensor, memory: Tensor, heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
        """See ``Projections``."""
        m, dim = self.module, self.head_dim

        def cut(linear: nn.Linear, index: Tensor) -> Part:
            weight = linear.weight.unflatten(0, (3, -1, dim)).index_select(1, index).flatten(0, 2)
            bias = linear.bias
            if bias is not None:
                bias = bias.unflatten(0, (3, -1, dim)).index_select(1, index).flatten()
            return weight, bias

        q, k, v = _through(query, m.qkv, heads, cut).unflatten(-1, (3, -1, dim)).unbind(-3)
        return m.q_norm(q), m.k_norm(k), v

    def merge(self, context: Tensor, heads: Heads) -> Tensor:
        """See ``Projections``."""
        return _merge(context, self.module.proj, heads, self.head_dim)

    def empty(self, query: Tensor) -> Tensor:
        """See ``Projections``."""
        return _bias_only(query, self.module.proj)


class BertProjections:
    """The BERT family: ``self.query/key/value`` and the sibling ``output.dense``."""

    def __init__(self, module: Any) -> None:
        inner = module.self
        self.module, self.inner = module, inner
        self.num_heads, self.head_dim = inner.num_attention_heads, inner.attention_head_size
        self.scale = self.head_dim**-0.5
        self.dropout = inner.dropout.p
        self.prepared = isinstance(inner.query, PreparedLinear)

    @staticmethod
    def check(module: nn.Module, path: str) -> None:
        """Refuse modules that lack the expected children."""
        inner, output = getattr(module, "self", None), getattr(module, "output", None)
        needed = [(inner, name) for name in ("query", "key", "value")]
        needed += [(output, name) for name in ("dense", "LayerNorm")]
        if not all(hasattr(part, name) for part, name in needed):
            raise UserError(f"attention {type(module).__name__} is not of the BERT family", where=path)

    def project(self, query: Tensor, memory: Tensor, heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
        """See ``Projections``."""
        if memory is not query:
            return self.queries(query, heads), *self.keys_values(memory, heads)
        inner = self.inner
        q, k, v = _side_by_side(query, (inner.query, inner.key, inner.value), heads, self.head_dim)
        return q, k, v

    def queries(self, query: Tensor, heads: Heads) -> Tensor:
        """Queries (..., N, h, E) alone."""
        return _side_by_side(query, (self.inner.query,), heads, self.head_dim)[0]

    def keys_values(self, memory: Tensor, heads: Heads) -> tuple[Tensor, Tensor]:
        """Keys and values (..., M, h, E) alone: a decoder projects them once for all its steps."""
        k, v = _side_by_side(memory, (self.inner.key, self.inner.value), heads, self.head_dim)
        return k, v

    def merge(self, context: Tensor, heads: Heads) -> Tensor:
        """See ``Projections``."""
        return _merge(context, self.module.output.dense, heads, self.head_dim)

    def empty(self, query: Tensor) -> Tensor:
        """See ``Projections``."""
        return _bias_only(query, self.module.output.dense)


ADAPTERS: dict[str, Any] = {"timm": TimmProjections, "bert": BertProjections}

"""Attach trimmers to a host model in place: its modules, names and weights stay as they are.

The class of every attention module at a site is swapped for a subclass that asks the running context what to
do, and falls back to the host's own forward when there is none. A swapped class, unlike a patched method,
survives deepcopy. Backbones that call the parts of their layers themselves use ``attend_at`` instead.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from torch import Tensor, nn

from smarttrim_cli.errors import UserError
from smarttrim_cli.pruning.attention import attend, plain_attention
from smarttrim_cli.pruning.context import current
from smarttrim_cli.pruning.projections import ADAPTERS, BertProjections, Projections, TimmProjections
from smarttrim_cli.pruning.sites import HOSTED, Architecture

_SITE = "_smarttrim_site"


def _timm_forward(host: Any) -> Callable[..., Any]:
    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        context = current()
        if context is None:
            return host.forward(self, x, *args, **kwargs)
        state = context.attention[getattr(self, _SITE)]
        return self.proj_drop(attend(TimmProjections(self), x, x, state, self.training))

    return forward


def _bert_forward(host: Any) -> Callable[..., Any]:
    def forward(
        self: Any,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        context = current()
        if context is None:
            return host.forward(self, hidden_states, attention_mask, encoder_hidden_states, *args, **kwargs)
        state = context.attention[getattr(self, _SITE)]
        memory = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        out = attend(BertProjections(self), hidden_states, memory, state, self.training)
        return self.output.LayerNorm(self.output.dropout(out) + hidden_states), None

    return forward


_FORWARDS = {"timm": _timm_forward, "bert": _bert_forward}


@cache
def _context_aware(host: Any, style: str) -> type[nn.Module]:
    """One subclass per host class."""

    def reduce(self: Any, protocol: int) -> tuple[Any, ...]:
        return _restored, (host, style), self.__dict__

    parts = {"forward": _FORWARDS[style](host), "__reduce_ex__": reduce}
    return type(f"Trimmable{host.__name__}", (host,), parts)


def _restored(host: Any, style: str) -> Any:
    """An empty attention module for a pickle or a copy to fill: its class has no name to be found by."""
    return _context_aware(host, style).__new__(_context_aware(host, style))


def attend_at(
    site: str,
    projections: Projections,
    query: Tensor,
    memory: Tensor | None = None,
    mask: Tensor | None = None,
    training: bool = False,
) -> Tensor:
    """Attention that the backbone calls itself; output projection included, residual and norm not.

    Args:
        site: Name of its site.
        projections: Of the host's module.
        query: (R, N, D), or (1, T, D) under a packed context.
        memory: Where keys and values come from; None for self-attention.
        mask: Boolean, broadcast to (R, H, N, M), True where a key may be seen; without a context only.
        training: Whether attention dropout is active.
    """
    context = current()
    memory = query if memory is None else memory
    if context is None:
        return plain_attention(projections, query, memory, mask, training)
    return attend(projections, query, memory, context.attention[site], training)


def attach_attention(backbone: nn.Module, architecture: Architecture) -> None:
    """Take over every attention module the architecture names; idempotent.

    Raises:
        UserError: If an attention module is of a kind that no adapter reads.
    """
    for layer in architecture.layers:
        for kind, spec in layer.attentions:
            module = backbone.get_submodule(spec.path)
            if spec.style == HOSTED or hasattr(module, _SITE):
                continue
            if spec.style not in ADAPTERS:
                raise UserError(f"no attention adapter named {spec.style!r}", where=spec.path)
            ADAPTERS[spec.style].check(module, spec.path)
            host: Any = type(module)
            module.__class__ = _context_aware(host, spec.style)
            setattr(module, _SITE, layer.site(kind).name)

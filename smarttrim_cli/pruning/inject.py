"""Attach trimmers to a host model in place: its modules, names and weights stay as they are.

The class of every attention module at a site is swapped for a subclass that asks the running context what to
do, and falls back to the host's own forward when there is none. A swapped class, unlike a patched method,
survives deepcopy.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from torch import Tensor, nn

from smarttrim_cli.errors import UserError
from smarttrim_cli.pruning.attention import attend
from smarttrim_cli.pruning.context import current
from smarttrim_cli.pruning.projections import ADAPTERS, BertProjections, TimmProjections
from smarttrim_cli.pruning.sites import CROSS_HEAD, SELF_HEAD, Architecture, Site

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
    return type(f"Trimmable{host.__name__}", (host,), {"forward": _FORWARDS[style](host)})


def attach_attention(backbone: nn.Module, architecture: Architecture) -> None:
    """Take over every attention module the architecture names; idempotent.

    Raises:
        UserError: If an attention module is of a kind that no adapter reads.
    """
    for layer in architecture.layers:
        for kind, spec in ((SELF_HEAD, layer.self_attention), (CROSS_HEAD, layer.cross_attention)):
            if spec is None:
                continue
            module = backbone.get_submodule(spec.path)
            if hasattr(module, _SITE):
                continue
            if spec.style not in ADAPTERS:
                raise UserError(f"no attention adapter named {spec.style!r}", where=spec.path)
            ADAPTERS[spec.style].check(module, spec.path)
            host: Any = type(module)
            module.__class__ = _context_aware(host, spec.style)
            setattr(module, _SITE, Site(layer.stream, layer.index, kind).name)

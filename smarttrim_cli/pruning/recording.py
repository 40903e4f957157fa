"""What a full pass computes on its way: outputs of layers, queries and keys of attentions.

Fused attention gives no matrix of weights, so queries and keys are recorded where the host's own projections
give them out, by hooks that live for one pass. This works in mode ``full``, for attention of any style.

Legend: R rows, N query tokens, M key tokens, H heads, E head width, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from smarttrim_cli.errors import UserError
from smarttrim_cli.pruning.sites import CROSS_HEAD_1, AttentionSpec, LayerSpec, Site


@dataclass
class Recording:
    """What was recorded.

    Attributes:
        hidden: Stream and index of a layer to its output, (R, N, D).
        queries: Name of a head site to queries, (R, H, N, E).
        keys: Likewise, (R, H, M, E).
    """

    hidden: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    queries: dict[str, Tensor] = field(default_factory=dict)
    keys: dict[str, Tensor] = field(default_factory=dict)


@contextmanager
def recording(
    backbone: nn.Module, layers: Iterable[LayerSpec], *, hidden: bool = True, attention: bool = True
) -> Iterator[Recording]:
    """Record a pass of a backbone that runs inside, in mode ``full``.

    Args:
        backbone: Runs every module at most once per pass.
        layers: What to record.
        hidden: Whether to record outputs of layers.
        attention: Whether to record queries and keys.

    Raises:
        UserError: The backbone does not say where a layer's output is.
    """
    found = Recording()
    with ExitStack() as stack:
        for layer in layers:
            handles = _watch_output(backbone, layer, found) if hidden else []
            for kind, spec in layer.attentions if attention else ():
                handles += _watch_attention(backbone, layer.site(kind), spec, found)
            for handle in handles:
                stack.callback(handle.remove)
        yield found


def _watch_output(backbone: nn.Module, layer: LayerSpec, found: Recording) -> list[Any]:
    place = layer.stream, layer.index

    def note(tensor: Tensor) -> None:
        found.hidden[place] = tensor

    if layer.output_of:
        module = backbone.get_submodule(layer.output_of)
        return [module.register_forward_hook(lambda module, inputs, output: note(output))]
    if layer.input_of:
        module = backbone.get_submodule(layer.input_of)
        return [module.register_forward_pre_hook(lambda module, inputs: note(inputs[0]))]
    raise UserError(
        f"the backbone does not say where the output of layer {layer.stream}.{layer.index} is",
        where="strategy.teacher.hidden",
        hint="0 does without; LayerSpec has output_of and input_of for it",
    )


def _watch_attention(backbone: nn.Module, site: Site, spec: AttentionSpec, found: Recording) -> list[Any]:
    module: Any = backbone.get_submodule(spec.path)

    def note(store: dict[str, Tensor], split: Callable[[Tensor], Tensor], *args: Any) -> None:
        store[site.name] = split(args[-1]).transpose(1, 2)

    def hook(linear: nn.Module, store: dict[str, Tensor], split: Callable[[Tensor], Tensor]) -> Any:
        return linear.register_forward_hook(partial(note, store, split))

    if hasattr(module, "qkv"):  # a ViT's: one linear layer for all three
        return [
            hook(module.qkv, store, partial(_part_of_fused, number, spec, getattr(module, norm, None)))
            for number, (store, norm) in enumerate(((found.queries, "q_norm"), (found.keys, "k_norm")))
        ]
    if hasattr(module, "self0"):  # BLIP's for two images
        inner = module.self1 if site.kind == CROSS_HEAD_1 else module.self0
    else:
        inner = getattr(module, "self", None)
    if not hasattr(inner, "query") or not hasattr(inner, "key"):
        raise UserError(
            f"the attention of {spec.path} ({type(module).__name__}) has no query and key to compare",
            where="strategy.teacher.attention",
            hint="0 does without",
        )
    split = partial(_heads, spec)
    return [hook(inner.query, found.queries, split), hook(inner.key, found.keys, split)]


def _heads(spec: AttentionSpec, x: Tensor) -> Tensor:
    """(R, N, H E) to (R, N, H, E)."""
    return x.unflatten(-1, (spec.heads, spec.head_dim))


def _part_of_fused(number: int, spec: AttentionSpec, norm: nn.Module | None, x: Tensor) -> Tensor:
    """Queries (0) or keys (1) of a fused projection, normalised where the host does so."""
    part = x.unflatten(-1, (3, spec.heads, spec.head_dim))[..., number, :, :]
    return part if norm is None else norm(part)

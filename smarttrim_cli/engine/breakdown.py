"""Where the time of a forward pass goes: by part of the work, and by layer.

A stopwatch runs through an instrumented pass; what it shows is charged to one part at a time, so the parts
add up to the whole. Hooks on the host's modules and wrappers around the few functions that trimming adds tell
it where the pass is. They cost about a microsecond each, some hundred times per pass, which is why latency
itself is measured without them. On a GPU the stopwatch waits for the device at every change: parts are then
real, but the whole is slower than an uninstrumented pass.

- ``trimmers``: scoring, and fusing of dropped tokens;
- ``gathers``: what removal costs otherwise: selecting and laying out tokens, taking the rows of kept heads
  out of the weights, bookkeeping; cached keys of decoders, in either mode;
- ``attention``: scaled dot products;
- ``projections``: linear layers of attention modules;
- ``mlps``: feed-forward blocks, their norm included where it is part of them (BERT);
- ``rest``: embeddings, norms, residuals, heads of the model.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from smarttrim_cli.engine.devices import synchronize
from smarttrim_cli.pruning import attention, projections
from smarttrim_cli.pruning.context import ForwardContext
from smarttrim_cli.pruning.decoder import Decoder
from smarttrim_cli.pruning.joint_mlps import JointMlps
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.pruning.sites import Architecture, Site
from smarttrim_cli.pruning.static_heads import StaticHeads
from smarttrim_cli.tasks.base import Batch

PARTS = TRIMMERS, GATHERS, ATTENTION, PROJECTIONS, MLPS, REST = (
    "trimmers",
    "gathers",
    "attention",
    "projections",
    "mlps",
    "rest",
)
INSTANCES = 6
REPEATS = 3

Place = tuple[str, int]
"""Stream and layer."""

Times = dict[tuple[str, "Place | None"], float]
"""Seconds by part and place; None for what belongs to no layer."""


class Stopwatch:
    """Charges the time that passes to one part and place.

    Args:
        synchronize: Waits for work under way, before the clock is read.
    """

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self._synchronize = synchronize
        self._parts = [REST]
        self.place: Place | None = None
        self._last = 0.0
        self.times: Times = defaultdict(float)

    def time(self, run: Callable[[], Any]) -> Times:
        """Times of one run."""
        self.times, self._parts, self.place = defaultdict(float), [REST], None
        self._synchronize()
        self._last = time.perf_counter()
        run()
        self._tick()
        return dict(self.times)

    def _tick(self) -> None:
        self._synchronize()
        now = time.perf_counter()
        self.times[self._parts[-1], self.place] += now - self._last
        self._last = now

    def at(self, place: Place | None) -> None:
        """From now on we are in another layer, or in none."""
        if place != self.place:
            self._tick()
            self.place = place

    def enter(self, part: str) -> None:
        """From now on it is another part's time, until it is left."""
        self._tick()
        self._parts.append(part)

    def leave(self) -> None:
        """It is the time of the part before again."""
        self._tick()
        self._parts.pop()


def breakdown(
    model: TrimmedModel, data: Sequence[Batch], modes: Sequence[str], device: torch.device
) -> dict[str, Times]:
    """Seconds per forward pass by part and place, of every mode: means over the first batches of some data.

    Of several runs of a batch the median is taken, of every part and place by itself.
    """
    sums: dict[str, Times] = {mode: defaultdict(float) for mode in modes}
    data = data[:INSTANCES]
    watch = Stopwatch(lambda: synchronize(device))
    with watched(model, watch):
        for batch in data:
            for mode in modes:
                runs = [
                    watch.time(partial(model, batch.inputs, mode, instance_ids=batch.instance_ids))
                    for _ in range(REPEATS)
                ]
                for key in set().union(*runs):
                    sums[mode][key] += median(run.get(key, 0.0) for run in runs) / len(data)
    return {mode: dict(times) for mode, times in sums.items()}


def by_part(times: Times) -> dict[str, float]:
    """Milliseconds of every part."""
    return {part: 1e3 * sum(seconds for (own, _), seconds in times.items() if own == part) for part in PARTS}


def by_place(times: Times) -> dict[Place, float]:
    """Milliseconds of every layer that ran."""
    sums: dict[Place, float] = defaultdict(float)
    for (_, place), seconds in times.items():
        if place is not None:
            sums[place] += 1e3 * seconds
    return dict(sums)


# --- telling the stopwatch where the pass is ---


@contextmanager
def watched(model: TrimmedModel, watch: Stopwatch) -> Iterator[None]:
    """Hooks and wrappers, for a while."""
    with ExitStack() as stack:
        for handle in _hooks(model, watch):
            stack.callback(handle.remove)
        for owner, name, wrapper in _wrappers(model, watch):
            stack.callback(_replace(owner, name, wrapper))
        yield


def _replace(owner: Any, name: str, wrapper: Callable[[Any], Any]) -> Callable[[], None]:
    """Put a wrapper around an attribute; returns what undoes it."""
    own = name in vars(owner)
    before = getattr(owner, name)
    setattr(owner, name, wrapper(before))
    return lambda: setattr(owner, name, before) if own else delattr(owner, name)


def _wrappers(
    model: TrimmedModel, watch: Stopwatch
) -> Iterator[tuple[Any, str, Callable[[Any], Callable[..., Any]]]]:
    """Owner, name and wrapper of every function that is no module."""
    yield F, "scaled_dot_product_attention", _timed(watch, ATTENTION)
    varlen = getattr(torch.nn.attention, "varlen", None)
    if varlen is not None:
        yield varlen, "varlen_attn", _timed(watch, ATTENTION)
    for name in ("part_of_linear", "joined_linear"):
        yield projections, name, _timed(watch, PROJECTIONS)
    yield StaticHeads, "through", _timed(watch, PROJECTIONS)
    yield attention, "packed_attention", _timed(watch, GATHERS)
    for name in ("trim", "copy_of"):
        yield ForwardContext, name, _timed(watch, GATHERS)
    for name in ("enter", "leave"):
        yield ForwardContext, name, _timed(watch, GATHERS, lambda *_: None)
    for name in ("_decide_heads", "_trim_tokens", "_prepare_attention"):
        yield ForwardContext, name, _timed(watch, GATHERS, lambda _, spec, *__: (spec.stream, spec.index))
    for name in ("begin_layer", "self_attention", "cross_attention"):
        yield Decoder, name, _timed(watch, GATHERS, lambda self, index, *_: (self.stream, index))
    for name in ("advance", "reorder", "expand"):
        yield Decoder, name, _timed(watch, GATHERS)
    for name in ("outputs", "token_scores"):  # prepared models run their trimmers' layers together
        yield JointMlps, name, _timed(watch, TRIMMERS)
    for site, trimmer in model.sites.items():
        if trimmer.rewrites:
            yield trimmer, "rewrite", _timed(watch, TRIMMERS, _site_place(Site.parse(site)))


def _timed(
    watch: Stopwatch, part: str, place: Callable[..., Place | None] | None = None
) -> Callable[[Any], Callable[..., Any]]:
    """A wrapper for functions that are a part; ``place`` finds the layer in the arguments, None: the same."""

    def wrapper(function: Any) -> Callable[..., Any]:
        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if place is not None:
                watch.at(place(*args))
            watch.enter(part)
            out = function(*args, **kwargs)
            watch.leave()
            return out

        return timed

    return wrapper


def _site_place(site: Site) -> Callable[..., Place]:
    return lambda *_: (site.stream, site.layer)


def _hooks(model: TrimmedModel, watch: Stopwatch) -> Iterator[Any]:
    for name, trimmer in model.sites.items():
        place = _site_place(Site.parse(name))()
        yield from _hook(trimmer, watch, TRIMMERS, _arrival(watch, [place]))
    layers = layer_modules(model.architecture)
    attentions = {spec.path for layer in model.architecture.layers for _, spec in layer.attentions}
    inside_mlp: tuple[str, ...] = ()
    for path, module in model.backbone.named_modules():
        if path.startswith(inside_mlp):
            continue
        prefix = next((found for found in _ancestors(path) if found in layers), None)
        if prefix is not None and _is_mlp(path, prefix, module, attentions):
            inside_mlp = (*inside_mlp, f"{path}.")
            yield from _hook(module, watch, MLPS, _arrival(watch, layers[prefix]))
        elif not any(module.children()) and not isinstance(module, nn.Identity | nn.Dropout):
            in_attention = any(found in attentions for found in _ancestors(path))
            part = PROJECTIONS if in_attention and isinstance(module, nn.Linear) else REST
            places = [] if prefix is None else layers[prefix]
            yield from _hook(module, watch, part, _arrival(watch, places))


def _hook(module: nn.Module, watch: Stopwatch, part: str, arrive: Callable[[], None]) -> Iterator[Any]:
    def before(*_: Any) -> None:
        arrive()
        watch.enter(part)

    yield module.register_forward_pre_hook(before)
    yield module.register_forward_hook(lambda *_: watch.leave())


def _arrival(watch: Stopwatch, places: Sequence[Place]) -> Callable[[], None]:
    """What to do when a module starts that belongs to a layer, or to none.

    Some modules are run by two streams (BLIP's text encoder also reads the question for guidance): where a
    context has already said which of their layers is next, it knows better.
    """

    def arrive() -> None:
        if watch.place not in places:
            watch.at(places[0] if places else None)

    return arrive


def layer_modules(architecture: Architecture) -> dict[str, list[Place]]:
    """Module path of every layer and its places; those that mode ``full`` runs too come first."""
    found: dict[str, list[Place]] = {}
    for layer in sorted(architecture.layers, key=lambda layer: layer.stream in architecture.overhead):
        path = layer.self_attention.path
        numbered = re.match(r"(.*\.\d+)\.", path)
        found.setdefault(numbered[1] if numbered else path.rpartition(".")[0], []).append(
            (layer.stream, layer.index)
        )
    return found


def _ancestors(path: str) -> Iterator[str]:
    """A module path and those it is below of, innermost first."""
    while path:
        yield path
        path = path.rpartition(".")[0]


def _is_mlp(path: str, layer: str, module: nn.Module, attentions: set[str]) -> bool:
    """Whether it is a direct child of a layer with linear layers that are no attention's."""
    if path.rpartition(".")[0] != layer or not _linear_inside(module):
        return False
    return not any(other == path or other.startswith(f"{path}.") for other in attentions)


def _linear_inside(module: nn.Module) -> bool:
    return any(isinstance(inner, nn.Linear) for inner in module.modules())

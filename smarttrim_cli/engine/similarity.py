"""Redundancy of the full model: how alike the tokens and the attention heads of every layer are.

Source: section 3.2 and appendix A of the paper. Tokens X (N, D): mean over pairs of cos(X_i, X_j). Heads A
(H, N, M): mean over pairs of heads and over queries k of cos(A_i^k, A_j^k). No pair is formed: for unit
vectors u the mean over pairs is (|sum u|^2 - sum |u|^2) / (n (n - 1)).

The model runs in mode ``masked`` without trimmers, which is the full model (a contract), because then
streams, padding and layers are known by name. Of an encoder's last layer the tokens are taken before the
norm that ends the encoder, so that all layers show the same thing. What generates text is not measured: its
first layer ends the pass.

Legend: R rows (instance after instance), B instances, N tokens or queries, M keys, H heads, D width, E head
width, n vectors.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from smarttrim_cli.engine.artifact import Bundle
from smarttrim_cli.engine.figures.collect import batches_of, layer_labels
from smarttrim_cli.engine.figures.data import LayerSimilarity
from smarttrim_cli.pruning.attention import AttentionState
from smarttrim_cli.pruning.context import ForwardContext, running
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.pruning.sites import TOKEN, Architecture, Site
from smarttrim_cli.pruning.stream import MaskedStream

_WEIGHTS_AT_ONCE = 2**24
"""Attention weights that are in memory at a time, where there are several rows."""


def pairwise_cosine(vectors: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean cosine over the pairs of some vectors: (..., n, D) to (...); NaN where there is no pair.

    Args:
        vectors: The vectors.
        valid: (..., n), False on those that do not count.
    """
    units = F.normalize(vectors.float(), dim=-1)
    if valid is None:
        number: Any = units.shape[-2]
    else:
        units = units.masked_fill(~valid[..., None], 0.0)
        number = valid.sum(-1)
    together, alone = units.sum(-2).square().sum(-1), units.square().sum((-2, -1))
    return (together - alone) / (number * (number - 1))


def head_cosine(q_RHNE: Tensor, k_RHME: Tensor, seen: Tensor, scale: float, valid_RN: Tensor) -> Tensor:
    """Mean cosine over pairs of heads of their attention to the same keys, mean over queries: (R,).

    Args:
        q_RHNE: Queries.
        k_RHME: Keys.
        seen: Boolean (R, 1, 1, M), False on keys that are padding.
        scale: Of the logits.
        valid_RN: False on queries that are padding.
    """
    rows, heads, queries, _ = q_RHNE.shape
    step = max(1, _WEIGHTS_AT_ONCE // (heads * queries * k_RHME.shape[2]))
    parts = []
    for start in range(0, rows, step):
        some = slice(start, start + step)
        logits_RHNM = (q_RHNE[some].float() * scale) @ k_RHME[some].float().transpose(-1, -2)
        weights_RHNM = logits_RHNM.masked_fill(~seen[some], -math.inf).softmax(-1)
        alike_RN = pairwise_cosine(weights_RHNM.transpose(1, 2))
        counted_RN = valid_RN[some].to(alike_RN.dtype)
        parts.append((alike_RN * counted_RN).sum(-1) / counted_RN.sum(-1))
    return torch.cat(parts)


# --- one pass ---


class _Finished(Exception):
    """All that is measured has been seen."""


class _Attention(dict[str, AttentionState]):
    """What attention modules look up right before they attend; remembers the last site looked up."""

    last: str | None = None

    def __getitem__(self, site: str) -> AttentionState:
        self.last = site
        return super().__getitem__(site)

    def taken(self) -> tuple[str, AttentionState] | None:
        """The site that attends now with its state; None for attention that is at no site."""
        name, self.last = self.last, None
        return None if name is None else (name, super().__getitem__(name))


@dataclass
class _Watch(ForwardContext):
    """A pass that measures what flows by.

    Attributes:
        similarity: Site name to similarity per instance, (B,): of a ``token`` site the tokens behind that
            layer, of the others the heads.
        running_layer: Stream to the layer whose output has not come yet.
    """

    attention: _Attention = field(default_factory=_Attention)
    similarity: dict[str, Tensor] = field(default_factory=dict)
    running_layer: dict[str, int] = field(default_factory=dict)

    def trim(self, layers: Mapping[str, tuple[int, Tensor]]) -> dict[str, Tensor]:
        """What comes to a layer has passed the one before."""
        for stream, (index, hidden) in layers.items():
            self.passed(stream, hidden)
            self.running_layer[stream] = index
        return super().trim(layers)

    def leave(self, stream: str, hidden: Tensor, cls: bool = True) -> Tensor:
        """What leaves has passed the last layer."""
        self.passed(stream, hidden)
        return super().leave(stream, hidden, cls)

    def decoder_heads(self, stream: str, index: int, cls_BD: Tensor) -> dict[str, Tensor | None]:
        """A decoder begins."""
        raise _Finished

    def passed(self, stream: str, hidden_RND: Tensor) -> None:
        """Measure the tokens behind the layer that was running, if they have not been."""
        index = self.running_layer.pop(stream, None)
        if index is not None:
            self._note(Site(stream, index, TOKEN), pairwise_cosine(hidden_RND, self.valid[stream]))

    def before_norm(self, hidden: Tensor) -> None:
        """What comes to a norm that ends an encoder."""
        for stream in list(self.running_layer):
            if hidden.shape[:2] == self.valid[stream].shape:
                self.passed(stream, hidden)

    def attend(self, args: Any, options: Mapping[str, Any]) -> None:
        """Measure the heads of the attention that is about to run, if it is ours, at a site."""
        taken = self.attention.taken()
        if taken is not None:
            name, state = taken
            assert isinstance(state.query, MaskedStream)
            q_RHNE, k_RHME = args[:2]
            like = q_RHNE, k_RHME, options["attn_mask"], options["scale"], state.query.valid_BN
            self._note(Site.parse(name), head_cosine(*like))

    def _note(self, site: Site, similarity_R: Tensor) -> None:
        if site.stream not in self.architecture.overhead:
            rows_BR = similarity_R.unflatten(0, (-1, self.copies.get(site.stream, 1)))
            self.similarity[site.name] = rows_BR.nanmean(1)


class _SeeAttention(TorchFunctionMode):
    """Shows a pass the queries and keys of every attention, as they are handed to the fused kernel."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self.watch.attend(args, kwargs)
        return func(*args, **kwargs)


@torch.no_grad()
def similarity_of(model: TrimmedModel, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Similarities in the full model for one batch; the model should be in evaluation mode.

    Args:
        model: A model; its trimmers stay out of it.
        inputs: Keyword arguments of the backbone's forward.

    Returns:
        Site name to (B,): of a ``token`` site the tokens behind that layer, of the other kinds the heads of
        that attention; the mean over the rows of an instance, NaN where there is no pair.
    """
    watch = _Watch("masked", model.architecture, {})
    with running(watch), _watching_norms(model, watch), _SeeAttention(watch), suppress(_Finished):
        model.backbone(**inputs)
    return watch.similarity


@contextmanager
def _watching_norms(model: TrimmedModel, watch: _Watch) -> Iterator[None]:
    """Norms outside the layers show their input."""
    layers = tuple(spec.self_attention.path.rpartition(".")[0] + "." for spec in model.architecture.layers)
    with ExitStack() as stack:
        for name, module in model.backbone.named_modules():
            if isinstance(module, nn.LayerNorm) and not name.startswith(layers):
                handle = module.register_forward_pre_hook(lambda _, args: watch.before_norm(args[0]))
                stack.callback(handle.remove)
        yield


# --- many instances ---


def measure(
    bundle: Bundle, dataset: Any, indices: Sequence[int], batch_size: int, done: Callable[[int], None]
) -> list[LayerSimilarity]:
    """Token and head similarity of every layer, with their spread over instances.

    Args:
        bundle: The model with its task.
        dataset: Samples of a split.
        indices: Which of them.
        batch_size: Instances at a time.
        done: Told how many have been dealt with.

    Returns:
        Tokens, then heads, each in the order of the layers.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for _, batch in batches_of(bundle, dataset, indices, batch_size, done):
        for name, similarity_B in similarity_of(bundle.model, batch.inputs).items():
            values[name] += similarity_B.tolist()
    return summarised(bundle.model.architecture, values)


def summarised(architecture: Architecture, values: Mapping[str, Iterable[float]]) -> list[LayerSimilarity]:
    """Mean and spread per layer; instances without a pair do not count, nor do layers without an instance."""
    labels = {stream: layer_labels(architecture, stream) for stream in architecture.streams}
    found = []
    for site in sorted(map(Site.parse, values), key=lambda site: site.kind != TOKEN):
        known = np.array([value for value in values[site.name] if not math.isnan(value)])
        if len(known):
            low, middle, high = np.percentile(known, (10, 50, 90)).tolist()
            spread = float(known.std(ddof=1)) if len(known) > 1 else 0.0
            found.append(
                LayerSimilarity(
                    site.stream,
                    site.layer,
                    *labels[site.stream][site.layer],
                    site.kind,
                    float(known.mean()),
                    spread,
                    low,
                    middle,
                    high,
                    len(known),
                )  # fmt: skip
            )
    return found


def as_json(found: Sequence[LayerSimilarity], split: str, instances: int) -> dict[str, Any]:
    """What ``similarity.json`` holds: entries of ``tokens`` and of ``heads``, one per layer and attention."""
    entries = [asdict(layer) for layer in found]
    tokens = [entry for entry in entries if entry["kind"] == TOKEN]
    heads = [entry for entry in entries if entry["kind"] != TOKEN]
    return {"model": "full", "split": split, "instances": instances, "tokens": tokens, "heads": heads}

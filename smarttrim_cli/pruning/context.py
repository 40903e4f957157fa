"""One forward context per pass: streams, CLS vectors, decisions.

Backbones call ``enter``, ``trim`` and ``leave``. Without a context (mode ``full``) these return their input:
the host model runs as it is. The two streams of a co-attention layer are trimmed in one call, before either
side runs, since each attends to the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from smarttrim_cli.pruning.attention import AttentionState
from smarttrim_cli.pruning.decisions import Decisions, keep_grid, unpack
from smarttrim_cli.pruning.gumbel import gumbel_sigmoid, hard_mask, logistic_noise, straight_through
from smarttrim_cli.pruning.sites import CROSS_HEAD, SELF_HEAD, TOKEN, Architecture, LayerSpec, Site
from smarttrim_cli.pruning.stream import (
    MaskedStream,
    PackedStream,
    Stream,
    begin_masked,
    begin_packed,
    with_keep,
)
from smarttrim_cli.trimmers.base import TokenView

_current: ContextVar[ForwardContext | None] = ContextVar("smarttrim_forward", default=None)


@dataclass(frozen=True)
class Sampling:
    """How scores become decisions while training.

    Attributes:
        temperature: tau of Eq. 8.
        noise: Share of the Gumbel noise, 0 (none) to 1 (Eq. 8).
    """

    temperature: float = 1.0
    noise: float = 1.0


@dataclass
class ForwardContext:
    """Everything one trimmed forward pass carries.

    Attributes:
        mode: ``masked`` or ``packed``.
        architecture: Layers and sites of the backbone.
        trimmers: Site name to trimmer; sites without one keep everything.
        threshold: Logit above which a token or head is kept; the one place where budgets are calibrated.
        sampling: Straight-through training; None takes deterministic decisions.
        replay: Decisions to repeat instead of asking the trimmers.
        instance_ids_B: Identity of the instances, for trimmers that draw at random.
        log_scores: Keep the scores of every site in the decisions.

    What was decided is only noted while running; :meth:`decisions` lays it out afterwards, so that a forward
    whose decisions nobody reads pays nothing for them.
    """

    mode: str
    architecture: Architecture
    trimmers: Mapping[str, Any]
    threshold: float = 0.0
    sampling: Sampling | None = None
    replay: Decisions | None = None
    instance_ids_B: Tensor | None = None
    log_scores: bool = False
    streams: dict[str, Stream] = field(default_factory=dict)
    cls: dict[str, Tensor] = field(default_factory=dict)
    attention: dict[str, AttentionState] = field(default_factory=dict)
    valid: dict[str, Tensor] = field(default_factory=dict)
    token_log: dict[str, Stream] = field(default_factory=dict)
    head_log: dict[str, Tensor | None] = field(default_factory=dict)
    score_log: dict[str, tuple[Stream | None, Tensor]] = field(default_factory=dict)

    # --- what backbones call (through the module-level functions) ---

    def enter(self, stream: str, hidden_BND: Tensor, valid_BN: Tensor | None) -> Tensor:
        """Start a stream; in ``packed`` mode its padding goes away."""
        if valid_BN is None:
            valid_BN = torch.ones(hidden_BND.shape[:2], dtype=torch.bool, device=hidden_BND.device)
        valid_BN = valid_BN.bool()
        self.valid[stream] = valid_BN
        if self.mode == "masked":
            self.streams[stream] = begin_masked(valid_BN)
            return hidden_BND
        self.streams[stream], index_T = begin_packed(valid_BN)
        return hidden_BND.flatten(0, 1)[index_T].unsqueeze(0)

    def trim(self, layers: Mapping[str, tuple[int, Tensor]]) -> dict[str, Tensor]:
        """Decide and apply the sites at the input of the layers that run next."""
        for stream, (_, hidden) in layers.items():
            self.cls[stream] = self.streams[stream].cls_BD(hidden)
        heads = {s: self._decide_heads(self.architecture.layer(s, i)) for s, (i, _) in layers.items()}
        trimmed = {
            s: self._trim_tokens(self.architecture.layer(s, i), hidden) for s, (i, hidden) in layers.items()
        }
        for stream, (index, _) in layers.items():
            self._prepare_attention(self.architecture.layer(stream, index), heads[stream])
        return trimmed

    def leave(self, stream: str, hidden: Tensor) -> Tensor:
        """CLS of every instance after the last layer of a part, (B, D); remembered as guidance."""
        self.cls[stream] = self.streams[stream].cls_BD(hidden)
        return self.cls[stream]

    # --- decisions ---

    def _guide(self, spec: LayerSpec) -> Tensor | None:
        return None if spec.guide is None else self.cls[spec.guide]

    def _trim_tokens(self, spec: LayerSpec, hidden: Tensor) -> Tensor:
        site = Site(spec.stream, spec.index, TOKEN)
        stream = self.streams[spec.stream]
        trimmer = self.trimmers.get(site.name)
        if trimmer is not None:
            stream, hidden = self._apply(site, trimmer, spec, stream, hidden)
            self.streams[spec.stream] = stream
        self.token_log[site.name] = stream
        return hidden

    def _apply(
        self, site: Site, trimmer: Any, spec: LayerSpec, stream: Stream, hidden: Tensor
    ) -> tuple[Stream, Tensor]:
        if self.replay is not None:
            replayed = self.replay.keep[site.name]
            if isinstance(stream, MaskedStream):
                return with_keep(stream, replayed.to(hidden.dtype)), hidden
            kept_T = replayed[stream.segment_T, stream.positions_T]
            return _drop(stream, hidden, kept_T)
        view = TokenView(hidden, self.cls[spec.stream], self._guide(spec), stream, self._ids(stream))
        scores = trimmer(view)
        if self.log_scores:
            self.score_log[site.name] = (stream, scores.detach())
        if isinstance(stream, MaskedStream):
            return with_keep(stream, self._decide(scores, trimmer.draws)), hidden
        return _drop(stream, hidden, hard_mask(scores[0], self.threshold))

    def _decide_heads(self, spec: LayerSpec) -> dict[str, Tensor | None]:
        kept: dict[str, Tensor | None] = {}
        for kind, attention in ((SELF_HEAD, spec.self_attention), (CROSS_HEAD, spec.cross_attention)):
            site = Site(spec.stream, spec.index, kind)
            if attention is None:
                continue
            kept[kind] = self.head_log[site.name] = self._keep_heads(site, spec)
        return kept

    def _keep_heads(self, site: Site, spec: LayerSpec) -> Tensor | None:
        if site.name not in self.trimmers:
            return None
        if self.replay is not None:
            return self.replay.keep[site.name].float()
        scores_BH = self.trimmers[site.name](self.cls[spec.stream], self._guide(spec), self._ids(None))
        if self.log_scores:
            self.score_log[site.name] = (None, scores_BH.detach())
        return self._decide(scores_BH, self.trimmers[site.name].draws)

    def _decide(self, scores: Tensor, drawn: bool) -> Tensor:
        """The one place where a score becomes a float keep mask; draws get no further noise."""
        if self.sampling is None:
            return hard_mask(scores, self.threshold).to(scores.dtype)
        noisy = self.sampling.noise > 0 and not drawn
        noise = self.sampling.noise * logistic_noise(scores) if noisy else 0.0
        return straight_through(gumbel_sigmoid(scores - self.threshold, self.sampling.temperature, noise))

    def _ids(self, stream: Stream | None) -> Tensor:
        ids_B = self.instance_ids_B
        if ids_B is None:
            some = next(iter(self.cls.values()))
            ids_B = torch.zeros(some.shape[0], dtype=torch.long, device=some.device)
        return ids_B if stream is None else stream.spread_scalar(ids_B)

    def _prepare_attention(self, spec: LayerSpec, heads: Mapping[str, Tensor | None]) -> None:
        own = self.streams[spec.stream]
        for kind, attention in ((SELF_HEAD, spec.self_attention), (CROSS_HEAD, spec.cross_attention)):
            if attention is None:
                continue
            memory = self.streams[attention.memory_stream] if attention.memory_stream else own
            name = Site(spec.stream, spec.index, kind).name
            mask = heads[kind]
            keep_heads = host_heads(mask) if self.mode == "packed" and mask is not None else None
            self.attention[name] = AttentionState(own, memory, mask, keep_heads)

    # --- what was decided, afterwards ---

    def decisions(self) -> Decisions:
        """The log of the pass in original positions."""
        out = Decisions(valid=dict(self.valid))
        for name, stream in self.token_log.items():
            out.keep[name] = keep_grid(stream)
            out.counts[name] = stream.counts_B()
        for name, mask_BH in self.head_log.items():
            if mask_BH is None:
                mask_BH = self._every_head(Site.parse(name))
            out.keep[name] = mask_BH.detach() > 0.5
            out.counts[name] = mask_BH.sum(1)
        for name, (scored, scores) in self.score_log.items():
            if isinstance(scored, PackedStream):
                scores = unpack(scored, scores[0], float("nan"))
            out.scores[name] = scores
        return out

    def _every_head(self, site: Site) -> Tensor:
        spec = self.architecture.layer(site.stream, site.layer)
        attention = spec.self_attention if site.kind == SELF_HEAD else spec.cross_attention
        assert attention is not None
        return self.cls[site.stream].new_ones(self.cls[site.stream].shape[0], attention.heads)


def host_heads(mask_BH: Tensor) -> tuple[tuple[int, ...] | None, ...] | None:
    """Indices of kept heads per instance, on the host; None for "all", as an item or as a whole."""
    rows = (mask_BH > 0.5).tolist()
    kept = tuple(None if all(row) else tuple(h for h, on in enumerate(row) if on) for row in rows)
    return None if all(row is None for row in kept) else kept


def _drop(stream: PackedStream, hidden_1TD: Tensor, keep_T: Tensor) -> tuple[PackedStream, Tensor]:
    kept = keep_T.clone()
    kept[stream.starts_B] = True
    stream, index_K = stream.select(kept)
    return stream, hidden_1TD[:, index_K]


def current() -> ForwardContext | None:
    """The context of the running forward pass, None in mode ``full``."""
    return _current.get()


@contextmanager
def running(context: ForwardContext) -> Iterator[ForwardContext]:
    """Make a context the current one."""
    token = _current.set(context)
    try:
        yield context
    finally:
        _current.reset(token)


def enter(stream: str, hidden_BND: Tensor, valid_BN: Tensor | None = None) -> Tensor:
    """Start a stream. Identity without a context."""
    context = _current.get()
    return hidden_BND if context is None else context.enter(stream, hidden_BND, valid_BN)


def trim(**layers: tuple[int, Tensor]) -> tuple[Tensor, ...]:
    """Hidden states of some streams, trimmed at the input of their next layers.

    Args:
        layers: Stream to (layer index, hidden states), as in ``x, y = trim(text=(7, x), vision=(12, y))``.
    """
    context = _current.get()
    if context is None:
        return tuple(hidden for _, hidden in layers.values())
    return tuple(context.trim(layers).values())


def leave(stream: str, hidden: Tensor) -> Tensor:
    """CLS vectors (B, D) of a stream, also remembered as guidance for the other one."""
    context = _current.get()
    return hidden[:, 0] if context is None else context.leave(stream, hidden)

"""One forward context per pass: streams, CLS vectors, decisions.

Backbones call ``enter``, ``trim`` and ``leave``. Without a context (mode ``full``) these return their input:
the host model runs as it is. The two streams of a co-attention layer are trimmed in one call, before either
side runs, since each attends to the other.

A stream has one row per instance, or several (``copies``), instance after instance: two images, or the texts
that one image is compared with.
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
from smarttrim_cli.pruning.decision_log import DecisionLog
from smarttrim_cli.pruning.decisions import Decisions
from smarttrim_cli.pruning.gumbel import Sampling, hard_mask, keep_mask, noisy
from smarttrim_cli.pruning.joint_mlps import JointMlps
from smarttrim_cli.pruning.packed_attention import heads_matter
from smarttrim_cli.pruning.sites import TOKEN, Architecture, AttentionSpec, LayerSpec, Site
from smarttrim_cli.pruning.static_heads import StaticDecision, StaticHeads, StaticHeadsOf
from smarttrim_cli.pruning.stream import (
    MaskedStream,
    PackedStream,
    Stream,
    begin_masked,
    begin_packed,
    with_keep,
)
from smarttrim_cli.trimmers.base import TokenView

HostHeads = tuple[tuple[int, ...] | None, ...] | None
"""Kept heads per instance, on the host; None for "all", as an item or as a whole."""

_current: ContextVar[ForwardContext | None] = ContextVar("smarttrim_forward", default=None)


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
        log_scores: Keep the scores of every site in the decisions, in training with their noise.
        rounded: Round packed tokens up, see :class:`PackedStream`.
        joint: Runs the MLPs of a layer's trimmers as one; None runs each trimmer by itself.
        static: Weights of heads that are the same for all instances.
        copies: Rows per instance of every stream.
        repeated: Rows that stand for one that was paid for, while several texts look at one image.
        work: What decoders have done, per instance.
        log: What was decided; :meth:`decisions` lays it out afterwards.
        steady: Decisions of this pass that stand whatever the instances are.
    """

    mode: str
    architecture: Architecture
    trimmers: Mapping[str, Any]
    threshold: float = 0.0
    sampling: Sampling | None = None
    replay: Decisions | None = None
    instance_ids_B: Tensor | None = None
    log_scores: bool = False
    rounded: bool = False
    joint: JointMlps | None = None
    static: StaticHeadsOf | None = None
    from_cls: dict[str, Tensor] = field(default_factory=dict)
    streams: dict[str, Stream] = field(default_factory=dict)
    cls: dict[str, Tensor] = field(default_factory=dict)
    attention: dict[str, AttentionState] = field(default_factory=dict)
    valid: dict[str, Tensor] = field(default_factory=dict)
    copies: dict[str, int] = field(default_factory=dict)
    repeated: dict[str, int] = field(default_factory=dict)
    work: dict[str, Tensor] = field(default_factory=dict)
    log: DecisionLog = field(default_factory=DecisionLog)
    steady: dict[str, StaticDecision] = field(default_factory=dict)

    # --- what backbones call (through the module-level functions) ---

    def enter(
        self, stream: str, hidden_BND: Tensor, valid_BN: Tensor | None, copies: int = 1, cls: bool = True
    ) -> Tensor:
        """Start a stream; in ``packed`` mode its padding goes away."""
        if valid_BN is None:
            valid_BN = torch.ones(hidden_BND.shape[:2], dtype=torch.bool, device=hidden_BND.device)
        valid_BN = valid_BN.bool()
        self.valid[stream], self.copies[stream] = valid_BN, copies
        if self.mode == "masked":
            limit = 1.0 if self.sampling is None else self.sampling.gradient_scale
            self.streams[stream] = begin_masked(valid_BN, cls, limit)
            return hidden_BND
        self.streams[stream], index_T = begin_packed(valid_BN, cls, self.rounded)
        return hidden_BND.flatten(0, 1).index_select(0, index_T).unsqueeze(0)

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

    def leave(self, stream: str, hidden: Tensor, cls: bool = True) -> Tensor:
        """CLS of every row after the last layer of a part, (R, D); remembered as guidance.

        Raises:
            ValueError: The stream was entered with another ``cls``, so a plain forward would differ.
        """
        if self.streams[stream].has_cls != cls:
            raise ValueError(f"stream {stream} was entered with cls={not cls} and is left with cls={cls}")
        self.cls[stream] = self.streams[stream].cls_BD(hidden)
        return self.cls[stream]

    def copy_of(self, stream: str, hidden: Tensor, copy: int, copies: int) -> Tensor:
        """Hidden states of one row of every instance."""
        source = self.streams[stream]
        return source.take(hidden, source.rows(range(copy, len(self.valid[stream]), copies))[1])

    def decoder_heads(self, stream: str, index: int, cls_BD: Tensor) -> dict[str, Tensor | None]:
        """Keep masks (B, H) of a decoder layer's attentions, taken once for all rows and steps."""
        self.cls[stream] = cls_BD
        self.copies.setdefault(stream, 1)
        return self._decide_heads(self.architecture.layer(stream, index))

    def note_work(self, **amounts: Tensor) -> None:
        """Add what a decoder did, per instance, (B,)."""
        for name, amount_B in amounts.items():
            self.work[name] = self.work[name] + amount_B if name in self.work else amount_B

    # --- decisions ---

    def _guide(self, spec: LayerSpec) -> Tensor | None:
        """The other stream's CLS for every row of a layer's stream."""
        if spec.guide is None:
            return None
        cls_GD = self.cls[spec.guide]
        own, guide = self._copies(spec.stream), self._copies(spec.guide)
        if own == guide:
            return cls_GD
        per_instance_BD = cls_GD.unflatten(0, (-1, guide)).mean(1) if guide > 1 else cls_GD
        return per_instance_BD.repeat_interleave(own, 0) if own > 1 else per_instance_BD

    def _copies(self, stream: str) -> int:
        return self.copies.get(stream, 1) * self.repeated.get(stream, 1)

    def _trim_tokens(self, spec: LayerSpec, hidden: Tensor) -> Tensor:
        site = spec.site(TOKEN)
        stream = self.streams[spec.stream]
        trimmer = self.trimmers.get(site.name)
        if trimmer is not None:
            stream, hidden = self._apply(site, trimmer, spec, stream, hidden)
            self.streams[spec.stream] = stream
        self.log.tokens[site.name] = stream
        return hidden

    def _apply(
        self, site: Site, trimmer: Any, spec: LayerSpec, stream: Stream, hidden: Tensor
    ) -> tuple[Stream, Tensor]:
        source, tokens = stream, hidden
        if isinstance(stream, PackedStream) and (trimmer.relative or trimmer.rewrites):
            source, tokens = stream.without_tail(), hidden[:, : stream.total]
        ids = source.spread_scalar(self._ids(spec.stream))
        view = TokenView(tokens, self.cls[spec.stream], self._guide(spec), source, ids, self.threshold)
        decided = self._token_mask(site, trimmer, view, source)
        if isinstance(stream, MaskedStream):
            masked = with_keep(stream, decided)
            if trimmer.rewrites:
                hidden = trimmer.rewrite(view, masked.keep_BN.detach() > 0.5)
            return masked, hidden
        kept_T = decided  # a tensor of its own: compared, or taken from a grid
        if len(stream.lengths) == 1:
            kept_T[0] = True
        else:
            kept_T[stream.starts_B] = True
        packed, index_T = stream.select(kept_T)
        if index_T is None:
            return stream, hidden
        if trimmer.rewrites:
            tokens = trimmer.rewrite(view, kept_T[None])
        return packed, tokens.index_select(1, index_T)

    def _token_mask(self, site: Site, trimmer: Any, view: TokenView, stream: Stream) -> Tensor:
        """What a site decides or repeats: float straight-through (B, N), or boolean (T,) where packed."""
        if self.replay is not None:
            replayed = self.replay.keep[site.name]
            if isinstance(stream, PackedStream):
                return replayed[stream.segment_T, stream.positions_T]
            return replayed.to(view.tokens.dtype)
        scores = None
        if self.joint is not None:
            scores = self.joint.token_scores(site.name, trimmer, view, self.from_cls.get(site.name))
        if scores is None:
            scores = trimmer(view)
        scores = noisy(scores, TOKEN, self.sampling, trimmer.draws)
        if self.log_scores:
            self.log.scores[site.name] = (stream, scores.detach())
        if isinstance(stream, PackedStream):
            return hard_mask(scores[0], self.threshold)
        return keep_mask(scores, TOKEN, self.sampling, self.threshold)

    def _decide_heads(self, spec: LayerSpec) -> dict[str, Tensor | None]:
        if self.joint is not None and self.replay is None:
            sites = (spec.site(kind).name for kind in spec.kinds)
            trimmers = {name: self.trimmers[name] for name in sites if name in self.trimmers}
            self.from_cls |= self.joint.outputs(trimmers, self.cls[spec.stream], self._guide(spec))
        kept: dict[str, Tensor | None] = {}
        for kind, _ in spec.attentions:
            site = spec.site(kind)
            kept[kind] = self.log.heads[site.name] = self._keep_heads(site, spec)
        return kept

    def _keep_heads(self, site: Site, spec: LayerSpec) -> Tensor | None:
        if site.name not in self.trimmers:
            return None
        if self.replay is not None:
            return self.replay.keep[site.name].float()
        if self._stands(site.name):
            decided = self.steady[site.name] = self._static_decision(site)
            return decided.mask_1H.expand(len(self.cls[spec.stream]), -1)
        ids_R = self._ids(spec.stream)
        scores_BH = self.from_cls.get(site.name)
        if scores_BH is None:
            scores_BH = self.trimmers[site.name](self.cls[spec.stream], self._guide(spec), ids_R)
        scores_BH = noisy(scores_BH, site.kind, self.sampling, self.trimmers[site.name].draws)
        if self.log_scores:
            self.log.scores[site.name] = (None, scores_BH.detach())
        return keep_mask(scores_BH, site.kind, self.sampling, self.threshold)

    def _ids(self, stream: str) -> Tensor:
        """An identity for every row of a stream; the rows of an instance differ."""
        copies, cls_RD = self._copies(stream), self.cls[stream]
        if self.instance_ids_B is None:
            size = len(cls_RD) // copies
            self.instance_ids_B = torch.zeros(size, dtype=torch.long, device=cls_RD.device)
        ids_B = self.instance_ids_B
        if copies == 1:
            return ids_B
        return (ids_B[:, None] * copies + torch.arange(copies, device=ids_B.device)).flatten()

    def _prepare_attention(self, spec: LayerSpec, heads: Mapping[str, Tensor | None]) -> None:
        own = self.streams[spec.stream]
        for kind, attention in spec.attentions:
            memory = self._memory(attention) if attention.memory_stream else own
            name = spec.site(kind).name
            self.attention[name] = AttentionState(own, memory, *self.heads_at(name, heads[kind]))

    def heads_at(
        self, name: str, mask_RH: Tensor | None
    ) -> tuple[Tensor | None, HostHeads, StaticHeads | None]:
        """What an attention is told of the heads of its site, see :class:`AttentionState`.

        Args:
            name: Of the site.
            mask_RH: What was decided there; None keeps all.
        """
        if self.mode != "packed" or mask_RH is None:
            return mask_RH, None, None
        if name not in self.steady and not heads_matter(mask_RH.device):
            return mask_RH, None, None
        if name in self.steady:
            kept = self.steady[name].kept
            rows: HostHeads = None if kept is None else (kept,) * len(mask_RH)
        else:
            rows = host_heads(mask_RH)
        if rows is None:
            return None, None, None
        if self.static is None or not self.trimmers[name].static or len(set(rows)) > 1:
            return mask_RH, rows, None
        assert rows[0] is not None
        return mask_RH, rows, self.static.at(name, rows[0], mask_RH.device)

    def _stands(self, name: str) -> bool:
        """Whether a site's decision can be had without asking its trimmer again."""
        return (
            self.mode == "packed"
            and self.static is not None
            and self.replay is None
            and not self.log_scores
            and self.trimmers[name].static
            and not torch.jit.is_tracing()
            and not torch.compiler.is_compiling()
        )

    def _static_decision(self, site: Site) -> StaticDecision:
        assert self.static is not None
        trimmer = self.trimmers[site.name]

        def decide() -> Tensor:
            ids_1 = self._ids(site.stream)[:1]
            scores_1H = trimmer(self.cls[site.stream][:1], None, ids_1)
            return keep_mask(scores_1H, site.kind, self.sampling, self.threshold)

        return self.static.decision(site.name, trimmer, self.threshold, decide)

    def _memory(self, attention: AttentionSpec) -> Stream:
        assert attention.memory_stream is not None
        stream = self.streams[attention.memory_stream]
        if attention.memory_copy is None:
            return stream
        rows, copies = len(self.valid[attention.memory_stream]), self._copies(attention.memory_stream)
        return stream.rows(range(attention.memory_copy, rows, copies))[0]

    def decisions(self) -> Decisions:
        """The log of the pass in original positions."""
        out = self.log.laid_out(self.architecture, self.cls)
        out.valid, out.copies, out.work = dict(self.valid), dict(self.copies), dict(self.work)
        return out


def host_heads(mask_BH: Tensor) -> HostHeads:
    """Indices of kept heads per instance, on the host; None for "all", as an item or as a whole."""
    rows = mask_BH.tolist()
    kept = tuple(None if all(row) else tuple(h for h, on in enumerate(row) if on > 0.5) for row in rows)
    return None if all(row is None for row in kept) else kept


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


def enter(
    stream: str, hidden_RND: Tensor, valid_RN: Tensor | None = None, copies: int = 1, cls: bool = True
) -> Tensor:
    """Start a stream. Identity without a context.

    Args:
        stream: Its name.
        hidden_RND: Its tokens, padded.
        valid_RN: False (or 0) on padding; None without any.
        copies: Rows per instance, instance after instance.
        cls: Whether token 0 is a CLS; if not, the mean of the kept tokens serves as one.
    """
    context = _current.get()
    return hidden_RND if context is None else context.enter(stream, hidden_RND, valid_RN, copies, cls)


def trim(**layers: tuple[int, Tensor]) -> tuple[Tensor, ...]:
    """Hidden states of some streams, trimmed at the input of their next layers.

    Args:
        layers: Stream to (layer index, hidden states), as in ``x, y = trim(text=(7, x), vision=(12, y))``.
    """
    context = _current.get()
    if context is None:
        return tuple(hidden for _, hidden in layers.values())
    return tuple(context.trim(layers).values())


def leave(stream: str, hidden: Tensor, cls: bool = True, valid_RN: Tensor | None = None) -> Tensor:
    """CLS vectors (R, D) of a stream, remembered as guidance for the others.

    Args:
        stream: Its name.
        hidden: Its tokens.
        cls: As for ``enter``.
        valid_RN: As for ``enter``: without a context, the mean of a stream without a CLS leaves padding out.

    Raises:
        ValueError: ``cls`` is not as it was for ``enter``.
    """
    context = _current.get()
    if context is not None:
        return context.leave(stream, hidden, cls)
    if cls:
        return hidden[:, 0]
    if valid_RN is None:
        return hidden.mean(1)
    weights_RN1 = valid_RN.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weights_RN1).sum(1) / weights_RN1.sum(1)


def guide(stream: str, cls_RD: Tensor) -> None:
    """Guidance that a stream gives to others before its layers have run. Nothing without a context."""
    context = _current.get()
    if context is not None:
        context.cls[stream] = cls_RD


def copy_of(stream: str, hidden: Tensor, copy: int, copies: int) -> Tensor:
    """Hidden states of the ``copy``-th of ``copies`` rows of every instance."""
    context = _current.get()
    return hidden[copy::copies] if context is None else context.copy_of(stream, hidden, copy, copies)

"""What a backbone tells about itself: its streams, layers and the sites where pruning happens.

A site is (stream, layer, kind); kind is ``token``, ``self_head`` or ``cross_head`` (``cross_head1`` for a
second cross-attention in the same layer). Layers are counted along a stream: a vision stream of 12 encoder
layers and 6 cross-modal layers has layers 0..17.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

TOKEN, SELF_HEAD, CROSS_HEAD, CROSS_HEAD_1 = "token", "self_head", "cross_head", "cross_head1"
_GROUP_OF_KIND = {TOKEN: "token", SELF_HEAD: "head", CROSS_HEAD: "cross_head", CROSS_HEAD_1: "cross_head"}
HOSTED = "hosted"
"""Style of an attention that the backbone calls through ``attend_at`` itself: nothing is patched."""


@dataclass(frozen=True)
class AttentionSpec:
    """One attention module of a layer.

    Attributes:
        path: Module path inside the backbone.
        style: Which adapter of :mod:`smarttrim_cli.pruning.projections` reads its weights, or ``HOSTED``.
        heads: Number of heads.
        head_dim: Width of one head.
        memory_stream: For cross-attention, the stream that keys and values come from.
        memory_layer: For cross-attention, the layer index of that stream whose kept tokens are attended to.
        memory_width: For cross-attention, the width of those tokens.
        memory_copy: Which of an instance's rows of that stream is attended to; None: the row of the same
            place.
    """

    path: str
    style: str
    heads: int
    head_dim: int
    memory_stream: str | None = None
    memory_layer: int = -1
    memory_width: int = 0
    memory_copy: int | None = None


@dataclass(frozen=True)
class LayerSpec:
    """One transformer layer of one stream.

    Attributes:
        stream: Name of the stream (``vision``, ``text``).
        index: Position along the stream, from 0.
        part: Which part of the model it belongs to: ``vision_encoder``, ``text_encoder``, ``cross_modal``.
        width: Token width D.
        mlp_width: Hidden width of the feed-forward block.
        self_attention: Its self-attention.
        cross_attention: Its cross-attention, if any.
        guide: The other stream whose CLS guides the trimmers here; None means ``self`` guidance.
        guide_width: Width of that CLS.
        extra_macs: Further MACs per token: element-wise ones that torchprofile counts (norms, scales,
            QuickGELU) and linear layers of the host's own.
        kinds: Kinds of sites that may have trimmers.
        second_cross_attention: A second cross-attention beside the first, if any (BLIP's NLVR2).
        output_of: Path of the module whose output is the layer's; needed for distillation alone.
        input_of: Path of the module that reads the layer's output first, where no module gives it out.
    """

    stream: str
    index: int
    part: str
    width: int
    mlp_width: int
    self_attention: AttentionSpec
    cross_attention: AttentionSpec | None = None
    guide: str | None = None
    guide_width: int = 0
    extra_macs: int = 0
    kinds: tuple[str, ...] = (TOKEN, SELF_HEAD, CROSS_HEAD, CROSS_HEAD_1)
    second_cross_attention: AttentionSpec | None = None
    output_of: str = ""
    input_of: str = ""

    @cached_property
    def attentions(self) -> tuple[tuple[str, AttentionSpec], ...]:
        """Kind of head site and attention, for all attentions there are."""
        found = (
            (SELF_HEAD, self.self_attention),
            (CROSS_HEAD, self.cross_attention),
            (CROSS_HEAD_1, self.second_cross_attention),
        )
        return tuple((kind, attention) for kind, attention in found if attention is not None)

    def attention(self, kind: str) -> AttentionSpec:
        """The attention of a kind of head site."""
        return dict(self.attentions)[kind]

    def site(self, kind: str) -> Site:
        """The layer's site of a kind."""
        return self._sites[kind]

    @cached_property
    def _sites(self) -> dict[str, Site]:
        kinds = (TOKEN, SELF_HEAD, CROSS_HEAD, CROSS_HEAD_1)
        return {kind: Site(self.stream, self.index, kind) for kind in kinds}


@dataclass(frozen=True)
class Site:
    """A place where pruning happens."""

    stream: str
    layer: int
    kind: str

    @cached_property
    def name(self) -> str:
        """Unique name, e.g. ``vision.3.token``."""
        return f"{self.stream}.{self.layer}.{self.kind}"

    @property
    def group(self) -> str:
        """Group of the cost loss (Eq. 9-10), e.g. ``token.vision`` or ``cross_head.text``."""
        return f"{_GROUP_OF_KIND[self.kind]}.{self.stream}"

    @classmethod
    def parse(cls, name: str) -> Site:
        """Inverse of :attr:`name`."""
        stream, layer, kind = name.rsplit(".", 2)
        return cls(stream, int(layer), kind)


@dataclass(frozen=True)
class FixedCost:
    """MACs that no decision changes (patch embedding, heads on CLS tokens).

    They count once per instance, or once per row of the stream ``per_row_of``.
    """

    part: str
    macs: int
    per_row_of: str | None = None


@dataclass(frozen=True)
class TokenCost:
    """MACs per token of a stream, outside its layers (embedding norms, transforms between parts).

    ``after_layer`` is the layer whose kept tokens are counted; -1 means the tokens before any layer. Where it
    is run on fewer, ``run_on`` names their count (``<stream>.<run_on>``); as published it is run on all.
    """

    part: str
    stream: str
    after_layer: int
    macs_per_token: int
    run_on: str | None = None


@dataclass(frozen=True)
class Architecture:
    """Everything that trimming and costing need to know of a backbone.

    Attributes:
        layers: Of all streams.
        fixed: Costs per instance.
        per_token: Costs per token outside the layers.
        copies: Rows that an instance has in a stream, where that is not 1 (two images; candidate texts).
        overhead: Streams that only trimming needs (a pass for guidance): mode ``full`` does not run them.
    """

    layers: tuple[LayerSpec, ...]
    fixed: tuple[FixedCost, ...]
    per_token: tuple[TokenCost, ...]
    copies: Mapping[str, int] = field(default_factory=dict)
    overhead: tuple[str, ...] = ()

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams, in order of first appearance."""
        return tuple(dict.fromkeys(layer.stream for layer in self.layers))

    def depth(self, stream: str) -> int:
        """Number of layers along a stream."""
        return sum(layer.stream == stream for layer in self.layers)

    def layer(self, stream: str, index: int) -> LayerSpec:
        """The layer at a position of a stream."""
        return self._by_place[stream, index]

    @cached_property
    def _by_place(self) -> dict[tuple[str, int], LayerSpec]:
        return {(spec.stream, spec.index): spec for spec in self.layers}

    def sites(self, groups: Sequence[str] | None = None) -> Iterator[Site]:
        """All sites, or those of the named groups, in the order the forward reaches them."""
        for layer in self.layers:
            for kind in (TOKEN, *(kind for kind, _ in layer.attentions)):
                site = layer.site(kind)
                if kind in layer.kinds and (groups is None or site.group in groups):
                    yield site

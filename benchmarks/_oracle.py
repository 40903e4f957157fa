"""What trimming could reach at best: plain layers of exactly the kept sizes, with no decision at run time.

For one instance and its decisions: heads are cut out of a copy of the backbone for good, and every layer gets
the first n of its tokens, as a view.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from smarttrim_cli.pruning.context import ForwardContext, running
from smarttrim_cli.pruning.decisions import Decisions
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.pruning.prepared import prepare
from smarttrim_cli.pruning.sites import TOKEN, LayerSpec, Site
from smarttrim_cli.pruning.stream import PackedStream, begin_packed


class _Fixed(ForwardContext):
    """A forward whose layers get given numbers of tokens."""

    fixed: dict[str, PackedStream]

    def _trim_tokens(self, spec: LayerSpec, hidden: Tensor) -> Tensor:
        stream = self.fixed.get(Site(spec.stream, spec.index, TOKEN).name)
        if stream is None:
            return hidden
        self.streams[spec.stream] = stream
        return hidden[:, : stream.total]


class Oracle:
    """Runs one instance at the sizes that a model's decisions have for it."""

    def __init__(self, model: TrimmedModel, decisions: Decisions) -> None:
        model.restore()
        self.backbone = copy.deepcopy(model.backbone)
        model.prepare()
        self.architecture = model.architecture
        self.fixed = {}
        for name, keep in decisions.keep.items():
            site = Site.parse(name)
            if site.kind == TOKEN:
                everything = torch.ones(1, int(keep.sum()), dtype=torch.bool)
                self.fixed[name] = begin_packed(everything)[0]
            elif not bool(keep.all()):
                spec = self.architecture.layer(site.stream, site.layer).attention(site.kind)
                _cut(self.backbone.get_submodule(spec.path), keep[0], spec.head_dim)
        prepare(self.backbone)

    @torch.no_grad()
    def __call__(self, inputs: dict[str, Tensor]) -> Any:
        """The backbone's output; it means nothing."""
        context = _Fixed("packed", self.architecture, {})
        context.fixed = self.fixed
        with running(context):
            return self.backbone(**inputs)


def _cut(module: Any, keep_H: Tensor, width: int) -> None:
    """Remove heads from an attention module."""
    heads = keep_H.nonzero().squeeze(1)
    if len(heads) == 0:  # nothing is left to run; one head stands for it
        heads = heads.new_zeros(1)
    rows = (heads[:, None] * width + torch.arange(width)).flatten()
    if hasattr(module, "qkv"):
        every = torch.cat([rows + part * len(keep_H) * width for part in range(3)])
        module.qkv = _linear(module.qkv, every, None)
        name = "proj" if hasattr(module, "proj") else "projection"
        setattr(module, name, _linear(getattr(module, name), None, rows))
        module.num_heads = len(heads)
        return
    inner = module.self
    for name in ("query", "key", "value"):
        setattr(inner, name, _linear(getattr(inner, name), rows, None))
    inner.num_attention_heads = len(heads)
    module.output.dense = _linear(module.output.dense, None, rows)


def _linear(whole: nn.Linear, rows: Tensor | None, columns: Tensor | None) -> nn.Linear:
    weight, bias = whole.weight.data, whole.bias
    if rows is not None:
        weight, bias = weight[rows], None if bias is None else bias[rows]
    if columns is not None:
        weight = weight[:, columns]
    part = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    part.weight.data = weight.clone()
    if bias is not None:
        part.bias.data = bias.data.clone()
    return part

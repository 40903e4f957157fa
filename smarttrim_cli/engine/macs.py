"""MACs of a forward pass as torchprofile counts them; by part, see :mod:`smarttrim_cli.pruning.cost`."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchprofile import profile_macs

from smarttrim_cli.pruning.model import TrimmedModel


class _Traced(nn.Module):
    """One forward with positional tensors; returns all that was computed.

    Tracing drops what feeds no output. Head decisions reach the layers through the host, scores may drop
    nothing, and a stream may go unread where all heads that attend to it are dropped: all are outputs too.
    """

    def __init__(self, model: TrimmedModel, mode: str, names: list[str], ids: Tensor | None) -> None:
        super().__init__()
        self.model, self.mode, self.names, self.ids = model, mode, names, ids

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        inputs = dict(zip(self.names, tensors, strict=True))
        result = self.model(inputs, self.mode, instance_ids=self.ids, log_scores=True)
        if result.context is None:
            return [result.output]
        heads = (mask for mask in result.context.log.heads.values() if mask is not None)
        scores = (scores for _, scores in result.context.log.scores.values())
        return [result.output, *heads, *scores, *result.context.cls.values()]


@torch.no_grad()
def measured_macs(
    model: TrimmedModel, inputs: Mapping[str, Tensor], mode: str, instance_ids: Tensor | None = None
) -> int:
    """MACs of one forward pass, trimmers included.

    Args:
        model: In evaluation mode.
        inputs: Of a single instance without padding.
        mode: ``full`` or ``packed``.
        instance_ids: (1,), for trimmers that draw at random.
    """
    names = list(inputs)
    traced = _Traced(model, mode, names, instance_ids)
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        counted: Any = profile_macs(traced, tuple(inputs[name] for name in names))
        return int(counted)

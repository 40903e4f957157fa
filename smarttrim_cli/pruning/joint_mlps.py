"""The CLS MLPs of all trimmers that decide at one place, run as one MLP at inference.

A layer has a token trimmer and up to three head trimmers, each with a small MLP on the same CLS vectors. One
after the other they are a dozen operators on a single row, whose calls cost more than their work. Joined, the
first layers are stacked and the second ones lie on a block diagonal.

Legend: B instances, I inputs (own CLS, or own and guiding CLS), J hidden units of all, O outputs of all.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from smarttrim_cli.pruning.prepared import version_of
from smarttrim_cli.trimmers.base import ClsMlp, Trimmer


class JointMlps:
    """Joint MLPs of a model's layers, made when first asked for and again when the trimmers have changed."""

    def __init__(self) -> None:
        self._layers: dict[tuple[str, ...], _Layer] = {}

    def outputs(
        self, trimmers: Mapping[str, Trimmer], own_BD: Tensor, guide_BD: Tensor | None
    ) -> dict[str, Tensor]:
        """What the CLS MLPs say, (B, outputs), for the trimmers that have one.

        Args:
            trimmers: Site name to trimmer, of one layer.
            own_BD: CLS of the layer's stream.
            guide_BD: CLS of the other stream, None under ``self`` guidance.
        """
        names = tuple(trimmers)
        layer = self._layers.get(names)
        if layer is None or layer.version != _version(trimmers):
            layer = self._layers[names] = _Layer(trimmers, own_BD.shape[1])
        return layer.outputs(own_BD, guide_BD)


def _version(trimmers: Mapping[str, Trimmer]) -> tuple[tuple[int, int], ...]:
    return tuple(version_of(p) for trimmer in trimmers.values() for p in trimmer.parameters())


class _Layer:
    def __init__(self, trimmers: Mapping[str, Trimmer], width: int) -> None:
        self.version = _version(trimmers)
        found = {name: trimmer.cls_mlp() for name, trimmer in trimmers.items()}
        mlps: dict[str, ClsMlp] = {name: mlp for name, mlp in found.items() if mlp is not None}
        self.names, self.sizes = list(mlps), [len(mlp.bias) for mlp in mlps.values()]
        self.guided = any(mlp.first.in_features > width for mlp in mlps.values())
        if mlps:
            self._join(list(mlps.values()))

    def _join(self, mlps: list[ClsMlp]) -> None:
        inputs = max(mlp.first.in_features for mlp in mlps)
        first = [F.pad(mlp.first.weight, (0, inputs - mlp.first.in_features)) for mlp in mlps]
        self.first_JI = torch.cat(first).detach()
        self.first_bias_J = torch.cat([mlp.first.bias for mlp in mlps]).detach()
        self.second_OJ = torch.block_diag(*(mlp.weight.detach() for mlp in mlps))
        self.second_bias_O = torch.cat([mlp.bias for mlp in mlps]).detach()

    def outputs(self, own_BD: Tensor, guide_BD: Tensor | None) -> dict[str, Tensor]:
        if not self.names:
            return {}
        x_BI = own_BD if guide_BD is None or not self.guided else torch.cat((own_BD, guide_BD), 1)
        if len(x_BI) == 1:
            hidden_J = F.gelu(torch.addmv(self.first_bias_J, self.first_JI, x_BI[0]))
            out_BO = torch.addmv(self.second_bias_O, self.second_OJ, hidden_J).unsqueeze(0)
        else:
            hidden_BJ = F.gelu(F.linear(x_BI, self.first_JI, self.first_bias_J))
            out_BO = F.linear(hidden_BJ, self.second_OJ, self.second_bias_O)
        return dict(zip(self.names, out_BO.split(self.sizes, 1), strict=True))

"""What the trimmers of one layer compute, in as few operators as can be, at inference.

A layer has a token trimmer and up to three head trimmers, each with a small MLP on the same CLS vectors. One
after the other they are a dozen operators on a single row, whose calls cost more than their work. Joined, the
first layers are stacked and the second ones lie on a block diagonal. A token trimmer's projection and the
first layer of its local MLP have nothing between them: they are one layer, which gives both.

Legend: B instances, T packed tokens, I inputs (own CLS, or own and guiding CLS), J hidden units of all, O
outputs of all, D' the width that tokens are projected to, L hidden units of the local MLP.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smarttrim_cli.pruning.prepared import LaidOutLinear, version_of
from smarttrim_cli.trimmers.base import ClsMlp, TokenMlp, TokenView, Trimmer


class JointMlps:
    """Joint MLPs of a model's layers, made when first asked for and again when the trimmers have changed."""

    def __init__(self) -> None:
        self._layers: dict[tuple[str, ...], _Layer] = {}
        self._tokens: dict[str, _TokenScores] = {}

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
        if layer is None or layer.made_of.differs(*trimmers.values()):
            layer = self._layers[names] = _Layer(trimmers, own_BD.shape[1])
        return layer.outputs(own_BD, guide_BD)

    def token_scores(
        self, name: str, trimmer: Trimmer, view: TokenView, from_cls: Tensor | None
    ) -> Tensor | None:
        """Scores (1, T) of packed tokens, given what the trimmer's CLS MLP says; None if it cannot be joined.

        Args:
            name: Site name.
            trimmer: Its token trimmer.
            view: What it is to score.
            from_cls: (B, D'), None of a trimmer without such an MLP; where it has one, it is needed.
        """
        scores = self._tokens.get(name)
        if scores is None or scores.made_of.differs(trimmer):
            scores = self._tokens[name] = _TokenScores(trimmer)
        return scores.of(view, from_cls)

    def __deepcopy__(self, memo: dict[int, Any]) -> JointMlps:
        return JointMlps()

    def __reduce__(self) -> tuple[Any, ...]:
        return JointMlps, ()


class _MadeOf:
    """The trimmers that something was made of, and their parameters; asking all modules takes too long."""

    def __init__(self, *trimmers: nn.Module) -> None:
        self.trimmers = trimmers
        self.parameters = [
            (module._parameters, name, parameter, version_of(parameter))
            for trimmer in trimmers
            for module in trimmer.modules()
            for name, parameter in module.named_parameters(recurse=False)
        ]

    def differs(self, *trimmers: nn.Module) -> bool:
        """Whether others are asked for, or these have other parameters or other values now."""
        return any(a is not b for a, b in zip(trimmers, self.trimmers, strict=True)) or any(
            own[name] is not parameter or version_of(parameter) != version
            for own, name, parameter, version in self.parameters
        )


class _Layer:
    """The CLS MLPs of a layer."""

    def __init__(self, trimmers: Mapping[str, Trimmer], width: int) -> None:
        self.made_of = _MadeOf(*trimmers.values())
        found = {name: trimmer.cls_mlp() for name, trimmer in trimmers.items()}
        mlps: dict[str, ClsMlp] = {name: mlp for name, mlp in found.items() if mlp is not None}
        self.names, self.sizes = list(mlps), [len(mlp.bias) for mlp in mlps.values()]
        self.guided = any(mlp.first.in_features > width for mlp in mlps.values())
        if mlps:
            self._join(list(mlps.values()))

    def _join(self, mlps: list[ClsMlp]) -> None:
        inputs = max(mlp.first.in_features for mlp in mlps)
        first_JI = torch.cat([F.pad(mlp.first.weight, (0, inputs - mlp.first.in_features)) for mlp in mlps])
        self.first = LaidOutLinear(first_JI, torch.cat([mlp.first.bias for mlp in mlps]))
        self.second_OJ = torch.block_diag(*(mlp.weight.detach() for mlp in mlps))
        self.second_bias_O = torch.cat([mlp.bias for mlp in mlps]).detach()

    def outputs(self, own_BD: Tensor, guide_BD: Tensor | None) -> dict[str, Tensor]:
        if not self.names:
            return {}
        x_BI = own_BD if guide_BD is None or not self.guided else torch.cat((own_BD, guide_BD), 1)
        hidden_BJ = self.first(x_BI, gelu=True)
        if len(hidden_BJ) == 1:
            out_BO = torch.addmv(self.second_bias_O, self.second_OJ, hidden_BJ[0]).unsqueeze(0)
        else:
            out_BO = F.linear(hidden_BJ, self.second_OJ, self.second_bias_O)
        return dict(zip(self.names, out_BO.split(self.sizes, 1), strict=True))


class _TokenScores:
    """A token trimmer's part on tokens."""

    def __init__(self, trimmer: Trimmer) -> None:
        self.made_of = _MadeOf(trimmer)
        mlp = trimmer.token_mlp()
        self.guided = trimmer.cls_mlp() is not None
        self.first = None if mlp is None else self._join(mlp)

    def _join(self, mlp: TokenMlp) -> LaidOutLinear:
        project: Any = mlp.project
        weight = torch.cat((project.weight, mlp.local.weight @ project.weight))
        bias = torch.cat((project.bias, F.linear(project.bias, mlp.local.weight, mlp.local.bias)))
        self.width = project.out_features
        self.last_L, self.last_bias = mlp.last.weight.detach()[0], mlp.last.bias.detach()
        return LaidOutLinear(weight, bias)

    def of(self, view: TokenView, from_cls: Tensor | None) -> Tensor | None:
        if self.first is None or self.guided != (from_cls is not None):  # half a score would be a wrong one
            return None
        both = self.first(view.tokens[0])
        projected_TD, local_TL = both[:, : self.width], both[:, self.width :]
        local_TL = F.gelu(local_TL.contiguous())  # of rows that lie apart it takes several times as long
        scores_T = torch.addmv(self.last_bias, local_TL, self.last_L)
        if from_cls is None:
            return scores_T.unsqueeze(0)
        if len(from_cls) == 1:
            return torch.addmv(scores_T, projected_TD, from_cls[0]).unsqueeze(0)
        return scores_T + (view.stream.spread(from_cls) * projected_TD).sum(-1)

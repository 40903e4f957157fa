"""Distillation from a larger model into one with fewer layers: FTKD, a baseline of the SmartTrim paper.

As in TinyBERT (Jiao et al. 2020, Eq. 7-10), every layer of the student has a layer of the teacher to follow,
in what it gives out and in its attention; and the student follows the teacher's logits. Unlike there the
layers are equally wide, so that nothing is projected; attentions are compared as distributions, not as
logits; and all this happens while the student is fine-tuned on its task.

Legend: R rows, N query tokens, M key tokens, H heads, E head width, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smarttrim_cli.errors import UserError
from smarttrim_cli.pruning.objective import Objective, StatefulLoss
from smarttrim_cli.pruning.recording import Recording, recording
from smarttrim_cli.pruning.sites import SELF_HEAD, LayerSpec

_MASKED = -1e4
_MASK_OF = {"text": "attention_mask", "decoder": "answer_mask"}
"""Stream to the input that says which of its tokens are real."""
_CAUSAL = "decoder"


@dataclass(frozen=True)
class Teaching:
    """A teacher, and what of it the student follows.

    It is no module: the teacher is neither trained nor saved with the student.

    Attributes:
        model: The teacher's backbone, in evaluation mode, without gradients.
        pairs: Layers of the student, each with the teacher's layer that it follows.
        logits: Weight of the divergence of the logits.
        hidden: Weight of the distance of the layers' outputs.
        attention: Weight of the divergence of the attentions.
        temperature: Softens the logits' distributions.
    """

    model: nn.Module
    pairs: tuple[tuple[LayerSpec, LayerSpec], ...]
    logits: float = 1.0
    hidden: float = 1.0
    attention: float = 1.0
    temperature: float = 1.0


def logits_loss(own: Tensor, teachers: Tensor, temperature: float = 1.0) -> Tensor:
    """D_KL(teacher || student) of logits (n, C), mean over n, times the squared temperature.

    The other way round than in self-distillation (Eq. 11 of SmartTrim): TinyBERT's soft cross-entropy, which
    does not punish a student beyond measure for what a certain teacher all but excludes.
    """
    own, teachers = (logits.float().div(temperature).log_softmax(-1) for logits in (own, teachers))
    return F.kl_div(own, teachers, reduction="batchmean", log_target=True) * temperature**2


def hidden_loss(own_RND: Tensor, teachers_RND: Tensor, real_RN: Tensor | None = None) -> Tensor:
    """Mean squared difference of a layer's output over real tokens and width."""
    squared_RN = (own_RND.float() - teachers_RND.float()).square().mean(-1)
    return _mean_over(squared_RN, real_RN)


def attention_weights(
    queries_RHNE: Tensor,
    keys_RHME: Tensor,
    real_RM: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """Logarithms of attention weights, (R, H, N, M); about -1e4 for keys that are not seen.

    Args:
        queries_RHNE: Queries.
        keys_RHME: Keys.
        real_RM: False on padding; None without any.
        causal: Whether token n sees the tokens up to n alone.
    """
    scale = queries_RHNE.shape[-1] ** -0.5
    logits = queries_RHNE.float() @ keys_RHME.float().transpose(-1, -2) * scale
    if real_RM is not None:
        logits = logits.masked_fill(~real_RM[:, None, None, :], _MASKED)
    if causal:
        later_NM = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).triu(1)
        logits = logits.masked_fill(later_NM, _MASKED)
    return logits.log_softmax(-1)


def attention_loss(own_RHNM: Tensor, teachers_RHNM: Tensor, real_RN: Tensor | None = None) -> Tensor:
    """D_KL(teacher || student) of attentions, given as logarithms: mean over heads and real query tokens."""
    divergence_RHN = (teachers_RHNM.exp() * (teachers_RHNM - own_RHNM)).sum(-1)
    return _mean_over(divergence_RHN.mean(1), real_RN)


def _mean_over(values_RN: Tensor, real_RN: Tensor | None) -> Tensor:
    if real_RN is None:
        return values_RN.mean()
    return (values_RN * real_RN).sum() / real_RN.sum().clamp(min=1)


def real_tokens(inputs: Mapping[str, Tensor], stream: str, rows: int) -> Tensor | None:
    """Which tokens of a stream are real, boolean (rows, N); None where all are.

    Where an instance has several texts they are rows of their own, or, as the queries of a decoder to its
    memory, one row together; where it has several images, its text has a row for each.
    """
    mask = inputs.get(_MASK_OF.get(stream, ""))
    if mask is None:
        return None
    mask = mask.flatten(0, -2) if mask.dim() > 2 else mask
    if rows < len(mask):
        return mask.reshape(rows, -1).bool()
    return mask.repeat_interleave(rows // len(mask), 0).bool()


class TaughtObjective(Objective):
    """The task's loss and that of following a teacher. Its state is that of the student alone.

    Args:
        teaching: The teacher.
        arguments: Those of :class:`~smarttrim_cli.pruning.objective.Objective`.

    Raises:
        UserError: The student has trimmers, or its task a loss that cannot be combined with this.
    """

    def __init__(self, teaching: Teaching, *arguments: Any) -> None:
        super().__init__(*arguments)
        if self.model.sites:
            problem = "a model with trimmers is its own teacher (strategy.self_distillation)"
            hint = "teacher: null, or pruning: null"
        elif self.auxiliary is not None or isinstance(self.task_loss, StatefulLoss):
            problem = "the task has losses of its own that a teacher cannot be combined with"
            hint = "teacher: null"
        else:
            self.teaching = teaching
            return
        raise UserError(problem, where="strategy.teacher", hint=hint)

    def forward(self, batch: Any, target: Any, progress: float) -> dict[str, Tensor]:
        """Losses of a batch: ``loss`` (to minimise), ``task`` and the terms ``teacher/...``."""
        t = self.teaching
        wanted = {"hidden": t.hidden > 0, "attention": t.attention > 0}
        own_layers, teachers_layers = ([pair[side] for pair in t.pairs] for side in (0, 1))
        with recording(self.model.backbone, own_layers, **wanted) as own:
            output = self.model(batch.inputs, "full").output
        with torch.no_grad(), recording(t.model, teachers_layers, **wanted) as teachers:
            reference = t.model(**batch.inputs)
        task = self.task_loss(output, batch)
        logits = logits_loss(self.logits(output, batch), self.logits(reference, batch), t.temperature)
        loss, log = task + t.logits * logits, {"task": task, "teacher/logits": logits}
        for name, weight, term in (("hidden", t.hidden, _hidden), ("attention", t.attention, _attention)):
            if weight > 0:
                value = term(t.pairs, own, teachers, batch.inputs)
                loss, log[f"teacher/{name}"] = loss + weight * value, value
        return {"loss": loss, **{name: value.detach() for name, value in log.items()}}


Pairs = tuple[tuple[LayerSpec, LayerSpec], ...]


def _hidden(pairs: Pairs, own: Recording, teachers: Recording, inputs: Mapping[str, Tensor]) -> Tensor:
    """Mean over layers."""
    losses = []
    for layer, model in pairs:
        hidden = own.hidden[layer.stream, layer.index]
        real = real_tokens(inputs, layer.stream, len(hidden))
        losses.append(hidden_loss(hidden, teachers.hidden[model.stream, model.index], real))
    return torch.stack(losses).mean()


def _attention(pairs: Pairs, own: Recording, teachers: Recording, inputs: Mapping[str, Tensor]) -> Tensor:
    """Mean over attentions."""
    losses = []
    for layer, model in pairs:
        for kind, spec in layer.attentions:
            mine, theirs = (x.site(kind).name for x in (layer, model))
            queries = own.queries[mine]
            keys_of = spec.memory_stream or layer.stream
            real_keys = real_tokens(inputs, keys_of, len(queries))
            causal = kind == SELF_HEAD and layer.stream == _CAUSAL
            weights, wanted = (
                attention_weights(found.queries[name], found.keys[name], real_keys, causal)
                for found, name in ((own, mine), (teachers, theirs))
            )
            losses.append(attention_loss(weights, wanted, real_tokens(inputs, layer.stream, len(queries))))
    return torch.stack(losses).mean()

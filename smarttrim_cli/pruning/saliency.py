"""What the full model itself attends to: saliency of tokens by the gradient of its answer, and learning it.

Not in the paper. The saliency of a token at a site is |d answer / d m|, with m its keep mask, all of them 1:
what it is worth from that layer onward, since dropped tokens do not come back, or in that layer alone. The
answer is the model's own: no ground truth is needed, and one backward pass gives all layers. In
:func:`guidance_losses` the scores of the token trimmers learn it as a distribution over the tokens of a row
that may be dropped: real ones, without the CLS.

Onward is what guides: in the first layers of an image encoder, what counts in one layer is next to unrelated
to what is asked (scenes, quick-start model, first layer: .06 of it lies on the 5 % of patches that a question
is about, against .45 of what counts onward).

Legend: B instances, R rows of a stream, N tokens of a row, n distributions, C their classes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from smarttrim_cli.forms import Ranking
from smarttrim_cli.pruning.context import ForwardContext, running
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.pruning.sites import TOKEN, LayerSpec, Site
from smarttrim_cli.pruning.stream import MaskedStream
from smarttrim_cli.trimmers.base import TokenView

_NEVER = -1e9
"""Score of what may not be dropped: nothing in a softmax, and finite for rows without anything else."""


@dataclass(frozen=True)
class Warmup:
    """Marks a step of the warm start, where the objective otherwise gets a target; its settings.

    Attributes:
        weight: Of the divergence beside the task loss.
        temperature: Above 1 the saliency is flattened, s^(1/temperature), before it is normalised.
        smoothing: Share of the uniform distribution in what is learned. It bounds the scores below: no token
            is pushed further under the mean than log(smoothing).
        onward: Whether a mask counts from its layer on, or in its layer alone.
    """

    weight: float = 1.0
    temperature: float = 1.0
    smoothing: float = 0.1
    onward: bool = True


@dataclass(frozen=True)
class Probe:
    """A forward pass in which every token is kept.

    Attributes:
        output: The backbone's.
        masks: Site name to the keep mask of that layer alone, (R, N), a leaf; 1, on padding 0.
        scores: Site name to what its trimmer says of the tokens, (R, N), with gradient.
    """

    output: Any
    masks: dict[str, Tensor]
    scores: dict[str, Tensor]

    def removable(self, name: str) -> Tensor:
        """Which tokens of a site may be dropped, boolean (R, N)."""
        mask_RN = self.masks[name].detach() > 0.5
        mask_RN[:, 0] = False
        return mask_RN


@dataclass
class _ProbingContext(ForwardContext):
    """Keeps everything; every probed site gets a mask of its own, which counts from there to the next one."""

    probed: Collection[str] = ()
    masks: dict[str, Tensor] = field(default_factory=dict)
    scores: dict[str, Tensor] = field(default_factory=dict)

    def _trim_tokens(self, spec: LayerSpec, hidden: Tensor) -> Tensor:
        name = spec.site(TOKEN).name
        stream = self.streams[spec.stream]
        assert isinstance(stream, MaskedStream)
        if name in self.trimmers:
            ids = stream.spread_scalar(self._ids(spec.stream))
            view = TokenView(hidden, self.cls[spec.stream], self._guide(spec), stream, ids, self.threshold)
            self.scores[name] = self.trimmers[name](view)
        if name in self.probed:
            self.masks[name] = stream.valid_BN.float().requires_grad_()
            self.streams[spec.stream] = stream = replace(
                stream, keep_BN=self.masks[name], gradient_limit=math.inf
            )
        self.log.tokens[name] = stream
        return hidden

    def _keep_heads(self, site: Site, spec: LayerSpec) -> None:
        return None


def probe(model: TrimmedModel, inputs: Mapping[str, Any], sites: Collection[str] | None = None) -> Probe:
    """Run the model with everything kept, ready for :func:`saliency`; trimmers only score.

    Args:
        model: Its trimmers, if it has any, are not obeyed.
        inputs: Keyword arguments of the backbone's forward: those of training, where a model generates.
        sites: Token sites to probe; by default those that have a trimmer.
    """
    trimmers = {name: trimmer for name, trimmer in model.sites.items() if Site.parse(name).kind == TOKEN}
    context = _ProbingContext(
        "masked", model.architecture, trimmers, probed=trimmers if sites is None else sites
    )
    with running(context):
        output = model.backbone(**inputs)
    return Probe(output, context.masks, context.scores)


def own_answer(output: Any, logits_nC: Tensor) -> Tensor:
    """What the model says by itself, as a number to differentiate: the sum over all instances.

    The logit of the class it chooses. Where it writes text, the log-probability of the token it would write
    at every place of the texts it is given; where it matches images with texts, the scores of all pairs.

    Args:
        output: Of the backbone, for a training batch.
        logits_nC: The distributions in it (a task's ``logits``).
    """
    logits_nC = logits_nC.to(torch.promote_types(logits_nC.dtype, torch.float32))
    if isinstance(output, Ranking):
        return logits_nC.sum()
    if isinstance(output, Tensor) and output.dim() == 4:
        logits_nC = logits_nC.log_softmax(-1)
    return logits_nC.amax(-1).sum()


def saliency(found: Probe, answer: Tensor, onward: bool = True) -> dict[str, Tensor]:
    """|d answer / d mask| of every probed site, (R, N); 0 for CLS tokens and padding. The graph stays.

    Args:
        found: A forward pass with gradients enabled.
        answer: A scalar of its output in which instances do not mix, such as :func:`own_answer`.
        onward: Whether a mask counts from its layer on; else in its layer alone.
    """
    masks = list(found.masks.values())
    gradients = torch.autograd.grad(
        answer, masks, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    of_layer = dict(zip(found.masks, gradients, strict=True))
    worth, result = dict[str, Tensor](), {}
    for name in reversed(of_layer):  # a product of masks: its gradients add up along the stream
        stream = Site.parse(name).stream
        later_RN = worth.get(stream, 0.0) if onward else 0.0
        worth[stream] = of_layer[name] + later_RN
        result[name] = worth[stream].abs() * found.removable(name)
    return {name: result[name] for name in of_layer}


def distribution(saliency_RN: Tensor, removable_RN: Tensor, settings: Warmup) -> Tensor:
    """Saliency as a distribution over the removable tokens of every row, (R, N); 0 for a row without any."""
    saliency_RN = saliency_RN * removable_RN
    most_R1 = saliency_RN.amax(-1, keepdim=True).clamp(min=torch.finfo(saliency_RN.dtype).tiny)
    flattened_RN = (saliency_RN / most_R1) ** (1.0 / settings.temperature)
    total_R1 = flattened_RN.sum(-1, keepdim=True)
    uniform_RN = removable_RN / removable_RN.sum(-1, keepdim=True).clamp(min=1)
    own_RN = flattened_RN / total_R1.clamp(min=1)
    return torch.lerp(own_RN, uniform_RN, settings.smoothing) * (total_R1 > 0)


def divergence(target_RN: Tensor, scores_RN: Tensor, removable_RN: Tensor) -> Tensor:
    """D_KL(target || softmax(scores)) over removable tokens, mean over the rows that have a target."""
    log_q_RN = scores_RN.float().masked_fill(~removable_RN, _NEVER).log_softmax(-1)
    kl_R = (torch.xlogy(target_RN, target_RN) - target_RN * log_q_RN).sum(-1)
    there_R = target_RN.sum(-1) > 0
    return (kl_R * there_R).sum() / there_R.sum().clamp(min=1)


def guidance_losses(found: Probe, answer: Tensor, settings: Warmup) -> dict[str, Tensor]:
    """Divergence of every scored site from the full model's own saliency, a scalar each, differentiable.

    The saliency is a fixed target; scores, and through them the backbone, follow it.
    """
    losses = {}
    for name, saliency_RN in saliency(found, answer, settings.onward).items():
        removable_RN = found.removable(name)
        target_RN = distribution(saliency_RN.detach(), removable_RN, settings)
        losses[name] = divergence(target_RN, found.scores[name], removable_RN)
    return losses


def score_quantiles(found: Probe, name: str, shares: Sequence[float]) -> list[float]:
    """Scores of a site below which these shares of a batch's removable tokens lie."""
    scores_T = found.scores[name].detach().float()[found.removable(name)]
    return [float(value) for value in torch.quantile(scores_T, scores_T.new_tensor(shares))]


def share_quantile(found: Probe, level: Mapping[str, float], share: float) -> float:
    """What a share of the removable tokens of some sites lie below.

    Args:
        found: A pass.
        level: Site name to what is subtracted from its scores, such as :func:`mean_log_total`.
        share: Of all their tokens together.
    """
    scores = [found.scores[name].detach().float()[found.removable(name)] - own for name, own in level.items()]
    return float(torch.quantile(torch.cat(scores), share))


def mean_log_total(found: Probe, name: str) -> float:
    """Log of the sum of exponentials of a row's scores over its removable tokens, mean over rows with any.

    Scores less this are, about, the logarithm of a token's share of the saliency.
    """
    removable_RN = found.removable(name)
    there_R = removable_RN.any(-1)
    if not there_R.any():
        return 0.0
    scores_RN = found.scores[name].detach().float().masked_fill(~removable_RN, _NEVER)
    return float(scores_RN[there_R].logsumexp(-1).mean())


def mean_log_saliency(found: Probe, answer: Tensor, onward: bool = True) -> dict[str, float]:
    """Log of the saliency of all removable tokens of a row, per site: mean over rows with any, 0 without."""
    result = {}
    for name, saliency_RN in saliency(found, answer, onward).items():
        total_R = saliency_RN.sum(-1)
        there_R = total_R > 0
        result[name] = float(total_R[there_R].log().mean()) if there_R.any() else 0.0
    return result

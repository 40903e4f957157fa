"""The training objective, Eq. 9-12, each formula a function; and the module that computes it in one forward.

Groups are per modality and kind: ``token.vision``, ``token.text``, ``head.*``, ``cross_head.*``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smarttrim_cli.pruning.budget import head_levels, solved_threshold
from smarttrim_cli.pruning.cost import complete, full_counts, measured_counts, start_of, total_macs
from smarttrim_cli.pruning.decisions import Decisions
from smarttrim_cli.pruning.gumbel import Sampling
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.pruning.saliency import Warmup, guidance_losses, own_answer, probe
from smarttrim_cli.pruning.sites import TOKEN, Site


def kept_fractions(decisions: Decisions, groups: list[str], heads: Mapping[str, int]) -> dict[str, Tensor]:
    """beta_p of Eq. 10: mean kept fraction over the layers of every group, one value per instance.

    Tokens are counted against those that may be dropped: real ones, without the CLS.

    Args:
        decisions: Of a forward pass.
        groups: Groups to report.
        heads: Number of heads per head site.

    Returns:
        Group to (B,), differentiable in ``masked`` mode.
    """
    members: dict[str, list[str]] = {group: [] for group in groups}
    for name in decisions.counts:
        members.get(Site.parse(name).group, []).append(name)
    fractions: dict[str, Tensor] = {}
    for group, names in members.items():
        site = Site.parse(names[0])
        if site.kind == TOKEN:
            counts_SR = torch.stack([decisions.counts[name] for name in names])
            removable_R = decisions.removable_B(site.stream)
            share_SR = torch.where(removable_R > 0, (counts_SR - 1) / removable_R.clamp(min=1), 1.0)
        else:
            share_SR = torch.stack([decisions.counts[name].float() / heads[name] for name in names])
        share = decisions.by_instance(site.stream, share_SR.mean(0))
        fractions[group] = share.mean(-1) if share.dim() == 2 else share
    return fractions


def cost_loss(kept: Mapping[str, Tensor], target: Mapping[str, float], one_sided: bool = False) -> Tensor:
    """L_cost = mean over groups of (beta_p - gamma_p)^2, Eq. 9.

    Args:
        kept: beta_p, group to scalar (mean over layers and batch).
        target: gamma_p, target kept fraction per group.
        one_sided: Only what is above its target costs, max(0, beta_p - gamma_p)^2: a variant of ours.
    """
    over_P = torch.stack([kept[group] - target[group] for group in kept])
    return ((over_P.clamp(min=0) if one_sided else over_P) ** 2).mean()


def macs_loss(ratio: Tensor, target: float, one_sided: bool = False) -> Tensor:
    """Cost loss on the MACs themselves: (trimmed / full - target)^2, a variant of ours; see ``cost_loss``."""
    over = ratio - target
    return (over.clamp(min=0) if one_sided else over) ** 2


def distillation_loss(trimmed: Tensor, full: Tensor, temperature: float = 1.0) -> Tensor:
    """D_KL(f(x, P) || f(x, 0)) of Eq. 11, mean over instances.

    The full model's logits are a fixed reference here: it learns from its own task loss (the first term of
    Eq. 11).

    Args:
        trimmed: Logits of the trimmed model, (B, C).
        full: Logits of the full model, (B, C).
        temperature: Softens both.
    """
    log_p = F.log_softmax(trimmed.float() / temperature, -1)
    log_q = F.log_softmax(full.detach().float() / temperature, -1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2


def total_loss(
    task: Tensor, distillation: Tensor, cost: Tensor, distillation_weight: float, cost_weight: float
) -> Tensor:
    """L = L_task + lambda_SD L_SD + lambda_cost L_cost, Eq. 12."""
    return task + distillation_weight * distillation + cost_weight * cost


@dataclass(frozen=True)
class Weights:
    """Settings of the objective.

    Attributes:
        distillation: lambda_SD; 0 switches self-distillation off.
        distillation_temperature: Temperature of both distributions.
        cost: lambda_cost.
        cost_on: ``kept_fraction`` (the paper) or ``macs``.
        cost_one_sided: Whether only what is above the target costs.
    """

    distillation: float = 1.0
    distillation_temperature: float = 1.0
    cost: float = 20.0
    cost_on: str = "kept_fraction"
    cost_one_sided: bool = False


@dataclass(frozen=True)
class Target:
    """The target of one step, after the curriculum.

    Attributes:
        kept: gamma_p per group.
        macs: Trimmed over full MACs, for a cost loss on MACs.
        sampling: Temperature and share of noise.
        solve: Whether the step also says at which threshold its own decisions would have met ``macs``.
        guidance: Scores go on learning the full model's saliency (ours); None where they do not.
        hold_heads: Whether the step also says at which thresholds heads would have met their own targets.
    """

    kept: Mapping[str, float]
    macs: float
    sampling: Sampling
    solve: bool = False
    guidance: Warmup | None = None
    hold_heads: bool = False


class StatefulLoss(nn.Module):
    """A task loss that is a module: it becomes part of the objective, and its state of checkpoints.

    For what training carries along beside the model, such as momentum encoders and queues. Subclasses have
    ``forward(output, batch)``.
    """

    def start(self, backbone: nn.Module) -> None:
        """Make the state for a backbone, which has its first weights; called once per training."""

    def prepare(self, batch: Any) -> Any:
        """A batch with what the loss needs of the state, which moves on; called once per batch."""
        return batch

    def replay(self, output: Any) -> dict[str, Tensor]:
        """Inputs that make the full model's pass take the choices that the trimmed one's took."""
        return {}


class Objective(nn.Module):
    """Model and loss as one module, so that a distributed wrapper sees a single forward.

    Args:
        model: The model with trimmers; without any, the plain task loss is computed.
        task_loss: Maps the backbone's output and the batch to a scalar; may be a :class:`StatefulLoss`.
        logits: Maps them to the distributions (n, C) that self-distillation compares.
        weights: Weights of the terms.
        auxiliary: Further loss for training from scratch; gets the batch and the progress in [0, 1].
        work: What a decoder does for an instance at inference, by the names of ``Decisions.work``; budgets
            are in terms of this. In training it reads given texts, which costs something else.
    """

    def __init__(
        self,
        model: TrimmedModel,
        task_loss: Callable[[Any, Any], Tensor],
        logits: Callable[[Any, Any], Tensor],
        weights: Weights,
        auxiliary: nn.Module | None = None,
        work: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.task_loss = task_loss
        if isinstance(task_loss, StatefulLoss):
            task_loss.start(model.backbone)
        self.logits = logits
        self.weights = weights
        self.auxiliary = auxiliary
        self.work = dict(work or {})
        sites = model.architecture.sites(model.groups)  # those without a trimmer keep their heads
        self.heads = {site.name: sites_heads(model, site) for site in sites if site.kind != TOKEN}

    def forward(self, batch: Any, target: Target | Warmup | None, progress: float) -> dict[str, Tensor]:
        """Losses of a batch: ``loss`` (to minimise), its terms, ``kept/<group>``, maybe ``threshold``."""
        if self.auxiliary is not None:
            return self.auxiliary(batch, progress)
        if isinstance(self.task_loss, StatefulLoss):
            batch = self.task_loss.prepare(batch)
        if target is None:
            loss = self.task_loss(self.model(batch.inputs, "full").output, batch)
            return {"loss": loss, "task": loss.detach()}
        if isinstance(target, Warmup):
            return self._warm_up(batch, target)
        forward = self.model(batch.inputs, "masked", sampling=target.sampling, log_scores=target.solve)
        task = self.task_loss(forward.output, batch)
        kept = kept_fractions(forward.decisions, self.model.groups, self.heads)
        kept = {group: value_B.mean() for group, value_B in kept.items()}
        on_macs = self.weights.cost_on == "macs"
        with torch.set_grad_enabled(on_macs and torch.is_grad_enabled()):  # else it is only logged
            ratio = macs_ratio(self.model, self._at_inference(forward.decisions))
        w = self.weights
        if on_macs:
            cost = macs_loss(ratio, target.macs, w.cost_one_sided)
        else:
            cost = cost_loss(kept, target.kept, w.cost_one_sided)
        full, guidance = self._full(batch, forward.output, target.guidance)
        distillation = self._distillation(forward.output, full, batch)
        loss = total_loss(task, distillation, cost, w.distillation, w.cost)
        terms = {"task": task, "distillation": distillation, "cost": cost, "macs_ratio": ratio}
        if target.guidance is not None:
            loss = loss + target.guidance.weight * guidance
            terms["guidance"] = guidance
        log = terms | {f"kept/{group}": value for group, value in kept.items()}
        if target.solve:
            decisions = self._at_inference(forward.decisions)
            log["threshold"] = solved_threshold(self.model, decisions, target.macs)
        if target.hold_heads:
            levels = head_levels(forward.decisions, target.kept)
            log |= {f"level/{group}": level for group, level in levels.items()}
        return {"loss": loss, **{name: value.detach() for name, value in log.items()}}

    def _at_inference(self, decisions: Decisions) -> Decisions:
        """Decisions with the work that a decoder would do at inference."""
        work = {
            name: torch.full_like(amount_B, self.work[name]) if name in self.work else amount_B
            for name, amount_B in decisions.work.items()
        }
        return replace(decisions, work=work)

    def _warm_up(self, batch: Any, settings: Warmup) -> dict[str, Tensor]:
        """Losses of the warm start: the task's, and the mean divergence of the scores from saliency."""
        found = probe(self.model, batch.inputs)
        task = self.task_loss(found.output, batch)
        answer = own_answer(found.output, self.logits(found.output, batch))
        of_site = guidance_losses(found, answer, settings)
        guidance = torch.stack(list(of_site.values())).mean()
        log = {"task": task, "guidance": guidance}
        for group in dict.fromkeys(Site.parse(name).group for name in of_site):
            own = [loss for name, loss in of_site.items() if Site.parse(name).group == group]
            log[f"guidance/{group}"] = torch.stack(own).mean()
        loss = task + settings.weight * guidance
        return {"loss": loss, **{name: value.detach() for name, value in log.items()}}

    def _full(self, batch: Any, output: Any, settings: Warmup | None) -> tuple[Any, Tensor]:
        """What the full model says (None if nobody asks), and how far the scores are from its saliency."""
        nothing = torch.zeros(())
        if self.weights.distillation == 0 and settings is None:
            return None, nothing
        inputs = batch.inputs
        if isinstance(self.task_loss, StatefulLoss):
            inputs = {**inputs, **self.task_loss.replay(output)}
        if settings is None:
            return self.model(inputs, "full").output, nothing
        found = probe(self.model, inputs)
        answer = own_answer(found.output, self.logits(found.output, batch))
        return found.output, torch.stack(list(guidance_losses(found, answer, settings).values())).mean()

    def _distillation(self, output: Any, full: Any, batch: Any) -> Tensor:
        trimmed = self.logits(output, batch)
        if self.weights.distillation == 0:
            return trimmed.new_zeros(())
        return self.task_loss(full, batch) + distillation_loss(
            trimmed, self.logits(full, batch), self.weights.distillation_temperature
        )


def macs_ratio(model: TrimmedModel, decisions: Decisions) -> Tensor:
    """Trimmed over full MACs of a batch, differentiable; trimmers included."""
    counts = {k: v.float() if isinstance(v, Tensor) else v for k, v in measured_counts(decisions).items()}
    full = total_macs(model.architecture, full_counts(model.architecture, start_of(counts)))
    trimmed = total_macs(model.architecture, complete(model.architecture, counts), model.sites)
    return trimmed.mean() / full.mean()


def sites_heads(model: TrimmedModel, site: Site) -> int:
    """Number of heads at a head site."""
    return model.architecture.layer(site.stream, site.layer).attention(site.kind).heads

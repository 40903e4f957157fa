"""Warm start of a run: before trimming, the token trimmers' scores learn the full model's own saliency.

Not in the paper (``strategy.guidance_warmup``). The losses are :mod:`smarttrim_cli.pruning.saliency`'s. The
steps come right before the first step that trims, and in addition to those of training; they see batches of
their own, so training itself sees the same ones with and without a warm start. It then begins, or goes on,
with a fresh optimizer. A run that is stopped in a warm start amid training begins it again.

At the end every site's scores are shifted by a constant, which leaves their softmax as it is. All sites then
reach their own group's target at one and the same threshold (``align: quantile``), or mean the same share of
the saliency by the same score (``probability``). With ``group`` the latter holds within a group, and each
group as a whole reaches its target at the same threshold: words are few, and each has a larger share than a
patch. With ``worth`` scores mean the saliency itself, over the MACs that a token costs from its layer on:
the threshold then drops what is worth least per MAC, patch or word, early or late, and no share of words has
to be chosen. The lowest scores lie ``margin`` above the present threshold: training begins with everything
kept, and what the model least depends on is the first to go. (A mean score of ``keep_logit`` would not do:
scores are spread over several logits, and much would be dropped at once. Nor would lowest scores that are
alike everywhere: half of the words would be dropped.)

With ``hold_weight`` the scores go on learning it in training (:class:`.objective.Target`'s ``guidance``).
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from smarttrim_cli.engine.checkpoint import prune_checkpoints, save_checkpoint
from smarttrim_cli.errors import UserError
from smarttrim_cli.pruning import saliency
from smarttrim_cli.pruning.cost import saved_by_a_token
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.pruning.sites import TOKEN, Site
from smarttrim_cli.recipe import Recipe
from smarttrim_cli.recipe.schema import GuidanceWarmup
from smarttrim_cli.trimmers.base import Trimmer

if TYPE_CHECKING:
    from smarttrim_cli.engine.trainer import Trainer

WHERE = "strategy.guidance_warmup.enabled"
_RAMP = 0.05
_LOWEST = 0.002
_BATCHES_TO_SHIFT_BY = 8
_SEED = 1_000_003


def warmup_of(trainer: Trainer) -> WarmStart | None:
    """The warm start that a run's recipe asks for, ready to begin; None without.

    Raises:
        UserError: There are no token trimmers, or they have no scores that could learn.
    """
    settings = trainer.recipe.strategy.guidance_warmup
    if not settings.enabled:
        return None
    check_warm_start(trainer.recipe, trainer.bundle.model)
    for trimmer in token_trimmers(trainer.bundle.model).values():
        trimmer.start_guided(settings.key_std)
    return WarmStart(trainer, settings)


def token_trimmers(model: TrimmedModel) -> dict[str, Trimmer]:
    """Site name to trimmer, of tokens."""
    return {name: trimmer for name, trimmer in model.sites.items() if Site.parse(name).kind == TOKEN}


def check_warm_start(recipe: Recipe, model: TrimmedModel) -> None:
    """Refuse one that has nothing to start.

    Raises:
        UserError: It is asked for, and there are no token trimmers, or they have no scores that could learn.
    """
    if not recipe.strategy.guidance_warmup.enabled:
        return
    found = token_trimmers(model)
    if not found:
        raise UserError(
            "there are no token trimmers to warm-start",
            where=WHERE,
            hint="strategy.guidance_warmup.enabled=false, or trim tokens",
        )
    for trimmer in found.values():
        if trimmer.draws or not trimmer.shifts:
            raise UserError(
                f"{type(trimmer).__name__} has no scores that could learn from saliency",
                where=WHERE,
                hint="pruning.token_trimmer: cross_modal or local (one of your own needs shift_scores); or "
                "both strategy.guidance_warmup.enabled=false and pruning.straight_through=true",
            )


class WarmStart:
    """The steps before training; ``Trainer.progress.warmup_step`` says how many are done."""

    def __init__(self, trainer: Trainer, settings: GuidanceWarmup) -> None:
        self.trainer, self.settings = trainer, settings
        share = settings.steps < 1
        self.steps = max(round(settings.steps * (trainer.total_steps if share else 1)), 1)
        onward = settings.saliency == "onward"
        self.losses = saliency.Warmup(settings.weight, settings.temperature, settings.smoothing, onward)
        self.hold = replace(self.losses, weight=settings.hold_weight) if settings.hold_weight else None

    def run(self) -> None:
        """All steps that are still to do; checkpoints as in training, where it comes before all of it."""
        trainer, progress = self.trainer, self.trainer.progress
        if progress.warmup_step == self.steps:
            return
        loader = iter(
            trainer.loader(
                progress.warmup_step, self.steps + _BATCHES_TO_SHIFT_BY, trainer.recipe.seed + _SEED
            )
        )
        started, before = time.perf_counter(), progress.seconds
        with trainer.reporter.track(self.steps, "warming up the trimmers") as tracker:
            while progress.warmup_step < self.steps:
                self._set_learning_rates()
                progress.add(trainer.optimize(loader, self.losses))
                progress.warmup_step += 1
                progress.seconds = before + time.perf_counter() - started
                if self._due(trainer.recipe.logging.logging_steps):
                    tracker.update(progress.warmup_step, **trainer.log.warmup(progress))
                if progress.warmup_step == self.steps:
                    self._end(loader)
                saves = trainer.recipe.train.save_steps and not progress.step
                if saves and self._due(trainer.recipe.train.save_steps or 0):
                    self._save()
                amid = progress.step > 0  # there is a checkpoint of what was before
                trainer.stopping.check((lambda _: None) if amid else save_checkpoint)

    def _due(self, every: int) -> bool:
        step = self.trainer.progress.warmup_step
        return step == self.steps or step % every == 0

    def _set_learning_rates(self) -> None:
        """A linear rise over the first steps, then a cosine to 0."""
        trainer = self.trainer
        step, rise = trainer.progress.warmup_step, max(int(_RAMP * self.steps), 1)
        factor = min((step + 1) / rise, 0.5 * (1 + math.cos(math.pi * step / self.steps)))
        groups = trainer.optimizer.param_groups
        for group, base in zip(groups, trainer.scheduler.base_lrs, strict=True):
            own = self.settings.learning_rate if group["part"] == "trimmers" else base
            group["lr"] = own * factor

    def _save(self) -> None:
        trainer = self.trainer
        save_checkpoint(trainer)
        if trainer.accelerator.is_main_process:
            prune_checkpoints(trainer.run, trainer.recipe.train.save_total_limit, None)

    def _end(self, loader: object) -> None:
        """Everything is kept again; the optimizer is as if nothing had been."""
        trainer = self.trainer
        self._shift(loader)
        trainer.optimizer.state.clear()
        rates = trainer.scheduler.get_last_lr()
        for group, rate in zip(trainer.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    @torch.no_grad()
    def _shift(self, loader: object) -> None:
        trainer, model = self.trainer, self.trainer.bundle.model
        model.eval()
        trimmers = token_trimmers(model)
        dropped = {name: 1 - trainer.plan.kept[Site.parse(name).group] for name in trimmers}
        lowest = dict.fromkeys(trimmers, 0.0)
        equal = dict.fromkeys(trimmers, 0.0)
        for _ in range(_BATCHES_TO_SHIFT_BY):
            batch = trainer.next_batch(loader)
            with trainer.accelerator.autocast(), torch.set_grad_enabled(self.settings.align == "worth"):
                found = saliency.probe(model, batch.inputs)
                level = self._equal(found, dropped, batch)
            for name in trimmers:
                (low,) = saliency.score_quantiles(found, name, (_LOWEST,))
                lowest[name] += trainer.mean_over_processes(low) / _BATCHES_TO_SHIFT_BY
                equal[name] += trainer.mean_over_processes(level[name]) / _BATCHES_TO_SHIFT_BY
        widest = max(equal[name] - lowest[name] for name in trimmers)
        where = float(model.threshold) + self.settings.margin + widest
        for name, trimmer in trimmers.items():
            trimmer.shift_scores(where - equal[name])

    def _equal(self, found: saliency.Probe, dropped: dict[str, float], batch: Any) -> dict[str, float]:
        """The score of every site that is to be the same for all of them."""
        if self.settings.align == "quantile":
            return {
                name: saliency.score_quantiles(found, name, (max(share, _LOWEST),))[0]
                for name, share in dropped.items()
            }
        level = {name: saliency.mean_log_total(found, name) for name in dropped}
        if self.settings.align == "worth":
            return self._per_mac(found, level, batch)
        if self.settings.align == "group":
            groups = {name: Site.parse(name).group for name in dropped}
            for group in set(groups.values()):
                own = {name: level[name] for name in dropped if groups[name] == group}
                reached = saliency.share_quantile(found, own, max(dropped[next(iter(own))], _LOWEST))
                level |= {name: value + reached for name, value in own.items()}
        return level

    def _per_mac(self, found: saliency.Probe, level: dict[str, float], batch: Any) -> dict[str, float]:
        """Scores less these are the logarithm of a token's saliency over the MACs it costs from there on."""
        trainer = self.trainer
        model, task = trainer.bundle.model, trainer.bundle.task
        answer = saliency.own_answer(found.output, task.logits(found.output, batch))
        worth = saliency.mean_log_saliency(found, answer, self.losses.onward)
        for name in level:
            saved = saved_by_a_token(model.architecture, trainer.plan.tokens, name)
            level[name] += math.log(saved) - worth[name]
        return level

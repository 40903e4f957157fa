"""The training loop of a run.

Beside it: what a step aims at (:mod:`.targets`), the log (:mod:`.training_log`), scores amid training
(:mod:`.validation`), checkpoints (:mod:`.checkpoint`) and the end (:mod:`.ending`).

One optimizer step is a masked forward, self-distillation's full forward and one backward (pruning.objective).
Runs resume exactly: weights, optimizer, schedule and random states are in every checkpoint; batches and the
curriculum are functions of the step.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from smarttrim_cli.engine.artifact import Bundle
from smarttrim_cli.engine.checkpoint import load_checkpoint, prune_checkpoints, save_checkpoint
from smarttrim_cli.engine.files import is_number
from smarttrim_cli.engine.fingerprint import fingerprint, meaning
from smarttrim_cli.engine.importance import rank_heads
from smarttrim_cli.engine.inference import to_device
from smarttrim_cli.engine.keeping import in_all, kept_amid_training, kept_if_data_fail, kept_if_it_fails
from smarttrim_cli.engine.loading import Loader
from smarttrim_cli.engine.optim import make_optimizer, schedule_factor
from smarttrim_cli.engine.progress import Progress
from smarttrim_cli.engine.report import Reporter
from smarttrim_cli.engine.runs import Run
from smarttrim_cli.engine.sampling import StepSampler
from smarttrim_cli.engine.steering import LEVEL, check_steering, hold_heads, steer
from smarttrim_cli.engine.stopping import Stopping
from smarttrim_cli.engine.targets import Targets
from smarttrim_cli.engine.teacher import teaching_of
from smarttrim_cli.engine.training_log import TrainingLog
from smarttrim_cli.engine.validation import validate
from smarttrim_cli.engine.warmup import warmup_of
from smarttrim_cli.errors import SmartTrimError, UserError
from smarttrim_cli.pruning.objective import Objective, Target, Weights
from smarttrim_cli.pruning.plan import Plan
from smarttrim_cli.pruning.saliency import Warmup
from smarttrim_cli.pruning.teacher import TaughtObjective, Teaching
from smarttrim_cli.recipe import Recipe
from smarttrim_cli.tasks._data import stable_hash
from smarttrim_cli.tasks.base import Batch

_MOST_LEFT_OUT = 50
"""Steps in a row that float16's scaler may leave out; its scale begins at 2^16 and halves each time."""


class Trainer:
    """The training loop of one run."""

    def __init__(
        self,
        recipe: Recipe,
        run: Run,
        bundle: Bundle,
        plan: Plan,
        accelerator: Accelerator,
        reporter: Reporter,
    ) -> None:
        self.recipe, self.run, self.bundle, self.plan = recipe, run, bundle, plan
        self.accelerator, self.reporter = accelerator, reporter
        self.progress = Progress()
        train = recipe.train
        teaching = teaching_of(recipe, bundle, reporter.message)
        self.objective = _objective(recipe, bundle, plan, teaching)
        self.dataset = bundle.task.dataset(bundle.task.split_name("train"), bundle.processor, training=True)
        self.samples_per_step = (
            train.per_device_train_batch_size * train.gradient_accumulation_steps * accelerator.num_processes
        )
        epochs = train.num_train_epochs or 0
        size = len(self.dataset)  # type: ignore[arg-type]
        self.total_steps = train.max_steps or max(round(epochs * size / self.samples_per_step), 1)
        optimizer = make_optimizer(self.objective, recipe.optimizer)
        self.rate_factor = schedule_factor(recipe.optimizer, self.total_steps)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate_factor)
        self.wrapped, self.optimizer = accelerator.prepare(self.objective, optimizer)
        if teaching is not None:
            teaching.model.to(accelerator.device)
        self._left_out = 0
        self.stopping = Stopping(self)
        self.log = TrainingLog(recipe, run, accelerator)
        self.targets = Targets(recipe, plan, self.total_steps)
        self.warmup = warmup_of(self)
        self.targets.guidance = None if self.warmup is None else self.warmup.hold
        check_steering(recipe, bundle.model)
        if (
            accelerator.process_index > 0
        ):  # noise and dropout of their own; batches are drawn for all together
            torch.manual_seed(stable_hash(recipe.seed, accelerator.process_index))

    @cached_property
    def fingerprint(self) -> str:
        """Of the training data: runs go on with the same."""
        task = self.bundle.task
        return fingerprint(task.samples(task.split_name("train")))

    @cached_property
    def meaning(self) -> dict[str, str]:
        """Of classes, tokens and pixels: weights are for these alone."""
        return meaning(self.bundle)

    def resume(self, checkpoint: Path) -> None:
        """Go to where a checkpoint was written."""
        self.progress = Progress(**load_checkpoint(checkpoint, self))
        self.reporter.message(
            f"resuming at step {self.progress.step} of {self.total_steps} from {checkpoint}"
            + ("; nothing is left but its end" if self.progress.step == self.total_steps else "")
        )

    def go_back(self) -> None:
        """Remove what an earlier, longer training left behind the step that this one goes on from."""
        progress, metric = self.progress, self.bundle.task.metric
        later = self.run.drop_later_checkpoints(progress.step, progress.warmup_step)
        if later:
            self.reporter.message(f"removed as of later steps than {progress.step}: {', '.join(later)}")
        ended = progress.step == self.total_steps  # then its evaluation is done anew, too
        first = progress.step if ended else progress.step + 1
        evaluated = [r["eval"].get(metric) for r in self.run.history() if "eval" in r and r["step"] >= first]
        scores = [score for score in evaluated if is_number(score)]  # none of a model that has diverged
        best = -math.inf if progress.best_score is None else progress.best_score
        if (later or ended) and max(scores, default=-math.inf) > best:
            self.run.forget_best()
            progress.best_score = progress.best_step = None

    def train(self) -> None:
        """All steps that are still to do; a warm start comes right before the first that trims.

        Raises:
            Stopped: By a signal; there is a checkpoint then.
        """
        with self.stopping.listening():
            self._train()

    def _train(self) -> None:
        self.log.open(self.progress.step)
        if self.bundle.model.sites and self.targets.first_trimmed_step >= self.total_steps > 0:
            share = self.recipe.strategy.curriculum.start_ratio
            self.reporter.warn(
                f"none of the {self.total_steps} steps trims: it begins after a share of {share:g} "
                "(strategy.curriculum.start_ratio)"
            )
        warmup = self.recipe.optimizer.warmup_steps
        if warmup >= self.total_steps:
            self.reporter.warn(
                f"the learning rate does not reach its peak in {self.total_steps} steps "
                f"(optimizer.warmup_steps: {warmup:g})"
            )
        loader = iter(self.loader(self.progress.step, self.total_steps, self.recipe.seed))
        if self.warmup is not None:
            self._train_until(loader, self.targets.first_trimmed_step)
            progress = self.progress
            amid = progress.step > 0  # what was not yet logged is training's then
            before = (progress.sums, progress.counts) if amid else ({}, {})
            with kept_amid_training(self):
                if amid:
                    progress.sums, progress.counts = {}, {}
                self.warmup.run()
            progress.sums, progress.counts = before
        self._train_until(loader, self.total_steps)

    def _train_until(self, loader: Any, end: int) -> None:
        if self.progress.step >= end:
            return
        started, before = time.perf_counter(), self.progress.seconds
        with self.reporter.track(self.total_steps, "training") as tracker:
            while self.progress.step < end:
                terms = self._step(loader)
                self.progress.step += 1
                self.progress.seconds = before + time.perf_counter() - started
                self.progress.add(terms)
                if self._due(self.recipe.logging.logging_steps):
                    tracker.update(self.progress.step, **self._log())
                self._evaluate_and_save()
                self.stopping.check()

    def loader(self, first: int, last: int, seed: int) -> Loader:
        """Training batches of this process for the steps from one to before another."""
        train = self.recipe.train
        micro = train.gradient_accumulation_steps * self.accelerator.num_processes
        sampler = StepSampler(
            len(self.dataset),  # type: ignore[arg-type]
            train.per_device_train_batch_size,
            seed,
            first * micro,
            last * micro,
        )
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        own = [batch for number, batch in enumerate(sampler) if number % processes == rank]
        return Loader(
            self.dataset,
            self.bundle.task,
            self.bundle.processor,
            skip_empty=False,
            training=True,
            batch_sampler=own,
            num_workers=train.dataloader_num_workers,
        )

    def _step(self, loader: Any) -> dict[str, float]:
        target = self.targets.at(self.progress.step)
        if target is not None:
            if self.targets.begin_at(self.progress.step):
                self._rank_heads()
            self.bundle.model.set_targets(target.kept)
        terms = self.optimize(loader, target)
        self.scheduler.step()
        controller = self.recipe.strategy.budget_controller
        if target is not None and controller.enabled:
            solved, ratio = (
                self.mean_over_processes(terms.get(name, 0.0)) for name in ("threshold", "macs_ratio")
            )
            steer(self.bundle.model.threshold, controller, solved, ratio, target.macs)
        if target is not None and target.hold_heads:
            levels = {name: value for name, value in terms.items() if name.startswith(LEVEL)}
            hold_heads(
                self.bundle.model,
                {name.removeprefix(LEVEL): self.mean_over_processes(value) for name, value in levels.items()},
            )
        return terms

    def _rank_heads(self) -> None:
        split = self.bundle.task.split_name("train")
        arguments = (self.bundle, split, self.recipe.train.per_device_train_batch_size, self.recipe.seed)
        with kept_if_data_fail(self):
            count = in_all(self, lambda: rank_heads(*arguments), "rank the heads")
        if count:
            self.reporter.message(f"heads ranked by their importance on {count} instances of {split}")

    def optimize(self, loader: Any, target: Target | Warmup | None) -> dict[str, float]:
        """One optimizer step: forward and backward passes over accumulated batches; mean losses."""
        self.wrapped.train()
        target = self._scaled(target)
        terms: dict[str, float] = {}
        progress = self.progress.step / self.total_steps
        accumulation = self.recipe.train.gradient_accumulation_steps
        for _ in range(accumulation):
            with kept_if_data_fail(self):
                batch = self.next_batch(loader)
            with self.accelerator.accumulate(self.wrapped), self.accelerator.autocast():
                losses = self.wrapped(batch, target, progress)
                self._stop_unless_finite("loss", losses["loss"])
                self.accelerator.backward(losses["loss"])
                if self.accelerator.sync_gradients:
                    norm = self.accelerator.clip_grad_norm_(
                        self.wrapped.parameters(), self.recipe.optimizer.max_grad_norm
                    )
                    if self.accelerator.scaler is None:  # which skips such steps itself
                        self._stop_unless_finite("gradient norm", norm)
                self.optimizer.step()
                self._stop_if_nothing_is_done()
                self.optimizer.zero_grad()
            for name, value in losses.items():
                terms[name] = terms.get(name, 0.0) + float(value.detach()) / accumulation
        return terms

    def next_batch(self, loader: Any) -> Batch:
        """Of a loader, on the device; an error in all processes if one of them cannot have its own."""
        return to_device(in_all(self, lambda: next(loader), "load its samples"), self.accelerator.device)

    def _scaled(self, target: Target | Warmup | None) -> Target | Warmup | None:
        """The target with what losses are multiplied by before the backward pass."""
        if not isinstance(target, Target):
            return target
        scaler = self.accelerator.scaler
        scale = (1.0 if scaler is None else scaler.get_scale()) / self.accelerator.gradient_accumulation_steps
        return replace(target, sampling=replace(target.sampling, gradient_scale=scale))

    def _stop_if_nothing_is_done(self) -> None:
        """Float16's scaler leaves out steps whose gradients overflow: now and then, or all of them.

        Raises:
            SmartTrimError: So many in a row were left out that the model has diverged.
        """
        if self.accelerator.scaler is None or not self.accelerator.sync_gradients:
            return
        self._left_out = self._left_out + 1 if self.accelerator.optimizer_step_was_skipped else 0
        if self._left_out > _MOST_LEFT_OUT:
            self._stop_unless_finite("gradient norm", torch.tensor(math.inf))

    def mean_over_processes(self, value: float) -> float:
        """A number that every process has, as their mean; none (NaN) if it is none in any."""
        if self.accelerator.num_processes == 1:
            return value
        tensor = torch.tensor(value, device=self.accelerator.device)
        return float(self.accelerator.reduce(tensor, reduction="mean"))

    def _stop_unless_finite(self, what: str, value: torch.Tensor) -> None:
        """Stop before numbers that are none get into the weights.

        Raises:
            SmartTrimError: The value is infinite or not a number, in any process.
        """
        number = self.mean_over_processes(float(value.detach()))
        if not math.isfinite(number):
            raise SmartTrimError(
                f"training has diverged: the {what} is {number} at step {self.progress.step + 1}",
                where=str(self.run.path),
                hint="lower optimizer.learning_rate or its multipliers; earlier checkpoints are intact",
            )

    def _due(self, every: int | None) -> bool:
        last = self.progress.step == self.total_steps
        return last if every is None else last or self.progress.step % every == 0

    def _log(self) -> dict[str, float]:
        """The step just done: its target, and the learning rate of parts without a multiplier."""
        step = self.progress.step - 1
        target = self.targets.at(step)
        more = {} if target is None else {f"target/{group}": value for group, value in target.kept.items()}
        more["learning_rate"] = self.recipe.optimizer.learning_rate * self.rate_factor(step)
        return self.log.training(self.progress, more)

    def _evaluate_and_save(self) -> None:
        """Evaluation and checkpoint by steps; after the last one the end of training does both."""
        last = self.progress.step == self.total_steps
        if self.recipe.train.eval_steps and self._due(self.recipe.train.eval_steps) and not last:
            with kept_if_it_fails(self):
                in_all(self, lambda: validate(self), "score the model")
        if self.recipe.train.save_steps and self._due(self.recipe.train.save_steps):
            save_checkpoint(self)
            if self.accelerator.is_main_process:  # another's would delete what is being written
                prune_checkpoints(self.run, self.recipe.train.save_total_limit, self.progress.best_step)


def _objective(recipe: Recipe, bundle: Bundle, plan: Plan, teaching: Teaching | None) -> Objective:
    """The losses of a step.

    Raises:
        UserError: The task has losses of its own, by which trimmers would not learn.
    """
    model, task = bundle.model, bundle.task
    auxiliary = task.auxiliary(model.backbone, bundle.processor)
    if auxiliary is not None and recipe.pruning is not None:
        raise UserError(
            f"task {recipe.task.name} has losses of its own for the full model; trimmers would not learn",
            where="pruning",
            hint="pruning: null, or another task",
        )
    parts = (model, task.loss, task.logits, _weights(recipe), auxiliary)
    if teaching is not None:
        return TaughtObjective(teaching, *parts)
    return Objective(*parts, work=plan.tokens)


def _weights(recipe: Recipe) -> Weights:
    distillation, cost = recipe.strategy.self_distillation, recipe.strategy.cost_loss
    return Weights(
        distillation=distillation.weight if distillation.enabled else 0.0,
        distillation_temperature=distillation.temperature,
        cost=cost.weight,
        cost_on=cost.on,
        cost_one_sided=cost.one_sided,
    )

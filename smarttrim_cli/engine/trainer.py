"""The training loop of a run, with its logging, evaluations, checkpoints and end.

One optimizer step is a masked forward, self-distillation's full forward and one backward (pruning.objective).
Runs resume exactly: weights, optimizer, schedule and random states are in every checkpoint; batches and the
curriculum are functions of the step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from smarttrim_cli.engine.artifact import Bundle, save_model
from smarttrim_cli.engine.checkpoint import load_checkpoint, prune_checkpoints, save_checkpoint
from smarttrim_cli.engine.files import new_folder
from smarttrim_cli.engine.importance import rank_heads
from smarttrim_cli.engine.inference import batches, predict, to_device
from smarttrim_cli.engine.loading import Loader
from smarttrim_cli.engine.optim import make_optimizer, schedule_factor
from smarttrim_cli.engine.report import Reporter
from smarttrim_cli.engine.runs import Run
from smarttrim_cli.engine.sampling import StepSampler
from smarttrim_cli.engine.scores import collapse_warning, score_summary
from smarttrim_cli.engine.steering import LEVEL, check_steering, hold_heads, steer
from smarttrim_cli.engine.teacher import teaching_of
from smarttrim_cli.engine.warmup import warmup_of
from smarttrim_cli.errors import SmartTrimError, UserError
from smarttrim_cli.pruning.calibrate import Calibration, calibrate
from smarttrim_cli.pruning.context import Sampling
from smarttrim_cli.pruning.economy import unprofitable
from smarttrim_cli.pruning.objective import Objective, Target, Weights
from smarttrim_cli.pruning.plan import Plan
from smarttrim_cli.pruning.saliency import Warmup
from smarttrim_cli.pruning.schedule import (
    linear_schedule,
    noise_share,
    scheduled_targets,
)
from smarttrim_cli.pruning.teacher import TaughtObjective
from smarttrim_cli.recipe import Recipe
from smarttrim_cli.tasks.base import Task


@dataclass
class Progress:
    """Where training is."""

    step: int = 0
    warmup_step: int = 0
    best_score: float | None = None
    best_step: int | None = None
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    """Losses since they were last logged."""
    counts: dict[str, int] = field(default_factory=dict)
    """Of how many steps; what trimming brings begins amid them."""

    def __post_init__(self) -> None:
        """Checkpoints of older versions have no counts: their sums are left."""
        self.sums = {name: value for name, value in self.sums.items() if name in self.counts}

    def add(self, terms: Mapping[str, float]) -> None:
        """The losses of a step."""
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def take_means(self) -> dict[str, float]:
        """Means since they were last taken."""
        means = {name: value / self.counts[name] for name, value in self.sums.items()}
        self.sums, self.counts = {}, {}
        return means


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
        auxiliary = bundle.task.auxiliary(bundle.model.backbone, bundle.processor)
        if auxiliary is not None and recipe.pruning is not None:
            raise UserError(
                f"task {recipe.task.name} has losses of its own for the full model; trimmers would not learn",
                where="pruning",
                hint="pruning: null, or another task",
            )
        task = bundle.task
        teaching = teaching_of(recipe, bundle, reporter.message)
        parts = (bundle.model, task.loss, task.logits, _weights(recipe), auxiliary)
        self.objective = (
            Objective(*parts, work=plan.tokens) if teaching is None else TaughtObjective(teaching, *parts)
        )
        self.dataset = bundle.task.dataset(bundle.task.split_name("train"), bundle.processor, training=True)
        self.samples_per_step = (
            train.per_device_train_batch_size * train.gradient_accumulation_steps * accelerator.num_processes
        )
        epochs = train.num_train_epochs or 0
        self.total_steps = train.max_steps or max(
            round(epochs * len(self.dataset) / self.samples_per_step), 1
        )  # type: ignore[arg-type]
        optimizer = make_optimizer(self.objective, recipe.optimizer)
        factor = schedule_factor(recipe.optimizer, self.total_steps)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        self.wrapped, self.optimizer = accelerator.prepare(self.objective, optimizer)
        if teaching is not None:
            teaching.model.to(accelerator.device)
        self.writer = _tensorboard(recipe) if accelerator.is_main_process else None
        self.tracker: Any = None
        self.warmup = warmup_of(self)
        check_steering(recipe, bundle.model)

    # --- the loop ---

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
        evaluated = [
            r["eval"].get(metric) for r in self.run.history() if "eval" in r and r["step"] > progress.step
        ]
        scores = [score for score in evaluated if score is not None]  # none of a model that has diverged
        best = -math.inf if progress.best_score is None else progress.best_score
        if later and max(scores, default=-math.inf) > best:
            self.run.forget_best()
            progress.best_score = progress.best_step = None

    def train(self) -> None:
        """All steps that are still to do; a warm start comes right before the first that trims."""
        if self.writer is not None:
            self.tracker = self.writer(str(self.run.path / "tensorboard"), purge_step=self.progress.step + 1)
        loader = iter(self.loader(self.progress.step, self.total_steps, self.recipe.seed))
        if self.warmup is not None:
            self._train_until(loader, self.first_trimmed_step)
            progress = self.progress
            amid = progress.step > 0  # what was not yet logged is training's then
            before = (progress.sums, progress.counts) if amid else ({}, {})
            if amid:
                progress.sums, progress.counts = {}, {}
            self.warmup.run()
            progress.sums, progress.counts = before
        self._train_until(loader, self.total_steps)

    @property
    def first_trimmed_step(self) -> int:
        """How many steps the full model trains alone."""
        steps = (
            step for step in range(self.total_steps) if self.target_at(step / self.total_steps) is not None
        )
        return next(steps, self.total_steps)

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
        target = self.target_at(self.progress.step / self.total_steps)
        if target is not None:
            if self._trimming_begins():
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

    def _trimming_begins(self) -> bool:
        """Whether the next step is the first that trims."""
        step = self.progress.step
        return step == 0 or self.target_at((step - 1) / self.total_steps) is None

    def _rank_heads(self) -> None:
        split = self.bundle.task.split_name("train")
        count = rank_heads(
            self.bundle, split, self.recipe.train.per_device_train_batch_size, self.recipe.seed
        )
        if count:
            self.reporter.message(f"heads ranked by their importance on {count} instances of {split}")

    def optimize(self, loader: Any, target: Target | Warmup | None) -> dict[str, float]:
        """One optimizer step: forward and backward passes over accumulated batches; mean losses."""
        self.wrapped.train()
        terms: dict[str, float] = {}
        progress = self.progress.step / self.total_steps
        accumulation = self.recipe.train.gradient_accumulation_steps
        for _ in range(accumulation):
            batch = to_device(next(loader), self.accelerator.device)
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
                self.optimizer.zero_grad()
            for name, value in losses.items():
                terms[name] = terms.get(name, 0.0) + float(value.detach()) / accumulation
        return terms

    def mean_over_processes(self, value: float) -> float:
        """A number that every process has, as their mean."""
        tensor = torch.tensor(value, device=self.accelerator.device)
        return float(self.accelerator.reduce(tensor, reduction="mean"))

    def _stop_unless_finite(self, what: str, value: torch.Tensor) -> None:
        """Stop before numbers that are none get into the weights.

        Raises:
            SmartTrimError: The value is infinite or not a number.
        """
        number = float(value.detach())
        if not math.isfinite(number):
            raise SmartTrimError(
                f"training has diverged: the {what} is {number} at step {self.progress.step + 1}",
                where=str(self.run.path),
                hint="lower optimizer.learning_rate or its multipliers; earlier checkpoints are intact",
            )

    def target_at(self, progress: float) -> Target | None:
        """What a step aims at; None for plain fine-tuning, and before trimming begins."""
        pruning, curriculum = self.recipe.pruning, self.recipe.strategy.curriculum
        if pruning is None or progress < curriculum.start_ratio:
            return None
        progress = (progress - curriculum.start_ratio) / (1 - curriculum.start_ratio)
        kept = scheduled_targets(self.plan.kept, progress, curriculum.end_ratio, curriculum.enabled)
        macs = 1.0 / self.plan.speedup
        if curriculum.enabled:
            macs = linear_schedule(macs, progress, curriculum.end_ratio)
        stable = self.recipe.strategy.stable_init
        grows = stable.enabled and stable.grow_noise
        noise = noise_share(progress, curriculum.end_ratio, grows, pruning.noise_anneal_ratio)
        noise = noise if pruning.gumbel_noise else 0.0
        controller = self.recipe.strategy.budget_controller
        solve = controller.enabled and controller.method == "solved"
        noisy = "heads" if pruning.gumbel_noise == "heads" else "all"
        sampling = Sampling(pruning.temperature, noise, pruning.straight_through, noisy)
        hold = None if self.warmup is None else self.warmup.hold
        return Target(kept, macs, sampling, solve, hold, solve and controller.hold_heads)

    # --- logging, evaluation, checkpoints ---

    def _due(self, every: int | None) -> bool:
        last = self.progress.step == self.total_steps
        return last if every is None else last or self.progress.step % every == 0

    def _log(self) -> dict[str, float]:
        record = self._over_processes(self.progress.take_means())
        target = self.target_at(self.progress.step / self.total_steps)
        if target is not None:
            record |= {f"target/{group}": value for group, value in target.kept.items()}
        record["learning_rate"] = self.scheduler.get_last_lr()[0]
        if self.accelerator.is_main_process:
            self.run.log({"step": self.progress.step, "seconds": round(self.progress.seconds, 2), **record})
            if self.tracker is not None:
                for name, value in record.items():
                    self.tracker.add_scalar(name, value, self.progress.step)
        return record

    def _over_processes(self, means: dict[str, float]) -> dict[str, float]:
        """Means of all processes as one; each has seen batches of its own."""
        if self.accelerator.num_processes == 1 or not means:
            return means
        values = torch.tensor([means[name] for name in sorted(means)], device=self.accelerator.device)
        reduced = self.accelerator.reduce(values, reduction="mean").tolist()
        return dict(zip(sorted(means), reduced, strict=True))

    def _evaluate_and_save(self) -> None:
        """Evaluation and checkpoint by steps; after the last step ``finish`` does both."""
        last = self.progress.step == self.total_steps
        if self.recipe.train.eval_steps and self._due(self.recipe.train.eval_steps) and not last:
            self._evaluate()
        if self.recipe.train.save_steps and self._due(self.recipe.train.save_steps):
            save_checkpoint(self)
            if self.accelerator.is_main_process:  # another's would delete what is being written
                prune_checkpoints(self.run, self.recipe.train.save_total_limit, self.progress.best_step)

    def _evaluate(self) -> dict[str, Any]:
        """Score the model on the evaluation split, in ``masked`` mode, and keep the best one."""
        task, model = self.bundle.task, self.bundle.model
        model.eval()
        settings = self.recipe.evaluate
        mode = "masked" if model.sites else "full"
        loader = batches(
            self.bundle,
            task.split_name("eval"),
            settings.batch_size,
            settings.max_instances,
            self.recipe.train.dataloader_num_workers,
        )
        result = predict(self.bundle, loader, (mode,), self.reporter, "evaluating")[mode]
        scores = score_summary(task, result)
        if task.metric not in scores:
            raise without_references(task)
        warning = collapse_warning(result.records, trimmed=bool(model.sites))
        if warning:
            self.reporter.warn(f"step {self.progress.step}: {warning}")
        record = {"step": self.progress.step, "eval": scores} | ({"warning": warning} if warning else {})
        if self.accelerator.is_main_process:
            self.run.log(record)
        self.reporter.message(f"step {self.progress.step}: {task.metric} {scores[task.metric]:.4f}")
        self._keep_best(scores[task.metric])
        return scores

    def _keep_best(self, score: float) -> None:
        """Models are only comparable once the full target holds."""
        curriculum, step = self.recipe.strategy.curriculum, self.progress.step
        if self.bundle.model.sites:
            begins, ramp = curriculum.start_ratio, curriculum.end_ratio if curriculum.enabled else 0.0
            untrimmed = (step - 1) / self.total_steps < begins
            if untrimmed or step / self.total_steps < begins + (1 - begins) * ramp:
                return
        if self.progress.best_score is None or score > self.progress.best_score:
            self.progress.best_score, self.progress.best_step = score, self.progress.step
            self._save(self.run.path / "best")

    def _save(self, path: Path) -> None:
        if self.accelerator.is_main_process:
            with new_folder(path) as folder:
                save_model(folder, self.bundle)

    def finish(self) -> dict[str, Any]:
        """Calibrate the budget, save the model, score it on the evaluation split."""
        self.bundle.model.eval()
        result: dict[str, Any] = {"run_dir": str(self.run.path), "steps": self.total_steps}
        if self.warmup is not None:
            result["warmup_steps"] = self.warmup.steps
        result["train_seconds"] = round(self.progress.seconds, 1)
        try:
            calibration = self._calibrate()
        except (Exception, KeyboardInterrupt):
            self._keep_training()
            raise
        if calibration is not None:
            result["calibration"] = vars(calibration)
        self._save(self.run.model)
        scores = self._evaluate()
        result["eval"] = {"split": self.bundle.task.split_name("eval"), **scores}
        if self.accelerator.is_main_process:
            self.run.merge_summary(result)
        return result

    def _keep_training(self) -> None:
        """A checkpoint of the last step, from which the end can be done once what stopped it is mended."""
        save_checkpoint(self)
        where = self.run.path / "checkpoints" / f"step-{self.progress.step}"
        self.reporter.warn(f"what was trained is in {where}; --resume auto goes on from there")

    def _calibrate(self) -> Calibration | None:
        pruning = self.recipe.pruning
        if pruning is None or pruning.calibrate is None or not self.bundle.model.sites:
            return None
        settings = pruning.calibrate
        split = self.bundle.task.split_name(settings.split)
        device = self.accelerator.device
        loader = batches(self.bundle, split, self.recipe.evaluate.batch_size, settings.max_instances)
        few = [to_device(batch, device) for batch in loader]
        result = calibrate(self.bundle.model, few, self.plan.speedup, settings.tolerance)
        if settings.remove_unprofitable and self._remove_unprofitable(few, settings.call_macs):
            result = calibrate(self.bundle.model, few, self.plan.speedup, settings.tolerance)
        text = f"calibrated: threshold {result.threshold:+.3f}, {result.speedup:.3f}x fewer MACs on {split}"
        self.reporter.message(text)
        if not result.reached:
            self.reporter.warn(
                f"the budget of {result.target:.2f}x was not met exactly: {result.speedup:.3f}x"
            )
        return result

    def _remove_unprofitable(self, few: list[Any], call_macs: float) -> list[str]:
        """Take out trimmers that cost more than they save, and say so; their sites."""
        model, config = self.bundle.model, self.bundle.config
        names = unprofitable(model, few, call_macs)
        if names:
            there = len(model.sites)
            model.remove(names)
            config["trimmers"] = {**config["trimmers"], "removed": sorted(names)}
            self.reporter.message(f"{len(names)} of {there} trimmers cost more than they save: taken out")
        return names


def without_references(task: Task) -> UserError:
    """The error for an evaluation split that nothing can be scored on."""
    return UserError(
        f"split {task.split_name('eval')} has no reference answers, so it gives no {task.metric}",
        where="task.splits.eval",
        hint="name a split with annotations",
    )


def _weights(recipe: Recipe) -> Weights:
    distillation, cost = recipe.strategy.self_distillation, recipe.strategy.cost_loss
    return Weights(
        distillation=distillation.weight if distillation.enabled else 0.0,
        distillation_temperature=distillation.temperature,
        cost=cost.weight,
        cost_on=cost.on,
        cost_one_sided=cost.one_sided,
    )


def _tensorboard(recipe: Recipe) -> Any:
    if "tensorboard" not in recipe.logging.report_to:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            "tensorboard is not installed",
            where="logging.report_to",
            hint="pip install 'smarttrim-cli[track]'",
        ) from error
    return SummaryWriter

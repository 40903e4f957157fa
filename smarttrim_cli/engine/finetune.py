"""Fine-tuning: a recipe becomes a run directory with a trimmed model."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, set_seed

from smarttrim_cli.data.samples import is_labelled
from smarttrim_cli.engine.artifact import Bundle
from smarttrim_cli.engine.build import build, completed, plan_for
from smarttrim_cli.engine.devices import set_threads, several_on_cpu
from smarttrim_cli.engine.ending import finish
from smarttrim_cli.engine.files import check_writable
from smarttrim_cli.engine.plan import describe_plan
from smarttrim_cli.engine.plan import plan as plan_without_data
from smarttrim_cli.engine.plugin_checks import refuse_odd_task
from smarttrim_cli.engine.report import Reporter, SilentReporter
from smarttrim_cli.engine.resume import checkpoint_to_resume, refuse_other_recipe
from smarttrim_cli.engine.runs import Run, is_run
from smarttrim_cli.engine.sharing import leave_group_at_exit
from smarttrim_cli.engine.trainer import Trainer
from smarttrim_cli.engine.validation import without_references
from smarttrim_cli.errors import UserError, some
from smarttrim_cli.pruning.plan import Plan
from smarttrim_cli.recipe import Recipe


def finetune(
    recipe: Recipe,
    *,
    resume: str | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Train as a recipe says.

    Args:
        recipe: What to do.
        resume: ``auto`` (the newest checkpoint of the run, if there is one) or the path of a checkpoint.
        dry_run: Stop before training and return the plan.
        overwrite: Replace an earlier run in ``output_dir``.
        reporter: Receives messages and progress.

    Returns:
        The plan for a dry run; else the summary: ``run_dir``, ``steps``, ``full``, ``trimmed``, ``speedup``,
        ...

    Raises:
        UserError: The recipe asks for something impossible, or ``output_dir`` is taken.
        SmartTrimError: Training diverges.
    """
    reporter = reporter or SilentReporter()
    run = Run(Path(recipe.output_dir))
    if resume is not None and overwrite:
        raise UserError("--resume and --overwrite contradict each other", hint="give one of them")
    if not dry_run:
        _refuse_taken(run, resume, overwrite)
        check_writable(run.path, "output_dir", folder=True)
    checkpoint = None if dry_run else checkpoint_to_resume(run, resume)
    if recipe.train.num_threads:
        set_threads(recipe.train.num_threads, "train.num_threads")
    AcceleratorState._reset_state()  # of an earlier run in this process: it fixes the precision
    accelerator = Accelerator(
        cpu=several_on_cpu(),
        mixed_precision=recipe.train.mixed_precision,
        gradient_accumulation_steps=recipe.train.gradient_accumulation_steps,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    leave_group_at_exit()
    if recipe.train.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError(
            "a CPU does not train in float16", where="train.mixed_precision", hint="bf16, no, or a GPU"
        )
    if not accelerator.is_main_process:
        reporter = SilentReporter()
    set_seed(recipe.seed)
    if dry_run:
        return _dry_run(recipe, run, accelerator, reporter)
    bundle = build(recipe, reporter.message)
    _open_splits(recipe, bundle)
    plan = plan_for(recipe, bundle)
    _warn_of_costs(plan, bundle, reporter)
    trainer = Trainer(recipe, run, bundle, plan, accelerator, reporter)
    stored = completed(recipe, bundle)
    if checkpoint is not None:
        refuse_other_recipe(checkpoint, stored, reporter.warn)
        trainer.resume(checkpoint)
        accelerator.wait_for_everyone()  # nothing is removed unless all of them can go on from it
    with run.claimed() if accelerator.is_main_process else nullcontext():
        return _train(trainer, stored, checkpoint, resume, overwrite)


def _train(
    trainer: Trainer, stored: Recipe, checkpoint: Path | None, resume: str | None, overwrite: bool
) -> dict[str, Any]:
    """Training and its end; nothing of an earlier run is touched before all that it needs is well."""
    run, progress = trainer.run, trainer.progress
    first = progress.step
    if trainer.accelerator.is_main_process:
        _refuse_taken(run, resume, overwrite)  # again: another process may have been there meanwhile
        if overwrite:
            run.clear()
        run.start(stored)
        if checkpoint is not None:
            trainer.go_back()
        run.rewind(first, progress.warmup_step, ended=first == trainer.total_steps)
    trainer.train()
    trained = first < trainer.total_steps  # else it is the model that was there
    if trainer.accelerator.is_main_process and trained:
        run.forget_results()
    return finish(trainer)


def _dry_run(recipe: Recipe, run: Run, accelerator: Accelerator, reporter: Reporter) -> dict[str, Any]:
    """The plan, with all checked that training needs; without data or weights by the configuration alone."""
    try:
        bundle = build(recipe, reporter.message)
        _open_splits(recipe, bundle)
    except UserError as error:
        reporter.warn(f"this would stop the training: {error}")
        return plan_without_data(recipe)
    plan = plan_for(recipe, bundle)
    _warn_of_costs(plan, bundle, reporter)
    try:
        Trainer(recipe, run, bundle, plan, accelerator, reporter)
    except UserError as error:
        reporter.warn(f"this would stop the training: {error}")
    return describe_plan(recipe, bundle.model, plan)


def _warn_of_costs(plan: Plan, bundle: Bundle, reporter: Reporter) -> None:
    if bundle.model.sites and plan.speedup <= 1:
        text = f"the trimmers will cost more than they save: {plan.speedup:.3f}x fewer MACs"
        reporter.warn(f"{text}; remove more, or make them smaller (hidden_dim)")


def _open_splits(recipe: Recipe, bundle: Bundle) -> None:
    """Read what is needed after training already now: a name that is wrong should not cost the training."""
    calibrated = recipe.pruning.calibrate if recipe.pruning else None
    for role in ("eval", *([calibrated.split] if calibrated else [])):
        bundle.task.dataset(bundle.task.split_name(role), bundle.processor)
    if not any(map(is_labelled, bundle.task.samples(bundle.task.split_name("eval")))):
        raise without_references(bundle.task)
    refuse_odd_task(bundle, recipe.task.name)


def _refuse_taken(run: Run, resume: str | None, overwrite: bool) -> None:
    foreign = run.foreign()
    begun = is_run(run.path) and "recipe.yaml" not in foreign
    if foreign and (overwrite or not begun):
        raise UserError(
            f"this directory holds other things than a run: {some(foreign)}",
            where=str(run.path),
            hint="output_dir=... goes elsewhere; nothing in it was touched",
        )
    if begun and resume is None and not overwrite:
        raise UserError(
            "there is a run in this directory already",
            where=str(run.path),
            hint="--resume auto continues it, --overwrite replaces it, output_dir=... goes elsewhere",
        )

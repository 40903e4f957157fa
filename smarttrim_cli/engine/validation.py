"""Scores of a model amid its training, on the evaluation split, and the best model so far."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from smarttrim_cli.engine.artifact import save_model
from smarttrim_cli.engine.files import new_folder
from smarttrim_cli.engine.inference import batches, predict
from smarttrim_cli.engine.scores import collapse_warning, score_summary
from smarttrim_cli.engine.sharing import Share
from smarttrim_cli.errors import UserError
from smarttrim_cli.tasks.base import Task

if TYPE_CHECKING:
    from smarttrim_cli.engine.trainer import Trainer


def validate(trainer: Trainer) -> dict[str, Any]:
    """Score the model on the evaluation split, in ``masked`` mode, log it, and keep the best one.

    Of several processes each runs a part of the split, and all have the scores of the whole.

    Returns:
        The scores; those of the task's metric among them.

    Raises:
        UserError: The split has no reference answers.
    """
    bundle, recipe, step = trainer.bundle, trainer.recipe, trainer.progress.step
    task, model = bundle.task, bundle.model
    model.eval()
    mode = "masked" if model.sites else "full"
    share = _share(trainer)
    loader = batches(
        bundle,
        task.split_name("eval"),
        recipe.evaluate.batch_size,
        recipe.evaluate.max_instances,
        recipe.train.dataloader_num_workers,
        share,
    )
    result = predict(bundle, loader, (mode,), trainer.reporter, "evaluating", share=share)[mode]
    scores = score_summary(task, result)
    if task.metric not in scores:
        raise without_references(task)
    warning = collapse_warning(result.records, trimmed=bool(model.sites))
    if warning:
        trainer.reporter.warn(f"step {step}: {warning}")
    trainer.log.evaluation(step, scores, warning)
    trainer.reporter.message(f"step {step}: {task.metric} {scores[task.metric]:.4f}")
    _keep_best(trainer, scores[task.metric])
    return scores


def _share(trainer: Trainer) -> Share | None:
    """This process's part of the split; None is all of it: tasks in two stages have no parts."""
    accelerator = trainer.accelerator
    if getattr(trainer.bundle.task, "two_stage", False):
        return None
    return Share(accelerator.process_index, accelerator.num_processes, accelerator.device)


def save(trainer: Trainer, path: Path) -> None:
    """Write the model as an artifact; the first process alone."""
    if trainer.accelerator.is_main_process:
        with new_folder(path) as folder:
            save_model(folder, trainer.bundle)


def without_references(task: Task) -> UserError:
    """The error for an evaluation split that nothing can be scored on."""
    return UserError(
        f"split {task.split_name('eval')} has no reference answers, so it gives no {task.metric}",
        where="task.splits.eval",
        hint="name a split with annotations",
    )


def _keep_best(trainer: Trainer, score: float) -> None:
    """Models are only comparable once the full target holds."""
    progress = trainer.progress
    if trainer.bundle.model.sites and not trainer.targets.hold_whole_at(progress.step):
        return
    if progress.best_score is None or score > progress.best_score:
        progress.best_score, progress.best_step = score, progress.step
        save(trainer, trainer.run.path / "best")

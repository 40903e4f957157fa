"""The end of a training: calibrate the budget, take out trimmers that do not pay, save and score."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from smarttrim_cli.engine.artifact import Bundle
from smarttrim_cli.engine.inference import batches, to_device
from smarttrim_cli.engine.keeping import in_all, kept_if_it_fails
from smarttrim_cli.engine.validation import save, validate
from smarttrim_cli.pruning.calibrate import Calibration, calibrate
from smarttrim_cli.pruning.economy import unprofitable

if TYPE_CHECKING:
    from smarttrim_cli.engine.trainer import Trainer

_COARSE = 0.05
"""Relative distance from the budget up to which scores that go together explain it."""

_FAR = 0.1
"""Relative distance from the budget from which on the end of a training was off it."""


def finish(trainer: Trainer) -> dict[str, Any]:
    """Calibrate the budget, save the model, score it on the evaluation split.

    Returns:
        What the run's summary says of training: ``run_dir``, ``steps``, ``train_seconds``, ``calibration``,
        ``eval``, ...

    Raises:
        SmartTrimError: Some of it failed, here or in another process; what was trained is kept.
    """
    bundle, run = trainer.bundle, trainer.run
    bundle.model.eval()
    bundle.model.set_targets(trainer.plan.kept)  # steps come close to it: the last at (T - 1) / T
    result: dict[str, Any] = {"run_dir": str(run.path), "steps": trainer.total_steps}
    if trainer.warmup is not None:
        result["warmup_steps"] = trainer.warmup.steps
    result["train_seconds"] = round(trainer.progress.seconds, 1)
    with kept_if_it_fails(trainer), _restored_if_it_fails(bundle):
        calibration = in_all(trainer, lambda: calibrate_budget(trainer), "calibrate the budget")
        in_all(trainer, lambda: save(trainer, run.model), "save the model")
        scores = in_all(trainer, lambda: validate(trainer), "score the model")
    if calibration is not None:
        result["calibration"] = vars(calibration)
    result["eval"] = {"split": bundle.task.split_name("eval"), **scores}
    if trainer.accelerator.is_main_process:
        run.merge_summary(result)
    return result


@contextmanager
def _restored_if_it_fails(bundle: Bundle) -> Iterator[None]:
    """Trimmers that were taken out come back, and the threshold is that of training again."""
    model, described = bundle.model, dict(bundle.config["trimmers"])
    threshold, trimmers = model.threshold.clone(), dict(model.trimmers.items())
    try:
        yield
    except BaseException:
        model.threshold.copy_(threshold)
        model.trimmers.update(trimmers)
        bundle.config["trimmers"] = described
        raise


def calibrate_budget(trainer: Trainer) -> Calibration | None:
    """Set the threshold so that the plan's ratio of MACs is met; None if the recipe does not ask for it."""
    recipe, bundle, reporter = trainer.recipe, trainer.bundle, trainer.reporter
    if recipe.pruning is None or recipe.pruning.calibrate is None or not bundle.model.sites:
        return None
    settings, speedup = recipe.pruning.calibrate, trainer.plan.speedup
    split = bundle.task.split_name(settings.split)
    loader = batches(bundle, split, recipe.evaluate.batch_size, settings.max_instances)
    few = [to_device(batch, trainer.accelerator.device) for batch in loader]
    result = calibrate(bundle.model, few, speedup, settings.tolerance)
    if settings.remove_unprofitable and _remove_unprofitable(trainer, few, settings.call_macs):
        if not bundle.model.sites:
            reporter.warn("no trimmer is left: the model is not trimmed; pruning.calibrate.call_macs lower?")
            return replace(result, speedup=1.0, reached=False)
        again = calibrate(bundle.model, few, speedup, settings.tolerance)
        result = replace(again, trained_speedup=result.trained_speedup)
    text = f"calibrated: threshold {result.threshold:+.3f}, {result.speedup:.3f}x fewer MACs on {split}"
    reporter.message(text)
    if not result.reached:
        met = f"the budget of {result.target:.2f}x was not met exactly: {result.speedup:.3f}x"
        reporter.warn(f"{met}; {_remedy(result)}")
    elif abs(result.trained_speedup / result.target - 1) > _FAR:
        held = recipe.strategy.budget_controller.enabled
        how = "train longer" if held else "strategy.budget_controller.enabled=true holds it"
        if result.trained_speedup > result.target:
            how += "; pruning.calibrate=null leaves it where training ended"
        reporter.warn(
            f"training ended at {result.trained_speedup:.3f}x fewer MACs, and the threshold was moved to "
            f"make up for it; a model that trains at its budget may score better ({how})"
        )
    return result


def _remedy(result: Calibration) -> str:
    """What to change in the recipe so that the next run meets its budget."""
    apart = result.speedup / result.target - 1
    if abs(apart) < _COARSE:
        return "more instances decide more finely (pruning.calibrate.max_instances; or raise its tolerance)"
    if apart < 0:
        return "no threshold drops enough: ask for less, or trim in more places (keys of pruning)"
    return "no threshold drops so little: ask for more, or trim in fewer places (keys of pruning)"


def _remove_unprofitable(trainer: Trainer, few: list[Any], call_macs: float) -> list[str]:
    """Take out trimmers that cost more than they save, and say so; their sites."""
    model, config = trainer.bundle.model, trainer.bundle.config
    names = unprofitable(model, few, call_macs)
    if names:
        there = len(model.sites)
        model.remove(names)
        config["trimmers"] = {**config["trimmers"], "removed": sorted(names)}
        trainer.reporter.message(f"{len(names)} of {there} trimmers cost more than they save: taken out")
    return names

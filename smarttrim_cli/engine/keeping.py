"""What was trained is kept where something fails on the way or at the end, in all processes together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from smarttrim_cli.engine.checkpoint import checkpoint_name, save_checkpoint
from smarttrim_cli.engine.files import remove
from smarttrim_cli.errors import SmartTrimError

if TYPE_CHECKING:
    from smarttrim_cli.engine.trainer import Trainer

T = TypeVar("T")


class ElsewhereError(SmartTrimError):
    """Something failed in another process, which says what."""


def in_all(trainer: Trainer, work: Callable[[], T], what: str) -> T:
    """The result of some work; an error in every process if there is one in any.

    Args:
        trainer: Knows the other processes.
        work: Must not wait for other processes where it may fail in one of them alone.
        what: Of it, for the others: "another process could not ...".
    """
    if trainer.accelerator.num_processes == 1:
        return work()
    failure: BaseException | None = None
    try:
        result = work()
    except (Exception, KeyboardInterrupt) as error:
        failure = error
    if trainer.mean_over_processes(float(failure is not None)) > 0:
        raise failure or ElsewhereError(f"another process could not {what}", where=str(trainer.run.path))
    return result


@contextmanager
def kept_if_it_fails(trainer: Trainer) -> Iterator[None]:
    """Whatever fails in all processes: they write a checkpoint together, from which training can go on."""
    try:
        yield
    except (Exception, KeyboardInterrupt):
        _keep(trainer)
        raise


@contextmanager
def kept_if_data_fail(trainer: Trainer) -> Iterator[None]:
    """Batches that cannot be had, in all processes: that is met before weights change."""
    try:
        yield
    except Exception:
        if _can_go_on(trainer):
            _keep(trainer)
        raise


@contextmanager
def kept_amid_training(trainer: Trainer) -> Iterator[None]:
    """A warm start: meanwhile there is a checkpoint of the training before it, to begin it again from."""
    progress, every = trainer.progress, trainer.recipe.train.save_steps
    undone = trainer.warmup is not None and progress.warmup_step < trainer.warmup.steps
    is_there = bool(every) and progress.step % (every or 1) == 0
    own = undone and progress.step > 0 and not is_there
    if own:
        save_checkpoint(trainer)
    yield
    if own and trainer.accelerator.is_main_process:
        remove(trainer.run.path / "checkpoints" / checkpoint_name(progress))


def _can_go_on(trainer: Trainer) -> bool:
    """Whether anything has been trained, and not half of a warm start amid training, which begins again."""
    step, warmed_up = trainer.progress.step, trainer.progress.warmup_step
    half = step > 0 and trainer.warmup is not None and 0 < warmed_up < trainer.warmup.steps
    return (step > 0 or warmed_up > 0) and not half


def _keep(trainer: Trainer) -> None:
    save_checkpoint(trainer)
    where = trainer.run.path / "checkpoints" / checkpoint_name(trainer.progress)
    trainer.reporter.warn(f"what was trained is in {where}; --resume auto goes on from there")

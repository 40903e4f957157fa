"""What was trained is kept where something fails on the way or at the end, in all processes together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from smarttrim_cli.engine.checkpoint import save_checkpoint
from smarttrim_cli.errors import SmartTrimError, UserError

if TYPE_CHECKING:
    from smarttrim_cli.engine.trainer import Trainer

T = TypeVar("T")


def in_all(trainer: Trainer, work: Callable[[], T], what: str) -> T:
    """The result of some work; an error in every process if there is one in any.

    Args:
        trainer: Knows the other processes.
        work: Must not wait for other processes where it may fail in one of them alone.
        what: Of it, for the others: "another process could not ...".
    """
    failure: BaseException | None = None
    try:
        result = work()
    except (Exception, KeyboardInterrupt) as error:
        failure = error
    if trainer.mean_over_processes(float(failure is not None)) > 0:
        raise failure or SmartTrimError(f"another process could not {what}", where=str(trainer.run.path))
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
    """A step: a bad sample is met before weights change. Of several processes the others do not know."""
    try:
        yield
    except UserError:
        if trainer.accelerator.num_processes == 1 and trainer.progress.step > 0:
            _keep(trainer)
        raise


def _keep(trainer: Trainer) -> None:
    save_checkpoint(trainer)
    where = trainer.run.path / "checkpoints" / f"step-{trainer.progress.step}"
    trainer.reporter.warn(f"what was trained is in {where}; --resume auto goes on from there")

"""Signals amid a training: it ends after the step that is running, and leaves a checkpoint to go on from."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

from smarttrim_cli.engine.checkpoint import save_checkpoint

if TYPE_CHECKING:
    from smarttrim_cli.engine.trainer import Trainer

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Stopped(KeyboardInterrupt):
    """A training that has ended because it was told to.

    Args:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number


class Stopping:
    """What signals have asked of a training. A second one ends it at once, as without this.

    Several processes get signals at different steps, and cannot write a checkpoint together: there a signal
    does what it always does.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.asked: int | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Signals are noted within the block."""
        alone = self.trainer.accelerator.num_processes == 1
        if not alone or threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Any] = {number: signal.getsignal(number) for number in _SIGNALS}
        for number in _SIGNALS:
            if before[number] is not signal.SIG_IGN:  # as nohup has it
                signal.signal(number, self._note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None:
            raise Stopped(number)
        self.asked = number
        with suppress(RuntimeError):  # amid another message
            self.trainer.reporter.message("stopping after this step (again: at once)")

    def check(self, save: Callable[[Trainer], None] = save_checkpoint) -> None:
        """After a step: write a checkpoint and stop, if that was asked.

        Raises:
            Stopped: It was.
        """
        if self.asked is None:
            return
        save(self.trainer)
        self.trainer.reporter.message(
            f"stopped; --resume auto goes on from what is in {self.trainer.run.path / 'checkpoints'}"
        )
        raise Stopped(self.asked)

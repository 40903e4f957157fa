"""Signals amid a training: it ends after the step that is running, and leaves a checkpoint to go on from.

Several processes ask each other after every step: a signal reaches them at different ones, or one alone.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch

from smarttrim_cli.engine.checkpoint import save_checkpoint

if TYPE_CHECKING:
    from smarttrim_cli.engine.trainer import Trainer

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_PASSED_ON = 2.0
"""Seconds in which a launcher passes on a signal that the processes it has started may have got, too."""


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

    Args:
        trainer: Is stopped, together with those in other processes.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.asked: int | None = None
        self._asked_at = 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Signals are noted within the block."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Any] = {number: signal.getsignal(number) for number in _SIGNALS}
        left = (
            signal.SIG_IGN,
            None,
        )  # as nohup has it; as who embeds Python has it, which could not be put back
        before = {number: handler for number, handler in before.items() if handler not in left}
        for number in before:
            signal.signal(number, self._note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.asked is None:
            self.asked, self._asked_at = number, now
            with suppress(RuntimeError):  # amid another message
                self.trainer.reporter.message("stopping after this step (again: at once)")
        elif self.trainer.accelerator.num_processes == 1 or now - self._asked_at > _PASSED_ON:
            raise Stopped(number)

    def check(self, save: Callable[[Trainer], None] = save_checkpoint) -> None:
        """After a step: write a checkpoint and stop, if that was asked of any process.

        Raises:
            Stopped: It was.
        """
        asked = self._asked_of_any()
        if asked == 0:
            return
        save(self.trainer)
        self.trainer.reporter.message(
            f"stopped; --resume auto goes on from what is in {self.trainer.run.path / 'checkpoints'}"
        )
        raise Stopped(asked)

    def _asked_of_any(self) -> int:
        """The number of a signal; 0 of none."""
        own, accelerator = self.asked or 0, self.trainer.accelerator
        if accelerator.num_processes == 1:
            return own
        return int(accelerator.gather(torch.tensor([own], device=accelerator.device)).max())

"""Processes that load data: signals are their trainer's business, and their death is an error saying so."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from smarttrim_cli.errors import SmartTrimError


def leave_signals(worker: int) -> None:
    """In such a process: outlive signals to a whole group, such as Ctrl-C or the end of a job.

    The trainer, who gets them too, finishes its step, and then tells its data processes to end. The second
    SIGTERM ends one, as DataLoader wants of one that hangs.

    Args:
        worker: Number of the process, unused.
    """
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)

    def end_at_the_second(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, end_at_the_second)


@contextmanager
def deaths_as_errors() -> Iterator[None]:
    """The error for a DataLoader's worker that was killed, instead of torch's or of a broken connection."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise _killed() from error
    except (EOFError, ConnectionError) as error:
        if str(error).startswith("Caught "):  # by a process, which lives
            raise
        time.sleep(1)  # torch's signal may be under way, and should not arrive when the error is handled
        raise _killed() from error


def _killed() -> SmartTrimError:
    return SmartTrimError(
        "a process that loads data was killed, often for want of memory",
        hint="fewer train.dataloader_num_workers need less; 0 loads data in the process itself",
    )


def tell_of_deaths() -> None:
    """Torch raises its error from a signal handler, wherever the main thread is then: put ours around it."""
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        return
    handler = signal.getsignal(signal.SIGCHLD)
    if not callable(handler) or getattr(handler, "tells_of_deaths", False):
        return

    def handle(number: int, frame: Any) -> None:
        with deaths_as_errors():
            handler(number, frame)

    handle.tells_of_deaths = True  # type: ignore[attr-defined]
    signal.signal(signal.SIGCHLD, handle)

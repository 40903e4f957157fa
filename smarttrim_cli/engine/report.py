"""How the engine talks to whoever runs it: messages, warnings, progress; it knows nothing about terminals."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Tracker(Protocol):
    """One piece of work under way."""

    def update(self, step: int, **fields: float | str) -> None:
        """Say that ``step`` steps (of the total) are done, with further values worth showing."""


class Reporter(Protocol):
    """Receives what happens during a run."""

    def message(self, text: str) -> None:
        """Something the user may want to know."""

    def warn(self, text: str) -> None:
        """Something the user should know; shown even with ``--quiet``."""

    def track(self, total: int, label: str) -> AbstractContextManager[Tracker]:
        """Progress of a piece of work with ``total`` steps."""


class SilentTracker:
    """Shows nothing."""

    def update(self, step: int, **fields: float | str) -> None:
        """Ignore the progress."""


class SilentReporter:
    """Shows nothing: for use from Python and in tests."""

    def message(self, text: str) -> None:
        """Ignore the message."""

    def warn(self, text: str) -> None:
        """Ignore the warning."""

    def track(self, total: int, label: str) -> AbstractContextManager[Tracker]:
        """Ignore the progress."""
        return nullcontext(SilentTracker())

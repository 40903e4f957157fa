"""What the user sees: results on stdout; messages, warnings and progress on stderr (live on a terminal)."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from smarttrim_cli.engine.report import SilentTracker, Tracker
from smarttrim_cli.errors import naming

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_SECONDS_BETWEEN_LINES = 30.0


class Console:
    """The engine's ``Reporter`` for the command line.

    Args:
        quiet: Show results, warnings and errors only.
        debug: Show tracebacks.
    """

    def __init__(self, quiet: bool = False, debug: bool = False) -> None:
        self.quiet = quiet
        self.debug = debug
        self._progress: Progress | None = None

    def result(self, text: str) -> None:
        """Print a result on stdout."""
        with naming("standard output"):
            sys.stdout.write(text if text.endswith("\n") else f"{text}\n")
            sys.stdout.flush()

    def message(self, text: str) -> None:
        """Print a message, unless quiet."""
        if not self.quiet:
            self._print(text)

    def warn(self, text: str) -> None:
        """Print a warning."""
        self._print(f"warning: {text}")

    @contextmanager
    def track(self, total: int, label: str) -> Iterator[Tracker]:
        """Show the progress of a piece of work with ``total`` steps."""
        if self.quiet:
            yield SilentTracker()
        elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            with self._live(total, label) as tracker:
                yield tracker
        else:
            yield PlainTracker(self, total, label)

    def _print(self, text: str) -> None:
        if self._progress is not None:
            console = self._progress.console
            console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)
        else:
            with suppress(OSError):  # nobody reads on: no reason to lose the work
                print(text, file=sys.stderr, flush=True)

    @contextmanager
    def _live(self, total: int, label: str) -> Iterator[Tracker]:
        """A bar in the live display, which the outermost piece of work opens and closes."""
        outermost = self._progress is None
        if self._progress is None:
            self._progress = _live_progress()
            self._progress.start()
        progress = self._progress
        task = progress.add_task(label, total=total, fields="")
        try:
            yield LiveTracker(progress, task)
        finally:
            if outermost:
                progress.stop()
                self._progress = None
            else:
                progress.remove_task(task)


class PlainTracker:
    """A line at every tenth of the work, and at least every half minute."""

    def __init__(self, console: Console, total: int, label: str) -> None:
        self._console = console
        self._total = total
        self._label = label
        self._start = self._last_time = time.monotonic()
        self._last_tenth = 0

    def update(self, step: int, **fields: float | str) -> None:
        """Print a line, if it is time for one."""
        now = time.monotonic()
        tenth = 10 * step // max(self._total, 1)
        if tenth == self._last_tenth and now - self._last_time < _SECONDS_BETWEEN_LINES:
            return
        self._last_tenth, self._last_time = tenth, now
        left = (now - self._start) / max(step, 1) * (self._total - step)
        parts = [f"{self._label} {step}/{self._total}", f"{left:.0f} s left", format_fields(fields)]
        self._console.message("  ".join(part for part in parts if part))


class LiveTracker:
    """A bar of a live display."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def update(self, step: int, **fields: float | str) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=step, fields=format_fields(fields))


def format_fields(fields: dict[str, float | str]) -> str:
    """Values as ``loss=0.1234``; a kept fraction beside its target: ``kept/token.text=0.8 (target 0.75)``."""
    parts = []
    for name, value in fields.items():
        kind, _, group = name.partition("/")
        target = fields.get(f"target/{group}") if kind == "kept" else None
        if kind == "target" and f"kept/{group}" in fields:
            continue
        text = value if isinstance(value, str) else f"{value:.4g}"
        parts.append(f"{name}={text}" if target is None else f"{name}={text} (target {target:.4g})")
    return " ".join(parts)


def _live_progress() -> Progress:
    from rich.console import Console as RichConsole
    from rich.console import RenderableType
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class WithFields(Progress):
        """The bars, and below them the values of each piece of work, wrapped to the terminal."""

        def get_renderables(self) -> Iterator[RenderableType]:
            """What is drawn."""
            yield self.make_tasks_table(self.tasks)
            for task in self.tasks:
                if task.fields["fields"]:
                    yield Text(task.fields["fields"], style="dim")

    return WithFields(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=RichConsole(stderr=True),
    )

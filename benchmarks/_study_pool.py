"""Runs of the study side by side: what is done is kept, what fails is recorded, nothing stops the rest.

A result file without ``error`` is a finished run. Failed ones are tried again by the next call.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from _study_table import ROOT, StudyRun

from smarttrim_cli.engine.files import write_json

_GUESSES = {"untrained": 40.0, "plain": 120.0, "trimmed": 210.0}
"""Seconds where no run has been timed yet: 400 steps on one thread; self-distillation takes two passes."""
_POLL_SECONDS = 0.2


class Process(Protocol):
    """What is needed of a ``subprocess.Popen``."""

    def poll(self) -> int | None:
        """Exit status; None while it runs."""

    def terminate(self) -> None:
        """Ask it to end."""

    def wait(self) -> int:
        """Wait for its end."""


@dataclass
class Outcome:
    """Names of runs by what became of them."""

    done: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Folders:
    """Where things go.

    Attributes:
        runs: Run directories, and ``logs/`` of what the runs print.
        results: A JSON file per run.
    """

    runs: Path
    results: Path

    def result(self, name: str) -> dict[str, Any] | None:
        """The result of a run; None if there is none, or it failed."""
        content = read_json(self.results / f"{name}.json")
        return None if content is None or "error" in content else content

    def log(self, name: str) -> Path:
        """What a run prints."""
        return self.runs / "logs" / f"{name}.log"

    def has_model(self, name: str) -> bool:
        """Whether another run can begin with this one's model."""
        return (self.runs / name / "model" / "config.json").exists() and self.result(name) is not None


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON file; None if there is none.

    Raises:
        SystemExit: It is damaged.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise SystemExit(f"{path}: no result of a run ({error}); without it the run is made again") from error


def to_do(runs: Iterable[StudyRun], folders: Folders, every: Callable[[str], StudyRun]) -> list[StudyRun]:
    """The runs without a result, each after the one that it begins with, if that has to be made.

    Args:
        runs: The table.
        folders: Where results are.
        every: Run by name, for those that others begin with.
    """
    found: dict[str, StudyRun] = {}
    for run in runs:
        if folders.result(run.name) is not None:
            continue
        if run.start is not None and not folders.has_model(run.start):
            found.setdefault(run.start, every(run.start))
        found.setdefault(run.name, run)
    return list(found.values())


def run_all(
    queue: Sequence[StudyRun],
    folders: Folders,
    launch: Callable[[StudyRun], Process],
    jobs: int,
    *,
    until: float = float("inf"),
    say: Callable[[str], None] = print,
) -> Outcome:
    """Do runs, several at a time, in their order as far as what they begin with allows.

    Args:
        queue: Of :func:`to_do`.
        folders: Where results are.
        launch: Starts a run as a process that writes its result.
        jobs: At most so many at a time.
        until: ``time.monotonic()`` after which nothing new is started.
        say: Takes a line per event.
    """
    waiting, running, outcome = list(queue), {}, Outcome()
    try:
        while waiting or running:
            if time.monotonic() > until:
                outcome.left, waiting = [run.name for run in waiting], []
            while waiting and len(running) < jobs:
                run = _next(waiting, running, folders, outcome, say)
                if run is None:
                    break
                waiting.remove(run)
                running[run.name] = run, launch(run)
                say(f"started {run.name} ({len(waiting)} waiting)")
            for name, (run, process) in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    _note(run, process, folders, outcome, say)
            if running:
                time.sleep(_POLL_SECONDS)
    finally:
        for _, process in running.values():  # interrupted: what is not finished is done anew next time
            process.terminate()
        for _, process in running.values():
            process.wait()
    return outcome


def _next(
    waiting: list[StudyRun],
    running: dict[str, Any],
    folders: Folders,
    outcome: Outcome,
    say: Callable[[str], None],
) -> StudyRun | None:
    """The first run that can begin; those that never can are recorded as failed."""
    for run in list(waiting):
        if run.start is None or (run.start not in running and folders.has_model(run.start)):
            return run
        if run.start not in running and all(other.name != run.start for other in waiting):
            waiting.remove(run)
            _fail(run, f"{run.start}, which it begins with, has failed", folders, outcome, say)
    return None


def _note(
    run: StudyRun, process: Process, folders: Folders, outcome: Outcome, say: Callable[[str], None]
) -> None:
    result = folders.result(run.name)
    if process.poll() == 0 and result is not None:
        outcome.done.append(run.name)
        say(f"done    {run.name}: {_in_short(result)}")
        return
    log = folders.log(run.name)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
    _fail(run, f"exit status {process.poll()}: {last}", folders, outcome, say)


def _fail(run: StudyRun, error: str, folders: Folders, outcome: Outcome, say: Callable[[str], None]) -> None:
    error = error.replace(str(ROOT), ".")
    if folders.result(run.name) is None:  # else it was made again for its model alone: what it found stays
        failed = {"name": run.name, "method": run.method, "error": error}
        write_json(folders.results / f"{run.name}.json", failed)
    outcome.failed.append(run.name)
    say(f"FAILED  {run.name}: {error}")


def _in_short(result: dict[str, Any]) -> str:
    side = result.get("trimmed", result["full"])
    ratio = result.get("speedup", {}).get("macs")
    fewer = f", {ratio:.2f}x fewer MACs" if ratio else ""
    seconds = f", {result['seconds']:.0f} s" if "seconds" in result else ""
    return f"{result['metric']} {side[result['metric']]:.4f}{fewer}{seconds}"


def estimate(runs: Iterable[StudyRun], folders: Folders) -> float:
    """Seconds that runs will take one after the other, from those of earlier ones of the same kind."""
    timed: dict[tuple[str, str], list[float]] = {}
    for path in folders.results.glob("*.json"):
        result = read_json(path) or {}
        if "seconds" in result and "base" in result:
            timed.setdefault((result["base"], result["method"]), []).append(result["seconds"])

    def seconds(run: StudyRun) -> float:
        known = timed.get((run.base, run.method))
        return statistics.median(known) if known else _GUESSES[_work(run)]

    return sum(seconds(run) for run in runs)


def _work(run: StudyRun) -> str:
    if run.overrides.get("train.max_steps") == 1:
        return "untrained"
    return "plain" if "pruning" in run.overrides else "trimmed"

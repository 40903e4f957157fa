"""The study: every method and ablation on one bench, on the embedded scenes; stopped and resumed at will.

``python benchmarks/study.py`` does what is missing of the smaller table of runs (``--profile cpu``, about 90
minutes on two cores); ``--profile full`` is everything, with three seeds. Each run is a process with one
thread. Its result goes to docs/results/study/NAME.json, its run directory to runs/study/NAME; at the end
``study_report.py`` writes tables and pictures. Methods and tables are data: ``study_methods.yaml``.

``--tune METHOD ...`` tries learning rates on the validation split instead and writes tuning.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import _study_tune as tune
import study_report
from _study_pool import Folders, Process, estimate, run_all, to_do
from _study_table import FULL, ROOT, StudyRun, read_methods, run_name, study_run, table

DENSITIES = ("ordinary", "middle", "dense")
_ON_A_GPU = 12


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, report; the exit status is 1 if a run failed."""
    options = _parser().parse_args(arguments)
    methods = read_methods()
    folders = Folders(options.runs, options.results)
    if options.tune:
        chosen = _chosen(
            tune.grid(methods, options.tune, options.base, options.ratio, options.steps), options
        )
        folders = Folders(options.runs / "tuning", options.runs / "tuning" / "results")
    else:
        chosen = _chosen(table(options.profile, methods, options.seeds), options)
    more = {"evaluate.split": "val"} if options.tune else {}  # what it is compared on
    queue = to_do(chosen, folders, lambda name: _full_run(methods, name, more))
    seconds = estimate(queue, folders) / options.jobs
    print(
        f"{len(chosen)} runs, {len(queue)} to do, about {seconds / 60:.0f} minutes, {options.jobs} at a time"
    )
    if options.dry_run:
        _list(chosen, queue, folders)
        return 0
    until = time.monotonic() + options.minutes * 60 if options.minutes else float("inf")
    try:
        launch = _launcher(folders, options.override)
        outcome = run_all(queue, folders, launch, options.jobs, until=until, say=_say)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on", file=sys.stderr)
        return 130
    print(f"done {len(outcome.done)}, failed {len(outcome.failed)}, left {len(outcome.left)}")
    if options.tune:
        tune.write(options.results / "tuning.json", folders.results)
    elif outcome.done:
        study_report.write(options.results)
    return 1 if outcome.failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", default="cpu", help="table of runs in study_methods.yaml: cpu or full")
    parser.add_argument("--only", nargs="+", default=[], help="names, parts of names, or patterns")
    parser.add_argument("--density", nargs="+", choices=DENSITIES, default=[], help="scenes of this kind")
    parser.add_argument("--tasks", nargs="+", default=[], help="such as meter/vqa blip/captioning")
    parser.add_argument("--seeds", nargs="+", type=int, help="instead of the profile's")
    parser.add_argument("--jobs", type=int, default=default_jobs(), help="processes (default %(default)s)")
    parser.add_argument("--minutes", type=float, help="start nothing new after so many minutes")
    parser.add_argument("--dry-run", action="store_true", help="list the runs, and how long they will take")
    parser.add_argument("--override", nargs="+", default=[], help="recipe keys for all runs, for trials")
    parser.add_argument("--runs", type=Path, default=Path("runs/study"), help="run directories go here")
    parser.add_argument("--results", type=Path, default=ROOT / "docs/results/study", help="results go here")
    parser.add_argument("--tune", nargs="+", help="try learning rates of these methods")
    parser.add_argument("--base", default="meter_vqa", help="with --tune: the base recipe")
    parser.add_argument("--ratio", type=float, default=2.5, help="with --tune: the MACs ratio")
    parser.add_argument("--steps", type=int, default=200, help="with --tune: steps of a trial")
    return parser


def default_jobs() -> int:
    """One process per core this process may use; on a GPU several share it."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _ON_A_GPU) if torch.cuda.is_available() else cores


def _chosen(runs: Sequence[StudyRun], options: argparse.Namespace) -> list[StudyRun]:
    def wanted(run: StudyRun) -> bool:
        return (
            (not options.only or any(fnmatch.fnmatch(run.name, f"*{part}*") for part in options.only))
            and (not options.density or run.facts["density"] in options.density)
            and (not options.tasks or run.facts["task"] in options.tasks)
        )

    return [run for run in runs if wanted(run)]


def _full_run(methods: dict[str, Any], name: str, more: dict[str, Any]) -> StudyRun:
    """The run of the full model with a name, of which other runs begin."""
    base, _, seed = name.partition(f"-{FULL}-s")
    run = study_run(methods, base, FULL, int(seed), more=more)
    assert run.name == name == run_name(base, FULL, run.seed)
    return run


def _launcher(folders: Folders, more: Sequence[str]) -> Callable[[StudyRun], Process]:
    """Starts a run as a process of its own, its output in a log."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    path = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    environment["PYTHONPATH"] = path.rstrip(os.pathsep)

    def launch(run: StudyRun) -> Process:
        given = {
            "run": dataclasses.asdict(run),
            "runs": str(folders.runs),
            "results": str(folders.results),
            "more": list(more),
        }
        log = folders.log(run.name)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8") as file:
            return subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("_study_worker.py")), json.dumps(given)],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # an interrupt is for this process, which ends the others
            )

    return launch


def _list(chosen: Sequence[StudyRun], queue: Sequence[StudyRun], folders: Folders) -> None:
    waiting = {run.name for run in queue}
    for run in [*(run for run in queue if run not in chosen), *chosen]:
        state = "to do" if run.name in waiting else "done"
        print(f"{state:6} {estimate([run], folders):5.0f} s  {run.name}")


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

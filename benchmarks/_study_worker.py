"""One run of the study: fine-tuned, evaluated, its result as plain data. ``study.py`` starts it as a process.

A result is what ``evaluate`` returns, with the run's place in the table, the scores of single instances for
paired tests, and what it was measured on. A smaller model has no trimmed side of its own: it gets the full
model of the same base and seed as its ``full``, so that all results read alike.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _study_sizes as sizes
from _study_table import ROOT, StudyRun, as_overrides

from smarttrim_cli.engine.devices import best_device, describe_environment
from smarttrim_cli.engine.evaluate import evaluate
from smarttrim_cli.engine.files import write_json
from smarttrim_cli.engine.finetune import finetune
from smarttrim_cli.engine.runs import Run
from smarttrim_cli.metrics.stats import paired_difference
from smarttrim_cli.recipe import load_recipe

TOLERANCE = 0.03
"""How near the measured ratio has to be to the one named."""
CROWDED = "crowded"


def run_one(run: StudyRun, runs: Path, results: Path, more: Sequence[str] = ()) -> dict[str, Any]:
    """Do a run and write its result to ``results/<name>.json``.

    Args:
        run: What to do.
        runs: Folder of the run directories.
        results: Folder of the results.
        more: Further overrides, for trials.
    """
    started, cpu_before = time.perf_counter(), time.process_time()
    overrides = [*recipe_overrides(run, runs), *more]
    overrides += _size(run, runs, overrides)
    directory = runs / run.name
    recipe = load_recipe(run.recipe, [*overrides, f"output_dir={directory}"])
    summary = finetune(recipe, overwrite=True)
    shutil.rmtree(directory / "best", ignore_errors=True)  # as large as the model, and not used
    result = _placed(run) | _measured(directory)
    if "trimmed" not in result:
        result["full"]["gmacs"] = sizes.measured_gmacs(directory, recipe.evaluate.split)
    if run.size:
        result = _beside_full(result, results / f"{run.start}.json")
    if run.ratio and "speedup" in result:
        result["within_3_percent"] = abs(result["speedup"]["macs"] / run.ratio - 1) <= TOLERANCE
    result["validation"] = {key: summary["eval"][key] for key in ("split", result["metric"])}
    result |= {key: summary[key] for key in ("steps", "train_seconds", "calibration") if key in summary}
    result |= {
        "overrides": [text.replace(str(runs), "RUNS") for text in overrides],
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - cpu_before, 1),
        "machine": describe_environment(best_device()),
        "commit": _commit(),
    }
    write_json(results / f"{run.name}.json", result)
    return result


def recipe_overrides(run: StudyRun, runs: Path) -> list[str]:
    """Overrides of a run's recipe, with the models of other runs that it begins with or learns from."""
    values = dict(run.overrides)
    if run.start is not None:
        values["backbone.checkpoint"] = str(runs / run.start)
    if "strategy.teacher" in values:
        values["strategy.teacher"] = {**values["strategy.teacher"], "checkpoint": str(runs / str(run.start))}
    return as_overrides(values)


def _size(run: StudyRun, runs: Path, overrides: Sequence[str]) -> list[str]:
    """Override that makes the model as small as the ratio asks for."""
    if run.size is None or run.ratio is None:
        return []
    lengths = sizes.text_lengths(runs / str(run.start), "calibration")
    found = sizes.size_overrides(run.recipe, overrides, run.size, run.ratio, lengths)
    return [f"{key}={value}" for key, value in found.items()]


def _placed(run: StudyRun) -> dict[str, Any]:
    """Where a result belongs in the tables; ``retention`` is the share of heads kept."""
    return {
        "name": run.name,
        "method": run.method,
        "label": run.facts["label"],
        "kind": run.facts["kind"],
        "base": run.base,
        "task": run.facts["task"],
        "density": run.facts["density"],
        "ratio": run.ratio,
        "retention": run.keep,
        "seed": run.seed,
    }


def _measured(directory: Path) -> dict[str, Any]:
    """What ``evaluate`` says of the test split, and of the crowded one if there is one."""
    predictions = directory / "predictions.jsonl"
    report = evaluate(str(directory), predictions_out=predictions)
    records = [json.loads(line) for line in predictions.read_text(encoding="utf-8").splitlines()]
    for side, key in (("full", "full_score"), ("trimmed", "score")):
        if side in report:
            report[side]["scores"] = compact([record[key] for record in records])
    counts = Run(directory).recipe().task.options_dict()["data"].get("num_images", {})
    if counts.get(CROWDED):
        report[CROWDED] = evaluate(str(directory), split=CROWDED)
    return report


def _beside_full(result: dict[str, Any], file: Path) -> dict[str, Any]:
    """The result of a smaller model, with the full model's beside it."""
    reference, metric = json.loads(file.read_text(encoding="utf-8")), result["metric"]
    full, own = reference["full"], result["full"]
    own["retained"] = own[metric] / max(full[metric], 1e-12)
    difference = paired_difference(expanded(own["scores"]), expanded(full["scores"]))
    result |= {"full": {key: value for key, value in full.items() if key != "scores"}, "trimmed": own}
    result["full"]["scores"] = full["scores"]
    result["difference"] = {
        "mean": difference.mean,
        "se": difference.standard_error,
        "low": difference.low,
        "high": difference.high,
    }
    result["speedup"] = {"macs": full["gmacs"] / own["gmacs"]}
    if CROWDED in result:
        result[CROWDED] = {**result[CROWDED], "trimmed": result[CROWDED]["full"]}
        result[CROWDED]["full"] = reference[CROWDED]["full"]
    return result


def compact(scores: Sequence[float]) -> str | list[float]:
    """Scores as a text of 0 and 1 where they are nothing else, else as a list."""
    if all(score in (0.0, 1.0) for score in scores):
        return "".join(str(int(score)) for score in scores)
    return [round(score, 4) for score in scores]


def expanded(scores: str | list[float]) -> list[float]:
    """The reverse of :func:`compact`."""
    return [float(score) for score in scores]


def _commit() -> str | None:
    """What the code was; with a + if it was changed since."""
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def main(argument: str) -> None:
    """Do the run that a JSON text describes, see ``study.launch``."""
    given = json.loads(argument)
    run_one(StudyRun(**given["run"]), Path(given["runs"]), Path(given["results"]), given["more"])


if __name__ == "__main__":
    main(sys.argv[1])

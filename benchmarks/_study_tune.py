"""Trials of learning rates for the study: a small grid, fewer steps, scored on the validation split.

The backbone's rate, and for trimmers that learn something their own rate. What was found is entered into
``study_methods.yaml`` by hand, tuning.json is the evidence.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _study_pool import read_json
from _study_table import StudyRun, study_run

from smarttrim_cli.engine.files import write_json

RATES = (5e-5, 1e-4, 2e-4, 5e-4, 1e-3)
TRIMMER_RATES = (5e-4, 4e-3, 2e-2)
SEED = 11
"""Another one than the study's."""
_LEARN_NOTHING = ("random_token", "tome", "random_head", "grad_all_head", "grad_layer_head")


def grid(
    methods: dict[str, Any], names: Sequence[str], base: str, ratio: float, steps: int
) -> list[StudyRun]:
    """The trials of some methods.

    Args:
        methods: Of ``study_methods.yaml``.
        names: Which of them.
        base: On which base recipe.
        ratio: MACs ratio to aim at.
        steps: Of each trial.
    """
    runs = []
    for name in names:
        plain = study_run(methods, base, name, SEED, ratio)
        for rate, trimmers in itertools.product(RATES, TRIMMER_RATES if _learns(plain) else (None,)):
            more: dict[str, Any] = {
                "optimizer.learning_rate": rate,
                "train.max_steps": steps,
                "evaluate.split": "val",
            }
            if trimmers is not None:
                more["optimizer.multipliers"] = {"trimmers": round(trimmers / rate, 4)}
            run = study_run(methods, base, name, SEED, ratio, more=more)
            own = f"-{trimmers:g}" if trimmers is not None else ""
            runs.append(dataclasses.replace(run, variant=f"-lr{rate:g}{own}"))
    return runs


def _learns(run: StudyRun) -> bool:
    """Whether there are trimmers with parameters."""
    if "pruning" in run.overrides:
        return False
    trimmer = run.overrides.get("pruning.token_trimmer") or run.overrides.get("pruning.head_trimmer")
    return trimmer is None or trimmer["name"] not in _LEARN_NOTHING


def write(path: Path, results: Path) -> None:
    """Collect all trials there are, the best of a method first; what was found of other methods stays."""
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(results.glob("*-lr*.json")):
        result = read_json(file)
        if result is None or "error" in result:
            continue
        side, overrides = (
            result.get("trimmed", result["full"]),
            dict(override.split("=", 1) for override in result["overrides"]),
        )
        trial = {
            "learning_rate": float(overrides["optimizer.learning_rate"]),
            "multipliers": overrides.get("optimizer.multipliers", "{}"),
            "steps": result["steps"],
            result["metric"]: side[result["metric"]],
            f"{result['metric']}_se": side.get(f"{result['metric']}_se"),
            "macs_speedup": result.get("speedup", {}).get("macs"),
        }
        found.setdefault(f"{result['base']}/{result['method']}/{result['ratio']}x", []).append(
            (side[result["metric"]], trial)
        )
    ordered = {
        name: [trial for _, trial in sorted(trials, key=lambda pair: -pair[0])]
        for name, trials in found.items()
    }
    write_json(path, (read_json(path) or {}) | ordered)

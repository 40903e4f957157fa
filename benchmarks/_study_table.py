"""The table of the study's runs: methods, ratios and seeds of a profile, as recipes with overrides.

Everything in it is data, in ``study_methods.yaml``; its head explains the keys.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smarttrim_cli.recipe.source import read_source

ROOT = Path(__file__).resolve().parent.parent
METHODS = Path(__file__).with_name("study_methods.yaml")
RECIPES = ROOT / "recipes" / "scenes" / "study"
FULL = "full_finetuned"
"""The method whose model students and runs without training begin with."""
SEEDS = (1, 2, 3)
_NOTHING = 1e-12
"""A learning rate that leaves weights as they are."""


@dataclass(frozen=True)
class StudyRun:
    """One run of the study.

    Attributes:
        base: Name of the recipe in recipes/scenes/study/.
        method: Name in ``study_methods.yaml``.
        ratio: MACs of the full model over MACs of this one that the run aims at; None for heads and full
            models.
        keep: Share of heads kept; None but for heads.
        seed: Of the training; the scenes are the same for all.
        overrides: Recipe key to value.
        size: ``depth`` or ``resolution`` if the model's own size is solved for the ratio.
        start: Name of the run whose model this one begins with.
        facts: ``task``, ``density``, ``label``, ``kind``: for the tables.
        variant: End of the name, of trials that differ in nothing else that is named.
    """

    base: str
    method: str
    ratio: float | None
    keep: float | None
    seed: int
    overrides: dict[str, Any] = field(hash=False)
    size: str | None = None
    start: str | None = None
    facts: dict[str, Any] = field(default_factory=dict, hash=False)
    variant: str = ""

    @property
    def name(self) -> str:
        """Unique; of the run directory and of the file of results."""
        return run_name(self.base, self.method, self.seed, self.ratio, self.keep) + self.variant

    @property
    def recipe(self) -> Path:
        """File of the base recipe."""
        return RECIPES / f"{self.base}.yaml"


def run_name(base: str, method: str, seed: int, ratio: float | None = None, keep: float | None = None) -> str:
    """Name of a run."""
    at = f"-{ratio:.1f}x" if ratio is not None else f"-keep{keep:.1f}" if keep is not None else ""
    return f"{base}-{method}{at}-s{seed}"


def read_methods(path: Path = METHODS) -> dict[str, Any]:
    """``study_methods.yaml`` as plain data."""
    return read_source(path).data  # YAML 1.2, where `on` is text


def as_overrides(values: dict[str, Any]) -> list[str]:
    """``key=value`` as recipes take them."""
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def table(profile: str, methods: dict[str, Any], seeds: Sequence[int] | None = None) -> list[StudyRun]:
    """All runs of a profile, the important ones first: all of the first seed before those of the second.

    Args:
        profile: A key of ``profiles``.
        methods: Of :func:`read_methods`.
        seeds: Seeds, instead of the profile's (1 for ``cpu``, 1 to 3 for others).
    """
    usual = (1,) if profile == "cpu" else SEEDS
    blocks = methods["profiles"][profile]
    found: dict[str, StudyRun] = {}
    for seed in seeds or usual:
        for block in blocks:
            if seeds is None and seed not in block.get("seeds", usual):
                continue
            for run in _block_runs(block, methods, seed):
                found.setdefault(run.name, run)
    return list(found.values())


def _block_runs(block: dict[str, Any], methods: dict[str, Any], seed: int) -> Iterable[StudyRun]:
    chosen = block["methods"]
    names = methods["groups"][chosen] if isinstance(chosen, str) else chosen
    for at in block.get("ratios") or block.get("keep") or [None]:
        for base in block["bases"]:
            for name in names:
                ratio, keep = (None, at) if "keep" in block else (at, None)
                yield study_run(methods, base, name, seed, ratio, keep)


def study_run(
    methods: dict[str, Any],
    base: str,
    method: str,
    seed: int,
    ratio: float | None = None,
    keep: float | None = None,
    more: dict[str, Any] | None = None,
) -> StudyRun:
    """One run.

    Args:
        methods: Of :func:`read_methods`.
        base: Which recipe.
        method: Which method.
        seed: Seed of the training.
        ratio: MACs ratio to aim at.
        keep: Share of heads to keep.
        more: Further overrides, which win.
    """
    settings = _settings(methods, method, base)
    overrides: dict[str, Any] = {}
    trims = "pruning" not in settings["overrides"]
    if trims and keep is not None:
        share = round(1 - keep, 6)
        overrides["pruning.target_sparsity"] = {"head": {"vision": share, "text": share, "cross": share}}
    elif trims and ratio is not None:
        overrides["pruning.target_speedup"] = ratio
    overrides |= settings["overrides"]
    if not settings.get("train", True):
        overrides |= _untrained(trims)
    overrides |= {"seed": seed, **(more or {})}
    start = run_name(base, FULL, seed) if settings.get("start") == FULL else None
    facts = {**methods["bases"][base], "label": settings.get("label", method)}
    facts["kind"] = settings.get("kind", "method")
    return StudyRun(base, method, ratio, keep, seed, overrides, settings.get("size"), start, facts)


def _settings(methods: dict[str, Any], name: str, base: str) -> dict[str, Any]:
    """A method's own entry over that of the method it extends; overrides for this base included."""
    own = methods["methods"][name]
    below = _settings(methods, own["extends"], base) if "extends" in own else {"overrides": {}}
    overrides = below["overrides"]
    for further in (own.get("overrides", {}), own.get("on", {}).get(base, {})):
        overrides = _laid_over(overrides, further)
    kept = {key: value for key, value in own.items() if key not in ("overrides", "on", "extends")}
    return {**below, **kept, "overrides": overrides}


def _laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Overrides, later ones last: a section that is set whole takes the place of keys inside it."""
    result = {
        key: value
        for key, value in below.items()
        if not any(key == other or key.startswith(f"{other}.") for other in above)
    }
    return {**result, **above}


def _untrained(trims: bool) -> dict[str, Any]:
    """A single step that changes nothing, at the full target."""
    curriculum = {"enabled": False, "start_ratio": 0.0} if trims else {"enabled": False}
    return {
        "train.max_steps": 1,
        "optimizer.learning_rate": _NOTHING,
        "optimizer.multipliers": {},
        "strategy.curriculum": curriculum,
        "strategy.self_distillation.enabled": False,
    }

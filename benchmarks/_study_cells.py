"""Results of the study, read back: cells (a method at a ratio on a base) with their means and differences.

Errors hold both seeds and instances (``metrics.seeds``); differences are of the same instances, and of the
seeds that both cells have.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from _study_pool import read_json

from smarttrim_cli.metrics.seeds import Difference, matched_over_seeds, paired_over_seeds

FULL_METHODS = ("full_finetuned", "checkpoint")


@dataclass(frozen=True)
class Cell:
    """A method at one place of the table, over its seeds.

    Attributes:
        at: MACs ratio, or share of heads kept, or None for full models.
        results: By seed.
    """

    base: str
    method: str
    at: float | None
    results: tuple[dict[str, Any], ...]

    @property
    def first(self) -> dict[str, Any]:
        """One of the results."""
        return self.results[0]

    @property
    def metric(self) -> str:
        """Name of the score."""
        return str(self.first["metric"])

    def sides(self, split: str | None = None) -> list[dict[str, Any]]:
        """The model of every result: the trimmed one, or the only one; on another split if it is named."""
        found = [result if split is None else result.get(split) for result in self.results]
        return [one.get("trimmed", one["full"]) for one in found if one is not None]

    @property
    def seeds(self) -> set[int]:
        """Seeds of the results."""
        return {result["seed"] for result in self.results}

    def score(self, split: str | None = None) -> Difference | None:
        """Mean score with its error; None without results."""
        sides = self.sides(split)
        if not sides:
            return None
        errors = [side.get(f"{self.metric}_se") for side in sides]
        return matched_over_seeds(
            [side[self.metric] for side in sides],
            [math.nan if error is None else error for error in errors],
        )

    @property
    def speedup(self) -> float | None:
        """Mean measured MACs ratio."""
        return self.measured_speedup()

    def measured_speedup(self, split: str | None = None) -> float | None:
        """The same, on another split if it is named."""
        results = [result if split is None else result.get(split, {}) for result in self.results]
        found = [result["speedup"]["macs"] for result in results if "speedup" in result]
        return sum(found) / len(found) if found else None

    @property
    def gmacs(self) -> float | None:
        """Mean GMACs."""
        found = [side["gmacs"] for side in self.sides() if side.get("gmacs")]
        return sum(found) / len(found) if found else None

    @property
    def within(self) -> bool:
        """Whether every run came within 3 % of the ratio named."""
        return all(result.get("within_3_percent", True) for result in self.results)

    def minus(self, other: Cell | None) -> Shared | None:
        """Difference to another cell; None if they share no seed, or their instances are not stored."""
        if other is None:
            return None
        own, theirs = (scores_by_seed(cell) for cell in (self, other))
        seeds = tuple(sorted(own.keys() & theirs.keys()))
        if not seeds or any(len(own[seed]) != len(theirs[seed]) for seed in seeds):
            return None
        difference = paired_over_seeds([own[seed] for seed in seeds], [theirs[seed] for seed in seeds])
        return Shared(difference, seeds, set(seeds) == self.seeds == other.seeds)


class Shared(NamedTuple):
    """Difference of two cells.

    Attributes:
        value: The difference.
        seeds: What it is a difference of.
        complete: Whether neither cell has further seeds.
    """

    value: Difference
    seeds: tuple[int, ...]
    complete: bool


def scores_by_seed(cell: Cell) -> dict[int, list[float]]:
    """Seed to the scores of its instances, where they are stored."""
    pairs = zip(cell.results, cell.sides(), strict=True)
    return {result["seed"]: [float(s) for s in side["scores"]] for result, side in pairs if "scores" in side}


class Cells:
    """All cells there are.

    Args:
        results: Of the study; failed runs are left out.
    """

    def __init__(self, results: Iterable[dict[str, Any]]) -> None:
        found: dict[tuple[str, str, float | None], list[dict[str, Any]]] = {}
        for result in results:
            at = result["ratio"] if result["retention"] is None else result["retention"]
            found.setdefault((result["base"], result["method"], at), []).append(result)
        self._cells = {
            key: Cell(*key, tuple(sorted(group, key=lambda result: result["seed"])))
            for key, group in found.items()
        }

    def get(self, base: str, method: str, at: float | None = None) -> Cell | None:
        """A cell, if it is there."""
        return self._cells.get((base, method, at))

    def of(self, base: str, kinds: Sequence[str]) -> list[Cell]:
        """Cells of a base, of some kinds of method."""
        return [cell for cell in self._cells.values() if cell.base == base and cell.first["kind"] in kinds]

    @property
    def bases(self) -> list[str]:
        """Bases that have results."""
        return list(dict.fromkeys(cell.base for cell in self._cells.values()))

    def reference(self, base: str) -> Cell | None:
        """The full model: the best of those on this base, so that nothing looks better than it is."""
        there = [cell for method in FULL_METHODS if (cell := self.get(base, method)) is not None]
        return max(there, key=lambda cell: cell.score().mean) if there else None  # type: ignore[union-attr]

    def retained(self, cell: Cell) -> tuple[float, float] | None:
        """Score over that of the full model, and the standard error of this share."""
        reference, score = self.reference(cell.base), cell.score()
        whole = reference.score() if reference else None
        if not (score and whole and whole.mean):
            return None
        share = score.mean / whole.mean
        return share, math.hypot(score.standard_error, share * whole.standard_error) / whole.mean


def _today(result: dict[str, Any], methods: Mapping[str, Mapping[str, Any]], key: str) -> Any:
    return methods.get(result["method"], {}).get(key, result[key])


def read_cells(folder: Path, methods: Mapping[str, Mapping[str, Any]] | None = None) -> Cells:
    """The cells of a folder of results.

    Args:
        folder: Of JSON files; others than results are left out.
        methods: Name to settings, in the order of the tables; labels and kinds are those of today.
    """
    methods = methods or {}
    results = [content for path in sorted(folder.glob("*.json")) if (content := read_json(path))]
    place = {method: number for number, method in enumerate(methods)}
    good = [
        result | {key: _today(result, methods, key) for key in ("label", "kind")}
        for result in results
        if "base" in result and "error" not in result
    ]
    return Cells(sorted(good, key=lambda result: place.get(result["method"], len(place))))

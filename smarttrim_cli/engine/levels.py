"""How far results are trimmed, and which of them are repetitions of one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from smarttrim_cli.engine.results import Result

_SAME = 0.05


@dataclass(frozen=True)
class Level:
    """How far a row is trimmed: a ratio of MACs (named, else measured) or a share of heads; or unknown."""

    kind: str
    value: float

    def __str__(self) -> str:
        """``2.0x``, ``0.5`` of the heads, or a dash."""
        number = f"{self.value:.4g}"
        number += "" if "." in number else ".0"
        return {"ratio": f"{number}x", "retention": number}.get(self.kind, "-")

    def near(self, other: Level) -> bool:
        """Whether two rows may be compared."""
        return self.kind == other.kind and _close(self.value, other.value)


def levels(results: Sequence[Result]) -> list[Level]:
    """The level of every result; where none is named, that of the mean ratio of its repetitions."""
    found = [_named(result) for result in results]
    groups: list[list[int]] = []
    unnamed = (number for number, level in enumerate(found) if level is None)
    for number in sorted(unnamed, key=lambda number: results[number].speedup or 0.0):
        for group in groups:
            if _repeats(results[number], [results[other] for other in group]):
                group.append(number)
                break
        else:
            groups.append([number])
    measured = {}
    for group in groups:
        level = Level("ratio", round(fmean(results[number].speedup or 0.0 for number in group), 1))
        measured.update(dict.fromkeys(group, level))
    return [measured[number] if level is None else level for number, level in enumerate(found)]


def differing_keys(results: Sequence[Result]) -> list[str]:
    """Keys in which recipes that have them are not the same."""
    recipes = [result.recipe for result in results if result.recipe]
    shared = [key for key in (recipes or [{}])[0] if all(key in recipe for recipe in recipes)]
    return [key for key in shared if any(recipe[key] != recipes[0][key] for recipe in recipes)]


def _named(result: Result) -> Level | None:
    """The level that is named, or the unknown one; None where there is a measured ratio alone."""
    if result.retention is not None:
        return Level("retention", result.retention)
    if result.ratio:
        return Level("ratio", result.ratio)
    return None if result.speedup else Level("", 0.0)


def _repeats(result: Result, others: Sequence[Result]) -> bool:
    """Whether a result is of another seed of the same, at a ratio that is hardly larger than the least."""
    return (
        result.method == others[0].method
        and _close(result.speedup or 0.0, others[0].speedup or 0.0)
        and result.seed not in {other.seed for other in others}
        and not differing_keys([*others, result])
    )


def _close(value: float, other: float) -> bool:
    """Whether they are within 5 %, rounding aside."""
    return abs(value - other) <= _SAME * other * (1 + 1e-9)

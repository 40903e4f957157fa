"""What the study was to show, what it measured, and whether that is so.

A bar within one standard error of what was measured is neither met nor missed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from _study_cells import Cell, Cells, scores_by_seed
from _study_tables import OURS, PAPER, difference, half_up, markdown

from smarttrim_cli.metrics.seeds import paired_over_seeds

_ORDINARY, _DENSE, _NLVR2 = "meter_vqa", "meter_vqa_dense", "meter_nlvr2"
_LONG, _PAPER_LONG = "ours_long", "smarttrim_long"
_WORDS, _WORDS_LONG = "ours_words", "ours_words_long"
_HEADS, _ALL, _ALL_LONG = "ours_heads", "ours_all", "ours_all_long"
_STEADY, _WHOLE, _WHOLE_LONG = "steady", "steady_no_curriculum", "steady_no_curriculum_long"
_RETAINED = {
    (_ORDINARY, PAPER): {1.5: 0.99, 2.0: 0.98, 3.0: 0.95},
    (_ORDINARY, _PAPER_LONG): {2.0: 0.98, 3.0: 0.95},
    (_ORDINARY, _STEADY): {1.5: 0.99, 2.0: 0.98, 3.0: 0.95},
    (_ORDINARY, _WHOLE): {1.5: 0.99, 2.0: 0.98, 3.0: 0.95},
    (_ORDINARY, _WHOLE_LONG): {1.5: 0.99, 2.0: 0.98},
    (_ORDINARY, OURS): {1.5: 0.99, 2.0: 0.98, 3.0: 0.95},
    (_ORDINARY, _WORDS): {2.0: 0.98, 3.0: 0.95},
    (_ORDINARY, _HEADS): {1.5: 0.99, 2.0: 0.98, 3.0: 0.95},
    (_ORDINARY, _ALL): {1.5: 0.99, 2.0: 0.98, 3.0: 0.95},
    (_ORDINARY, _LONG): {1.5: 0.99, 2.0: 0.98, 3.0: 0.95},
    (_ORDINARY, _WORDS_LONG): {2.0: 0.98, 3.0: 0.95},
    (_ORDINARY, _ALL_LONG): {1.5: 0.99, 2.0: 0.98, 3.0: 0.95},
    (_DENSE, OURS): {2.5: 0.97, 3.5: 0.90},
    (_DENSE, _HEADS): {2.5: 0.97, 3.5: 0.90},
}
_NAMES = {
    PAPER: "SmartTrim",
    _PAPER_LONG: "SmartTrim with twice the steps",
    _STEADY: "SmartTrim with whole noise",
    _WHOLE: "SmartTrim with whole noise and no curriculum",
    _WHOLE_LONG: "SmartTrim with whole noise, no curriculum and twice the steps",
    OURS: "ours",
    _WORDS: "ours, words too",
    _HEADS: "ours, heads too",
    _ALL: "ours, words and heads too",
    _LONG: "ours with twice the steps",
    _WORDS_LONG: "ours, words too, with twice the steps",
    _ALL_LONG: "ours, words and heads too, with twice the steps",
    _ORDINARY: "ordinary",
    _DENSE: "dense",
    _NLVR2: "NLVR2",
}
_OTHERS = ("trips", "trips_image", "random", "random_image", "ftkd")
_AIMED_AT = (PAPER, _STEADY, _WHOLE, _ALL)
_DENSE_OTHERS = ("local", "tome", "trips", "random")
YES, NO, WITHIN, UNKNOWN = "yes", "**no**", "within error", "-"
EXPLAINED = """*met* is *within error* where the bar is at most one standard error away from what was
measured, on either side: such a claim is neither shown nor refuted. For the correlations (of every seed)
*yes* says that all their 95 % intervals lie above 0. Differences are of the seeds that both have, which are
named where one has more; of a single seed, errors are over instances alone, and other seeds may differ by
far more."""
Row = tuple[str, str, str]


def claims_table(cells: Cells) -> list[str]:
    """Claim, measurement, whether it is met; a dash where runs are missing."""
    return markdown(["to reach", "measured", "met"], _claims(cells))


def kept_table(cells: Cells) -> list[str]:
    """What is kept of the full model's score, a row per method; a dash where nothing is claimed."""
    bars = sorted(
        {(base, ratio, least) for (base, _), wanted in _RETAINED.items() for ratio, least in wanted.items()}
    )
    rows = []
    for method in dict.fromkeys(method for _, method in _RETAINED):
        row = [_NAMES[method]]
        for base, ratio, least in bars:
            wanted = ratio in _RETAINED.get((base, method), {})
            row.append(_in_one(_retains(cells, base, method, ratio, least)) if wanted else UNKNOWN)
        rows.append(row)
    head = [f"{_NAMES[base]}, {ratio}x: {least:.0%}" for base, ratio, least in bars]
    return markdown(["kept of the full model's score", *head], rows)


def above_tables(cells: Cells) -> list[str]:
    """Differences to other methods: a row per method and ratio, a column per other method."""
    lines: list[str] = []
    for base, methods, ratios, others, least in (
        (_ORDINARY, _AIMED_AT, (2.0, 3.0), _OTHERS, 0.10),
        (_DENSE, (OURS, _HEADS), (2.5, 3.5), _DENSE_OTHERS, 0.30),
    ):
        rows = [
            [f"{_NAMES[method]}, {ratio}x"]
            + [_in_one(_beats(cells, base, method, other, ratio, least)) for other in others]
            for method in methods
            for ratio in ratios
        ]
        head = f"{_NAMES[base]} scenes, at least {100 * least:.0f} points above"
        lines += [*markdown([head, *others], rows), ""]
    return lines[:-1]


def _in_one(row: Row) -> str:
    _, measured, met = row
    return measured if met == UNKNOWN else f"{measured}: {met}"


def verdict(value: float, error: float, least: float) -> str:
    """Whether a value reaches a bar; an unknown error (nan) counts as none."""
    if abs(value - least) <= (0.0 if math.isnan(error) else error):
        return WITHIN
    return YES if value > least else NO


def _claims(cells: Cells) -> Iterator[Row]:
    for (base, method), wanted in _RETAINED.items():
        for ratio, least in wanted.items():
            yield _retains(cells, base, method, ratio, least)
    for method in _AIMED_AT:
        for ratio in (2.0, 3.0):
            for other in _OTHERS:
                yield _beats(cells, _ORDINARY, method, other, ratio, 0.10)
        for other in _OTHERS:
            yield _grows(cells, method, other)
    for method in (OURS, _HEADS):
        for ratio in (2.5, 3.5):
            for other in _DENSE_OTHERS:
                yield _beats(cells, _DENSE, method, other, ratio, 0.30)
    yield from (_beats(cells, _DENSE, OURS, "ours_local", ratio, 0.30) for ratio in (2.5, 3.5))
    for ratio in (1.5, 2.0, 2.5, 3.0):
        yield from (_no_worse(cells, method, ratio) for method in (OURS, _ALL))
    for ratio in (2.0, 2.5):
        for switch in ("no_stable_init", "no_curriculum"):
            yield _beats(cells, _ORDINARY, PAPER, switch, ratio, 0.30)
    for method, prefix in ((PAPER, ""), (_STEADY, f"{_STEADY}_")):
        for switch in ("no_stable_init", "no_curriculum"):
            yield _beats(cells, _NLVR2, method, f"{prefix}{switch}", 2.0, 0.30)
    for switch, ratios in (("no_stable_init", (2.0, 2.5)), ("no_curriculum", (2.5, 3.0))):
        for ratio in ratios:
            yield _beats(cells, _ORDINARY, _STEADY, f"{_STEADY}_{switch}", ratio, 0.30)
    for keep in (0.2, 0.3, 0.4, 0.5):
        for other in ("grad_all_head", "grad_layer_head", "random_head"):
            yield _heads(cells, other, keep)
    for method in (PAPER, OURS, _ALL):
        for ratio in (2.0, 3.0):
            for what in ("objects", "steps"):
                yield _follows(cells, method, ratio, what)


def _retains(cells: Cells, base: str, method: str, ratio: float, least: float) -> Row:
    claim = f"{_NAMES[method]}, {_NAMES[base]}, {ratio}x: at least {least:.0%} of the full model's score"
    cell = cells.get(base, method, ratio)
    retained = cells.retained(cell) if cell else None
    if cell is None or retained is None:
        return claim, "-", UNKNOWN
    share, error = retained
    seeds = " (one seed)" if len(cell.seeds) == 1 else ""
    shown = "" if math.isnan(error) else f" ± {half_up(error):.1%}"
    return claim, f"{half_up(share):.1%}{shown}{seeds}", verdict(share, error, least)


def _beats(cells: Cells, base: str, method: str, other: str, ratio: float, least: float) -> Row:
    claim = f"{_NAMES[method]}, {_NAMES[base]}, {ratio}x: at least {100 * least:.0f} points above {other}"
    return _judged(claim, cells.get(base, method, ratio), cells.get(base, other, ratio), least)


def _grows(cells: Cells, method: str, other: str) -> Row:
    """Whether the gap at 3.0x is wider than at 2.0x."""
    claim = f"{_NAMES[method]}, ordinary: further above {other} at 3.0x than at 2.0x"
    gaps, scores = [], []
    for ratio in (2.0, 3.0):
        cell, theirs = (cells.get(_ORDINARY, name, ratio) for name in (method, other))
        gap = cell.minus(theirs) if cell else None
        if cell is None or theirs is None or gap is None:
            return claim, "-", UNKNOWN
        gaps.append(difference(gap, say_one=True))
        scores += [scores_by_seed(cell), scores_by_seed(theirs)]
    seeds = sorted(set.intersection(*map(set, scores)))
    if not seeds:
        return claim, ", then ".join(gaps), UNKNOWN
    before, before_other, after, after_other = (np.array([one[seed] for seed in seeds]) for one in scores)
    growth = paired_over_seeds(after - after_other, before - before_other)
    return claim, ", then ".join(gaps), verdict(growth.mean, growth.standard_error, 0.0)


def _no_worse(cells: Cells, method: str, ratio: float) -> Row:
    claim = f"{_NAMES[method]}, ordinary, {ratio}x: no worse than SmartTrim"
    return _judged(claim, cells.get(_ORDINARY, method, ratio), cells.get(_ORDINARY, PAPER, ratio), 0.0)


def _heads(cells: Cells, other: str, keep: float) -> Row:
    claim = f"learned heads, {keep:.1f} kept: above {other.removesuffix('_head').replace('_', '-')}"
    return _judged(claim, cells.get(_ORDINARY, "learned_head", keep), cells.get(_ORDINARY, other, keep), 0.0)


def _judged(claim: str, cell: Cell | None, other: Cell | None, least: float) -> Row:
    found = cell.minus(other) if cell else None
    if found is None:
        return claim, "-", UNKNOWN
    met = verdict(found.value.mean, found.value.standard_error, least)
    return claim, difference(found, say_one=True), met


def _follows(cells: Cells, method: str, ratio: float, what: str) -> Row:
    """Whether the rank correlation's interval lies above 0 in every run.

    Of the share of the full model's MACs: its MACs themselves grow with the length of the question.
    """
    share = "share of the full model's MACs"
    claim = f"{_NAMES[method]}, ordinary, {ratio}x: {share} rises with the number of {what}"
    cell = cells.get(_ORDINARY, method, ratio)
    found = (
        [result.get("difficulty", {}).get(what, {}).get("share") for result in cell.results] if cell else []
    )
    known = [one for one in found if one]
    if not known:
        return claim, "-", UNKNOWN
    rhos = ", ".join(f"{one['rho']:+.2f}" for one in known)
    return claim, rhos, YES if all(one["low"] > 0 for one in known) else NO

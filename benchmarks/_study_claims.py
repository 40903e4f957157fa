"""What the study was to show, what it measured, and whether that is so."""

from __future__ import annotations

from collections.abc import Iterator

from _study_cells import Cell, Cells
from _study_tables import OURS, PAPER, markdown, signed

_ORDINARY, _DENSE = "meter_vqa", "meter_vqa_dense"
_LONG, _PAPER_LONG = "ours_long", "smarttrim_long"
_WORDS, _WORDS_LONG = "ours_words", "ours_words_long"
_HEADS, _ALL = "ours_heads", "ours_all"
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
    _ORDINARY: "ordinary",
    _DENSE: "dense",
}
Row = tuple[str, str, bool | None]


def claims_table(cells: Cells) -> list[str]:
    """Claim, measurement, whether it is met; a dash where runs are missing."""
    shown = {True: "yes", False: "**no**", None: "-"}
    rows = [(claim, measured, shown[met]) for claim, measured, met in _claims(cells)]
    return markdown(["to reach", "measured", "met"], rows)


def _claims(cells: Cells) -> Iterator[Row]:
    for (base, method), wanted in _RETAINED.items():
        for ratio, least in wanted.items():
            yield _retains(cells, cells.get(base, method, ratio), base, method, ratio, least)
    for method in (PAPER, _STEADY, _WHOLE, _ALL):
        for ratio in (2.0, 3.0):
            for other in ("trips", "random", "ftkd"):
                yield _beats(cells, _ORDINARY, method, other, ratio, 0.10)
        for other in ("trips", "random", "ftkd"):
            yield _grows(cells, method, other)
    for method in (OURS, _HEADS):
        for ratio in (2.5, 3.5):
            for other in ("local", "tome", "trips", "random"):
                yield _beats(cells, _DENSE, method, other, ratio, 0.30)
    yield from (_beats(cells, _DENSE, OURS, "ours_local", ratio, 0.30) for ratio in (2.5, 3.5))
    for ratio in (1.5, 2.0, 2.5, 3.0):
        yield from (_no_worse(cells, method, ratio) for method in (OURS, _ALL))
    for ratio in (2.0, 2.5):
        for switch in ("no_stable_init", "no_curriculum"):
            yield _beats(cells, _ORDINARY, PAPER, switch, ratio, 0.30)
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


def _retains(cells: Cells, cell: Cell | None, base: str, method: str, ratio: float, least: float) -> Row:
    claim = f"{_NAMES[method]}, {_NAMES[base]}, {ratio}x: at least {least:.0%} of the full model's score"
    share = cells.retained(cell) if cell else None
    return (claim, "-", None) if share is None else (claim, f"{share:.1%}", share >= least)


def _beats(cells: Cells, base: str, method: str, other: str, ratio: float, least: float) -> Row:
    claim = f"{_NAMES[method]}, {_NAMES[base]}, {ratio}x: at least {100 * least:.0f} points above {other}"
    return _judged(claim, cells.get(base, method, ratio), cells.get(base, other, ratio), least)


def _grows(cells: Cells, method: str, other: str) -> Row:
    """Whether the gap at 3.0x is wider than at 2.0x."""
    claim = f"{_NAMES[method]}, ordinary: further above {other} at 3.0x than at 2.0x"
    gaps = []
    for ratio in (2.0, 3.0):
        cell = cells.get(_ORDINARY, method, ratio)
        gap = cell.minus(cells.get(_ORDINARY, other, ratio)) if cell else None
        if gap is None:
            return claim, "-", None
        gaps.append(gap)
    return claim, f"{signed(gaps[0])}, then {signed(gaps[1])}", gaps[1].mean > gaps[0].mean


def _no_worse(cells: Cells, method: str, ratio: float) -> Row:
    """Not worse: not by more than one standard error."""
    claim = f"{_NAMES[method]}, ordinary, {ratio}x: no worse than SmartTrim"
    ours = cells.get(_ORDINARY, method, ratio)
    difference = ours.minus(cells.get(_ORDINARY, PAPER, ratio)) if ours else None
    if difference is None:
        return claim, "-", None
    return claim, signed(difference), difference.mean >= -difference.standard_error


def _heads(cells: Cells, other: str, keep: float) -> Row:
    claim = f"learned heads, {keep:.1f} kept: above {other.removesuffix('_head').replace('_', '-')}"
    return _judged(claim, cells.get(_ORDINARY, "learned_head", keep), cells.get(_ORDINARY, other, keep), 0.0)


def _judged(claim: str, cell: Cell | None, other: Cell | None, least: float) -> Row:
    difference = cell.minus(other) if cell else None
    if difference is None:
        return claim, "-", None
    return claim, signed(difference), difference.mean >= least if least else difference.mean > 0


def _follows(cells: Cells, method: str, ratio: float, what: str) -> Row:
    """Whether the rank correlation's interval lies above 0 in every run."""
    claim = f"{_NAMES[method]}, ordinary, {ratio}x: MACs rise with the number of {what}"
    cell = cells.get(_ORDINARY, method, ratio)
    found = (
        [result.get("difficulty", {}).get(what, {}).get("macs") for result in cell.results] if cell else []
    )
    known = [one for one in found if one]
    if not known:
        return claim, "-", None
    rhos = ", ".join(f"{one['rho']:+.2f}" for one in known)
    return claim, rhos, all(one["low"] > 0 for one in known)

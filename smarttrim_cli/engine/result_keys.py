"""What a result's JSON may hold: files of other programs are refused by key, not by a traceback."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from smarttrim_cli.data.files import shown
from smarttrim_cli.engine.files import is_number
from smarttrim_cli.errors import UserError


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _cost(value: Any) -> bool:
    return is_number(value) and value >= 0


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _object(value: Any) -> bool:
    return isinstance(value, Mapping)


def _objects(value: Any) -> bool:
    return isinstance(value, list) and all(map(_object, value))


def _numbers(value: Any) -> bool:
    return isinstance(value, Mapping) and all(v is None or is_number(v) for v in value.values())


def _latency(value: Any) -> bool:
    return _cost(value) or _numbers(value)


def _scores(value: Any) -> bool:
    if isinstance(value, str):
        return set(value) <= {"0", "1"}
    return isinstance(value, list) and all(score is None or is_number(score) for score in value)


_Kind = tuple[Callable[[Any], bool], str]
_TEXT: _Kind = (_text, "a text")
_NUMBER: _Kind = (is_number, "a number")
_COST: _Kind = (_cost, "a number of at least 0")
_WHOLE: _Kind = (_whole, "a whole number")
_OBJECT: _Kind = (_object, "an object")
_NUMBERS: _Kind = (_numbers, "an object of numbers")
_SIDES = ("full", "trimmed")
_TOP: dict[str, _Kind] = {
    **dict.fromkeys(("method", "task", "density", "split", "metric", "explanation"), _TEXT),
    **dict.fromkeys(("ratio", "retention"), _NUMBER),
    **dict.fromkeys(("seed", "count"), _WHOLE),
    **dict.fromkeys(("full", "trimmed", "speedup", "difference", "eval", "baselines"), _OBJECT),
    **dict.fromkeys(("breakdown", "macs_counts", "profile", "at_full_size"), _OBJECT),
    "layers": (_objects, "a list of objects"),
}
_SIDE: dict[str, _Kind] = {
    "scores": (_scores, "a list of numbers, or a text of 0 and 1"),
    **dict.fromkeys(("gmacs", "gmacs_as_published"), _COST),
    "latency_ms": (_latency, "a number of at least 0, or an object of numbers"),
    "kept": _NUMBERS,
}
_INSIDE: dict[str, dict[str, _Kind]] = {
    "speedup": dict.fromkeys(("macs", "latency", "latency_p50"), _NUMBER),
    "difference": dict.fromkeys(("mean", "se", "low", "high"), _NUMBER),
    "profile": {"environment": _OBJECT},
    **dict.fromkeys(("breakdown", "macs_counts"), dict.fromkeys(_SIDES, _NUMBERS)),
}
_DEEPEST = 50
"""Levels inside each other; results have fewer than ten."""


def check_result(content: Mapping[str, Any], where: str) -> None:
    """Refuse a result in which a key that is read holds something of another kind; null stands for none.

    Args:
        content: What ``evaluate``, ``profile``, ``finetune`` or the study writes.
        where: Its place, for the error.

    Raises:
        UserError: It names the key and what it holds.
    """
    _refuse_endless(content, where)
    _check_report(content, "", where)


def _refuse_endless(content: Mapping[str, Any], where: str) -> None:
    """Refuse numbers that cannot be reckoned with, wherever they are, and what is nested without end."""
    left: list[tuple[str, Any, int]] = [(str(key), value, 1) for key, value in content.items()]
    while left:
        key, value, depth = left.pop()
        if depth > _DEEPEST:
            raise UserError(f"nested too deeply: {key[:60]}...", where=where)
        if isinstance(value, Mapping):
            left += [(f"{key}.{name}", one, depth + 1) for name, one in value.items()]
        elif isinstance(value, list):
            left += [(key, one, depth + 1) for one in value]
        elif isinstance(value, int | float) and not isinstance(value, bool) and not is_number(value):
            raise UserError(f"{key} is {shown(value)}, not a number", where=where)


def _check_report(content: Mapping[str, Any], prefix: str, where: str) -> None:
    _check(content, _TOP, prefix, where)
    for key, kinds in _INSIDE.items():
        _check(content.get(key) or {}, kinds, f"{prefix}{key}.", where)
    metric = content.get("metric") or "accuracy"
    for key in _SIDES:
        kinds = {**_SIDE, metric: _NUMBER, f"{metric}_se": _NUMBER}
        _check(content.get(key) or {}, kinds, f"{prefix}{key}.", where)
    baselines = content.get("baselines") or {}
    _check(baselines, dict.fromkeys(baselines, _OBJECT), f"{prefix}baselines.", where)
    for name, other in baselines.items():
        _check(other or {}, {"trimmed_minus_this": _NUMBERS}, f"{prefix}baselines.{name}.", where)
    if content.get("at_full_size"):
        _check_report(content["at_full_size"], f"{prefix}at_full_size.", where)


def _check(content: Mapping[str, Any], kinds: Mapping[str, _Kind], prefix: str, where: str) -> None:
    for key, (holds, name) in kinds.items():
        value = content.get(key)
        if value is not None and not holds(value):
            raise UserError(f"{prefix}{key} is {shown(value)}, not {name}", where=where)

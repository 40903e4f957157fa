"""What a result's JSON may hold: files of other programs are refused by key, not by a traceback."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from smarttrim_cli.data.files import shown
from smarttrim_cli.errors import UserError


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _object(value: Any) -> bool:
    return isinstance(value, Mapping)


def _scores(value: Any) -> bool:
    if isinstance(value, str):
        return set(value) <= {"0", "1"}
    return isinstance(value, list) and all(score is None or _number(score) for score in value)


_Kind = tuple[Callable[[Any], bool], str]
_TEXT: _Kind = (_text, "a text")
_NUMBER: _Kind = (_number, "a number")
_WHOLE: _Kind = (_whole, "a whole number")
_OBJECT: _Kind = (_object, "an object")
_TOP: dict[str, _Kind] = {
    **dict.fromkeys(("method", "task", "density", "split", "metric"), _TEXT),
    **dict.fromkeys(("ratio", "retention"), _NUMBER),
    **dict.fromkeys(("seed", "count"), _WHOLE),
    **dict.fromkeys(("full", "trimmed", "speedup", "difference"), _OBJECT),
}
_INSIDE: dict[str, dict[str, _Kind]] = {
    "speedup": dict.fromkeys(("macs", "latency", "latency_p50"), _NUMBER),
    "difference": dict.fromkeys(("mean", "se", "low", "high"), _NUMBER),
    **dict.fromkeys(("full", "trimmed"), {"scores": (_scores, "a list of numbers, or a text of 0 and 1")}),
}


def check_result(content: Mapping[str, Any], where: str) -> None:
    """Refuse a result in which a key that is read holds something of another kind; null stands for none.

    Args:
        content: What ``evaluate`` or the study writes.
        where: Its place, for the error.

    Raises:
        UserError: It names the key and what it holds.
    """
    _check(content, _TOP, "", where)
    for key, kinds in _INSIDE.items():
        _check(content.get(key) or {}, kinds, f"{key}.", where)


def _check(content: Mapping[str, Any], kinds: Mapping[str, _Kind], prefix: str, where: str) -> None:
    for key, (holds, name) in kinds.items():
        value = content.get(key)
        if value is not None and not holds(value):
            raise UserError(f"{prefix}{key} is {shown(value)}, not {name}", where=where)

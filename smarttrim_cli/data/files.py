"""Reading data files and what is in them, with errors that name file, line or entry, and key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smarttrim_cli.errors import UserError

_INCOMPLETE = "The file may be incomplete: download or copy it again."
_KINDS = {str: "a text", int: "a whole number", list: "a list", dict: "an object"}


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: The file is missing, unreadable, not UTF-8, or not JSON.
    """
    try:
        return json.loads(_bytes_of(path))
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text (byte {error.start})", where=str(path)) from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"not valid JSON: {error.msg} (line {error.lineno}, column {error.colno})",
            where=str(path),
            hint=_INCOMPLETE,
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(_unreadable(error), where=str(path)) from error


def _unreadable(error: Exception) -> str:
    """What Python cannot read of valid JSON."""
    return "nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"


class _Duplicate(Exception):
    """A key that an object has twice."""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _Duplicate(next(shown(key) for key in keys if keys.count(key) > 1))
    return found


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON-lines file, each with its place (``file:line``); blank lines are passed over.

    Raises:
        UserError: The file is missing, unreadable or empty, or a line is not a JSON object in UTF-8, or has
            a key twice.
    """
    found = False
    content = _bytes_of(path)
    encoding = json.detect_encoding(content)
    if not encoding.startswith("utf-8"):
        raise UserError(f"not UTF-8 text, but {encoding.upper()}", where=str(path), hint="save it as UTF-8")
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            entry = json.loads(line, object_pairs_hook=_without_duplicates)
        except UnicodeDecodeError as error:
            raise UserError(f"not UTF-8 text (byte {error.start} of the line)", where=where) from error
        except json.JSONDecodeError as error:
            raise UserError(
                f"not valid JSON: {error.msg} (column {error.colno})", where=where, hint=_INCOMPLETE
            ) from error
        except _Duplicate as error:
            raise UserError(f"the key {error} is given twice", where=where) from error
        except (ValueError, RecursionError) as error:
            raise UserError(_unreadable(error), where=where) from error
        if not isinstance(entry, dict):
            raise UserError("the line is not a JSON object", where=where)
        found = True
        yield where, entry
    if not found:
        raise UserError("the file is empty", where=str(path))


def objects(content: Any, key: str, path: Path) -> list[dict[str, Any]]:
    """The list of objects under a key of a JSON file's content.

    Raises:
        UserError: There is none, or it is empty.
    """
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise UserError(f"not in the expected layout: no list of {key}", where=str(path))
    if not found:
        raise UserError(f"the list of {key} is empty", where=str(path))
    return found


def field(entry: dict[str, Any], key: str, kind: type, where: str) -> Any:
    """The value of a key that an entry needs, of the type it has to have.

    Args:
        entry: A JSON object.
        key: The key.
        kind: ``str``, ``int``, ``list`` or ``dict``.
        where: Place of the entry, for the error.

    Raises:
        UserError: There is no such key, or its value is of another type.
    """
    if key not in entry:
        raise UserError(f"the key {key} is missing", where=where)
    value = entry[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UserError(f"{key} is {shown(value)}, not {_KINDS[kind]}", where=where)
    if isinstance(value, str):
        refuse_half_characters(value, key, where)
    return value


def texts(entry: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    """The value of a key that an entry needs: a list of texts, not empty.

    Raises:
        UserError: It is anything else.
    """
    value = field(entry, key, list, where)
    if not value or not all(isinstance(text, str) for text in value):
        raise UserError(f"{key} is {shown(value)}, not a list of texts", where=where)
    for text in value:
        refuse_half_characters(text, key, where)
    return tuple(value)


def refuse_half_characters(text: str, key: str, where: str) -> None:
    """JSON can spell half of a character (a lone surrogate), which no tokenizer and no file takes.

    Raises:
        UserError: The text has one.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        found = ascii(text[error.start])
        raise UserError(f"{key} has half of a character at {error.start}: {found}", where=where) from error


def shown(value: Any) -> str:
    """A value as JSON, cut to what a message has room for."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError("no such file", where=str(path)) from error
    except ValueError as error:  # of a path with a NUL
        raise UserError(f"no path of a file: {error}", where=repr(str(path))) from error
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(path)) from error

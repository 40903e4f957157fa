"""Stored predictions: JSON lines, one record per instance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smarttrim_cli.errors import UserError
from smarttrim_cli.tasks.base import Record


class StoredRecord(Record):
    """A record from a file, which knows its place there: ``where`` is file and line."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        super().__init__(values)
        self.where = where


def place_of(record: Record) -> str | None:
    """File and line of a record, if it is from a file."""
    return getattr(record, "where", None)


def read_records(path: Path) -> list[Record]:
    """Predictions of a JSON-lines file; every record has ``id`` and ``prediction``.

    Raises:
        UserError: The file cannot be read, is empty, or a line is no prediction.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read the predictions: {error.strerror}", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"cannot read the predictions: not UTF-8 (byte {error.start})", where=str(path)
        ) from error
    lines = text.split("\n")  # splitlines also splits at U+2028 and others
    records: list[Record] = []
    seen: dict[int | str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"not JSON ({error.msg})", where=f"{path}:{number}") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"cannot be read as JSON: {error}", where=f"{path}:{number}") from error
        if not isinstance(record, dict) or "id" not in record or "prediction" not in record:
            raise UserError("not a prediction: it needs the keys id and prediction", where=f"{path}:{number}")
        if not isinstance(record["id"], int | str) or isinstance(record["id"], bool):
            raise UserError(f"the id is {record['id']!r}, not a number or a text", where=f"{path}:{number}")
        if record["id"] in seen:
            raise UserError(
                f"a second prediction for id {record['id']}, after line {seen[record['id']]}",
                where=f"{path}:{number}",
            )
        seen[record["id"]] = number
        records.append(StoredRecord(record, f"{path}:{number}"))
    if not records:
        raise UserError("there are no predictions in this file", where=str(path))
    return records

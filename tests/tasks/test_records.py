from __future__ import annotations

from pathlib import Path

import pytest

from smarttrim_cli.errors import UserError
from smarttrim_cli.tasks.records import place_of, read_records


def test_reads_every_line(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(
        '{"id": 1, "prediction": "a", "x": 0}\n{"id": "b", "prediction": "é"}\n', encoding="utf-8"
    )
    assert read_records(file) == [{"id": 1, "prediction": "a", "x": 0}, {"id": "b", "prediction": "é"}]


def test_only_line_feeds_end_a_line(tmp_path: Path) -> None:
    """Texts are written as they are, and some hold characters that str.splitlines splits at."""
    file = tmp_path / "p.jsonl"
    file.write_text('{"id": 1, "prediction": "a\u2028b\u0085c"}\n\n', encoding="utf-8")
    assert read_records(file) == [{"id": 1, "prediction": "a\u2028b\u0085c"}]


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        (b'{"id": 1, "prediction": "a"}\n{"id": 2', ":2", "not JSON"),
        (b'{"id": 1, "prediction": "a"}\n[]', ":2", "needs the keys id and prediction"),
        (b'{"question_id": 1, "answer": "a"}', ":1", "needs the keys id and prediction"),
        (b'{"id": [1], "prediction": "a"}', ":1", "the id is"),
        (b'{"id": true, "prediction": "a"}', ":1", "the id is True"),
        (b'{"id": 1, "prediction": "a"}\n{"id": 1, "prediction": "b"}', ":2", "a second prediction for id 1"),
        (b"", "", "no predictions"),
        (b"\xff\xfe", "", "cannot read"),
        (None, "", "cannot read"),
    ],
)
def test_mistakes_name_file_and_line(tmp_path: Path, content: bytes | None, line: str, message: str) -> None:
    file = tmp_path / "p.jsonl"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_records(file)
    assert caught.value.where == f"{file}{line}"


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"id": 1, "prediction": "a"}', encoding="utf-8-sig")
    assert read_records(file) == [{"id": 1, "prediction": "a"}]


def test_records_know_their_place(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('\n{"id": 1, "prediction": "a"}', encoding="utf-8")
    (record,) = read_records(file)
    assert place_of(record) == f"{file}:2" and place_of({"id": 1, "prediction": "a"}) is None

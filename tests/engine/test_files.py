from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from smarttrim_cli.engine.files import check_writable, is_number, write_json, write_text
from smarttrim_cli.errors import UserError


@pytest.mark.parametrize("name", ["n" * 250 + ".json", "ä" * 125 + ".json", "n" * 255])
def test_the_longest_name_that_a_file_system_takes(tmp_path: Path, name: str) -> None:
    check_writable(tmp_path / name, "--output")
    write_text(tmp_path / name, "text")
    assert [(path.name, path.read_text(encoding="utf-8")) for path in tmp_path.iterdir()] == [(name, "text")]


def test_an_error_names_the_file_that_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Any, target: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source), None, str(target))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError) as caught:
        write_json(tmp_path / "r.json", {})
    assert caught.value.filename == str(tmp_path / "r.json") and list(tmp_path.iterdir()) == []


def test_a_file_is_not_writable_in_a_folder_that_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is replaced by one that is written beside it."""
    (tmp_path / "r.json").touch()
    check_writable(tmp_path / "r.json", "--output")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(UserError, match="may not be written to"):
        check_writable(tmp_path / "r.json", "--output")


@pytest.mark.parametrize(
    ("value", "is_one"),
    [(1, True), (-0.5, True), (10**400, False), (float("nan"), False), (True, False), ("1", False)],
)
def test_numbers(value: Any, is_one: bool) -> None:
    assert is_number(value) == is_one

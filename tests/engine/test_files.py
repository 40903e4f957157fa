"""Files and folders are complete or absent, whatever comes between."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from smarttrim_cli import tensors
from smarttrim_cli.engine import files
from smarttrim_cli.engine.checkpoint import prune_checkpoints
from smarttrim_cli.engine.files import (
    check_writable,
    is_number,
    mend_folder,
    new_folder,
    remove,
    write_bytes,
    write_json,
    write_text,
)
from smarttrim_cli.engine.runs import Run
from smarttrim_cli.errors import UserError


def written(path: Path, text: str) -> None:
    with new_folder(path) as folder:
        (folder / "a.txt").write_text(text)


def test_an_older_folder_comes_back_if_a_new_one_cannot_take_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model"
    written(path, "old")
    replace = os.replace

    def failing(source: Path, target: Path) -> None:
        if Path(source).name.endswith(".tmp"):
            raise OSError(errno.EIO, "Input/output error", str(target))
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", failing)
    with pytest.raises(OSError, match="Input/output"):
        written(path, "new")
    assert (path / "a.txt").read_text() == "old" and os.listdir(tmp_path) == ["model"]


def test_what_a_killed_process_left_is_mended(tmp_path: Path) -> None:
    for name in (".model.12.old", ".model.12.tmp", ".best.12.old", "best"):
        (tmp_path / name).mkdir()
    mend_folder(tmp_path / "model")
    mend_folder(tmp_path / "best")
    assert sorted(os.listdir(tmp_path)) == ["best", "model"]


def test_a_run_at_work_mends_its_models(tmp_path: Path) -> None:
    (tmp_path / ".model.12.old").mkdir()
    with Run(tmp_path).claimed():
        assert (tmp_path / "model").is_dir()


def test_what_a_link_points_to_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    written(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to("real")
    written(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real/a.txt").read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["link", "real"]
    remove(tmp_path / "link")
    assert os.listdir(tmp_path) == ["real"]


def test_a_linked_checkpoint_is_removed_as_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    checkpoints = tmp_path / "run/checkpoints"
    (checkpoints / "step-6").mkdir(parents=True)
    (checkpoints / "step-3").symlink_to(tmp_path / "elsewhere")
    prune_checkpoints(Run(tmp_path / "run"), 1, None)
    assert os.listdir(checkpoints) == ["step-6"] and (tmp_path / "elsewhere").is_dir()


def test_a_link_to_nothing_is_no_place(tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to("nothing")
    with pytest.raises(UserError, match="a link to what is not there: nothing"):
        check_writable(tmp_path / "run", "output_dir", folder=True)


def test_weights_that_cannot_be_written_name_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(tensors, "save_file", full)
    with pytest.raises(OSError, match="No space left") as caught:
        tensors.save_tensors({"a": torch.zeros(2)}, tmp_path / "w.safetensors")
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / "w.safetensors")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no statvfs")
@pytest.mark.parametrize(("flag", "reason"), [(0, "Permission denied"), (1, "Read-only file system")])
def test_why_a_folder_may_not_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: int, reason: str
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=flag * os.ST_RDONLY))
    with pytest.raises(UserError, match=reason):
        check_writable(tmp_path / "x.json", "--output")


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


def test_what_a_link_to_a_file_points_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to("real.png")
    (tmp_path / "real.png").write_bytes(b"old")
    write_bytes(tmp_path / "link.png", b"new")
    assert (tmp_path / "link.png").is_symlink() and (tmp_path / "real.png").read_bytes() == b"new"


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

"""Files and folders are complete or absent, whatever comes between."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from smarttrim_cli import tensors
from smarttrim_cli.engine import files
from smarttrim_cli.engine.checkpoint import prune_checkpoints
from smarttrim_cli.engine.files import check_writable, mend_folder, new_folder, remove
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

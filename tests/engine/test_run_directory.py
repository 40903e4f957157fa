from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from smarttrim_cli.engine.build import build
from smarttrim_cli.engine.finetune import finetune
from smarttrim_cli.engine.runs import Run
from smarttrim_cli.errors import UserError
from tests.engine.tiny_run import metrics, tiny_recipe, tree

SHORT = ("train.max_steps=2", "evaluate.max_instances=8")


def test_taken_directory_is_refused_and_overwrite_replaces_it(tmp_path: Path) -> None:
    finetune(tiny_recipe(tmp_path, *SHORT))
    before = tree(tmp_path / "run")
    with pytest.raises(UserError, match="there is a run") as caught:
        finetune(tiny_recipe(tmp_path, *SHORT))
    assert caught.value.exit_code == 2 and "--overwrite" in str(caught.value)
    assert tree(tmp_path / "run") == before
    finetune(tiny_recipe(tmp_path, *SHORT, "seed=1"), overwrite=True)
    after = tree(tmp_path / "run")
    assert after["model/model.safetensors"] != before["model/model.safetensors"]
    assert len(metrics(tmp_path / "run")) == 2  # one of training, one of evaluation: nothing of the old run


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("entries", [("recipe.yaml",), ("recipe.yaml", "config.json", "model.safetensors")])
def test_users_own_recipe_and_model_folders_are_never_replaced(
    entries: tuple[str, ...], overwrite: bool, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    for name in entries:
        (tmp_path / "run" / name).write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match=f"holds other things than a run: {sorted(entries)[0]}"):
        finetune(tiny_recipe(tmp_path, *SHORT), overwrite=overwrite)
    assert all((tmp_path / "run" / name).read_text(encoding="utf-8") == "mine" for name in entries)


def test_overwrite_refuses_what_no_run_has_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(tmp_path, *SHORT)
    finetune(recipe)
    note = tmp_path / "run/notes.txt"
    note.write_text("mine", encoding="utf-8")
    (tmp_path / "run/.model.77.tmp").mkdir()  # of a killed process
    with pytest.raises(UserError, match="holds other things than a run: notes.txt") as caught:
        finetune(recipe, overwrite=True)
    assert note.read_text(encoding="utf-8") == "mine" and (tmp_path / "run/model").is_dir()
    assert caught.value.exit_code == 2
    note.unlink()
    monkeypatch.chdir(tmp_path / "run")
    finetune(tiny_recipe(tmp_path, *SHORT, "output_dir=."), overwrite=True)
    assert (tmp_path / "run/model").is_dir() and not (tmp_path / "run/.model.77.tmp").exists()


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": "auto"}])
def test_directory_with_other_things_is_left_alone(tmp_path: Path, options: dict[str, Any]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(UserError, match="holds other things than a run"):
        finetune(tiny_recipe(tmp_path, *SHORT), **options)
    assert tree(tmp_path / "run") == {"thesis.tex": b"years of work"}


def test_a_mistake_in_the_recipe_does_not_cost_the_old_run(trained: Path, tmp_path: Path) -> None:
    finetune(tiny_recipe(tmp_path, *SHORT))
    before = tree(tmp_path / "run")
    with pytest.raises(UserError, match="no part named 'trimers'") as caught:
        finetune(tiny_recipe(tmp_path, "optimizer.multipliers={trimers: 2}"), overwrite=True)
    assert caught.value.where == "optimizer.multipliers.trimers"
    assert "trimmers" in str(caught.value.hint)
    assert tree(tmp_path / "run") == before


def test_two_processes_in_one_directory(tmp_path: Path) -> None:
    """Neither a new run nor a resumed one; the lock goes with the run."""
    run = Run(tmp_path / "run")
    for options in ({}, {"overwrite": True}, {"resume": "auto"}):
        with run.claimed(), pytest.raises(UserError, match="another process is training there"):
            finetune(tiny_recipe(tmp_path, *SHORT), **options)  # type: ignore[arg-type]
        assert tree(tmp_path / "run") == {}
    finetune(tiny_recipe(tmp_path, *SHORT))
    assert not (tmp_path / "run/.lock").exists()


def test_a_run_that_began_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first look at the directory another process has trained there."""
    recipe = tiny_recipe(tmp_path, *SHORT)

    def build_slowly(*arguments: Any) -> Any:
        monkeypatch.undo()
        finetune(recipe)
        return build(*arguments)

    monkeypatch.setattr("smarttrim_cli.engine.finetune.build", build_slowly)
    with pytest.raises(UserError, match="there is a run in this directory already"):
        finetune(recipe)
    assert (tmp_path / "run/model/config.json").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot lock a folder")
def test_results_of_two_commands_that_end_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None writes the summary while another, which has read it, is about to."""
    import fcntl

    run, taken = Run(tmp_path), []

    def write(path: Path, content: Any) -> None:
        with pytest.raises(BlockingIOError):
            other = os.open(tmp_path, os.O_RDONLY)
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(other)
        taken.append(content)

    monkeypatch.setattr("smarttrim_cli.engine.runs.write_json", write)
    run.merge_summary({"steps": 1})
    assert taken == [{"steps": 1}]
    monkeypatch.undo()
    run.merge_summary({"steps": 2})
    assert run.summary() == {"steps": 2} and [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_resume_or_overwrite(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="contradict each other"):
        finetune(tiny_recipe(tmp_path, *SHORT), resume="auto", overwrite=True)


def test_more_threads_than_torch_could_start(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="threads on") as caught:
        finetune(tiny_recipe(tmp_path, "train.num_threads=99999999"))
    assert caught.value.where == "train.num_threads" and not (tmp_path / "run").exists()


def test_output_dir_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="is a file, not a directory"):
        finetune(tiny_recipe(tmp_path, *SHORT))
    assert (tmp_path / "run").read_text(encoding="utf-8") == "mine"


def test_output_dir_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="is a file, not a folder") as caught:
        finetune(tiny_recipe(tmp_path, f"output_dir={tmp_path / 'file/run'}"))
    assert str(caught.value.where).startswith("output_dir ")


def test_full_disk_leaves_earlier_files_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second checkpoint cannot be written: the first stays, nothing else is left, the file is named."""
    real = os.replace

    def full(source: Any, target: Any) -> None:
        if str(target).endswith("step-4"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError) as caught:
        finetune(tiny_recipe(tmp_path, "train.save_steps=2"))
    assert caught.value.errno == errno.ENOSPC and str(caught.value.filename).endswith("step-4")
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-2"]
    monkeypatch.undo()
    finetune(tiny_recipe(tmp_path, "train.save_steps=2"), resume="auto")
    assert (tmp_path / "run/model/config.json").exists()

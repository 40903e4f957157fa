from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed
from typer.testing import CliRunner

import smarttrim_cli
from smarttrim_cli import registry
from smarttrim_cli.cli.app import app
from smarttrim_cli.cli.console import Console
from smarttrim_cli.engine.stopping import Stopped
from smarttrim_cli.errors import CheckFailed, UserError, naming

Install = Callable[[str, Callable[..., Any]], None]
SUBCOMMANDS = [
    ["finetune"],
    ["evaluate"],
    ["profile"],
    ["visualize"],
    ["export"],
    ["summary"],
    ["recipes", "list"],
    ["recipes", "show"],
    ["recipes", "validate"],
    ["recipes", "schema"],
    ["data", "scenes"],
]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def raising(error: BaseException) -> Callable[..., Any]:
    def function(*_: Any, **__: Any) -> Any:
        raise error

    return function


def caused(error: Exception, cause: Exception) -> Exception:
    error.__context__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (
            UserError("no such run", where="runs/x", hint="list them"),
            2,
            "error: runs/x: no such run\n  list them\n",
        ),
        (CheckFailed("accuracy differs"), 1, "failed: accuracy differs\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/x/model"),
            1,
            "error: the disk is full: runs/x/model\n",
        ),
        (
            RuntimeError("write: No space left on device"),
            1,
            "error: the disk is full: write: No space left on device",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "runs/x"),
            2,
            "error: runs/x: Permission denied\n",
        ),
        (
            caused(
                RuntimeError("unexpected pos 1"), OSError(errno.ENOSPC, "No space left", "runs/x/state.pt")
            ),
            1,
            "error: the disk is full: runs/x/state.pt\n",
        ),
        (OSError(errno.EFBIG, "File too large", "runs/x"), 2, "error: runs/x: File too large\n"),
        (MemoryError(), 1, "failed: there is not enough memory\n  smaller batches"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 3 bytes"),
            1,
            "failed: there is not enough memory\n",
        ),
        (Stopped(15), 143, "interrupted\n"),
        (ValueError("two\nlines"), 1, "internal error: ValueError: two lines\n  please report"),
    ],
)
def test_errors(fake_engine: Install, error: BaseException, code: int, message: str) -> None:
    fake_engine("summary", raising(error))
    result = run("summary")
    assert result.exit_code == code
    assert result.stderr.startswith(message)
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_an_error_in_a_plug_in_is_not_ours(
    fake_engine: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its place is said; where it lacks what is asked of it, the plug-in."""
    file = tmp_path / "plugin_with_a_mistake.py"
    code = "class Options:\n    model_validate = None\n\ndef build():\n    import json\n    json.loads('{')\n"
    file.write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    plugin = registry.load("tasks", "plugin_with_a_mistake:")
    fake_engine("summary", lambda *_, **__: plugin.build())
    result = run("summary")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {file}, line 6: JSONDecodeError: Expecting property name")
    assert "report" not in result.stderr and "Traceback" not in result.stderr
    fake_engine("summary", lambda *_, **__: plugin.Options().answer)
    result = run("summary")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: plug-in plugin_with_a_mistake: AttributeError: 'Options' object")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps a folder that is worked in")
@pytest.mark.parametrize("command", ["summary", "summary -o out.json", "data scenes --out x"])
def test_a_working_folder_that_was_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    result = run(*command.split())
    assert result.exit_code == 2
    assert result.stderr.startswith("error: the working folder cannot be used: No such file")


def test_messages_that_nobody_reads_do_not_end_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    class Closed:
        def write(self, text: str) -> None:
            tried.append(text)
            raise BrokenPipeError

        flush = isatty = lambda self: None

    monkeypatch.setattr(sys, "stderr", Closed())
    console = Console()
    console.message("step 1")
    console.warn("slow")
    with console.track(10, "training") as tracker:
        tracker.update(10)
    assert len(tried) == 3


def test_a_lost_process_is_no_error_of_the_others(fake_engine: Install, tmp_path: Path) -> None:
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:545] Read error: Connection reset by peer")
    fake_engine("summary", raising(lost))
    assert "internal error" in run("summary").stderr  # there are no others
    meeting = f"file://{tmp_path / 'meeting'}"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
    try:
        result = run("summary")
        fake_engine("summary", raising(RuntimeError("of its own")))
        assert "internal error" in run("summary").stderr
    finally:
        torch.distributed.destroy_process_group()
    assert result.exit_code == 1
    assert result.stderr.startswith("failed: another process of this run has ended")


@pytest.mark.parametrize("arguments", [["--debug", "summary"], ["summary", "--debug"]])
@pytest.mark.parametrize(("error", "code"), [(UserError("wrong"), 2), (ValueError("wrong"), 1)])
def test_debug_shows_the_traceback(
    fake_engine: Install, arguments: list[str], error: Exception, code: int
) -> None:
    fake_engine("summary", raising(error))
    result = run(*arguments)
    assert result.exit_code == code
    assert "Traceback (most recent call last)" in result.stderr


def test_full_disk_while_writing_names_the_file() -> None:
    with pytest.raises(OSError, match="model.safetensors"), naming(Path("model.safetensors")):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--nonsense"],
        ["finetun"],
        ["finetune"],
        ["profile", "--num-instances", "0"],
        ["profile", "--threads", "x"],
    ],
)
def test_usage_errors_are_exit_code_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr


@pytest.mark.parametrize("command", [[], *SUBCOMMANDS], ids=" ".join)
def test_common_options_everywhere(command: list[str]) -> None:
    shown = run(*command, "--help")
    assert shown.exit_code == 0
    assert all(option in shown.stdout for option in ("--quiet", "--debug", "--version"))
    assert shown.stdout.isascii() and "\x1b" not in shown.stdout
    version = run(*command, "--version")
    assert (version.exit_code, version.stdout) == (0, f"smarttrim {smarttrim_cli.__version__}\n")


def test_as_a_module_and_without_a_terminal(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "smarttrim_cli", "finetune", "nope"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: nope: no such recipe")
    assert "\x1b" not in result.stderr + result.stdout

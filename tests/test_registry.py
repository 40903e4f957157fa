from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from smarttrim_cli import registry
from smarttrim_cli.errors import UserError
from tests.recipe import example_plugins


def test_names_lists_modules_with_options_only() -> None:
    names = registry.names("trimmers")
    assert "cross_modal" in names
    assert "base" not in names
    assert not any(name.startswith("_") for name in names)


def test_names_imports_nothing_heavy() -> None:
    code = (
        "import sys; from smarttrim_cli.registry import names; names('trimmers'); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_name() -> None:
    with pytest.raises(UserError) as caught:
        registry.load("trimmers", "cros_modal")
    assert "unknown trimmer 'cros_modal'; did you mean cross_modal?" in str(caught.value)
    assert "valid: " in str(caught.value)


def test_outside_code() -> None:
    assert registry.load("trimmers", "tests.recipe.example_plugins:Trimmer") is example_plugins.Trimmer


@pytest.mark.parametrize("name", ["./my_reader.py", "..reader", ".", "my/reader.py", "./x:Reader"])
def test_a_file_is_no_module(name: str) -> None:
    with pytest.raises(registry.PluginError, match="names a file, not a module"):
        registry.load("data", name)


def test_outside_code_that_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_plugin.py").write_text("def read(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(registry.PluginError, match="cannot import .* 'broken_plugin:Reader': SyntaxError"):
        registry.load("data", "broken_plugin:Reader")


def test_outside_code_that_lacks_something() -> None:
    name = "tests.recipe.example_plugins:Task"
    assert registry.load("tasks", name) is example_plugins.Task  # its options are enough for a recipe
    with pytest.raises(registry.PluginError, match="task .* has no FORM, build"):
        registry.load("tasks", name, whole=True)
    with pytest.raises(registry.PluginError, match="Options of task .* is no pydantic model"):
        registry.load("tasks", "tests.recipe.example_plugins:WithPlainOptions")


def test_members_are_those_of_our_own_plug_ins() -> None:
    for kind, members in registry.MEMBERS.items():
        for name in registry.names(kind):
            assert all(hasattr(registry.load(kind, name), member) for member in members), (kind, name)


def test_options_of_a_section() -> None:
    options = registry.options("trimmers", {"name": "tests.recipe.example_plugins:Trimmer", "hidden_dim": 8})
    assert options.hidden_dim == 8
    with pytest.raises(UserError, match="the trimmer needs a name"):
        registry.options("trimmers", {"hidden_dim": 8})


@pytest.mark.parametrize(
    ("name", "nearest"), [("lr", "learning_rate"), ("max_stps", "max_steps"), ("zzz", None)]
)
def test_did_you_mean(name: str, nearest: str | None) -> None:
    assert registry.did_you_mean(name, ["learning_rate", "max_steps", "eps"]) == nearest

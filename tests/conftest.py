"""Fixtures for all tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

RECIPE = """\
output_dir: runs/example
backbone: {name: "tests.recipe.example_plugins:Backbone", width: 32}
task:
  name: tests.recipe.example_plugins:Task
  data: {name: "tests.recipe.example_plugins:Data", images: 10}
pruning:
  target_sparsity:
    token: {vision: 0.5, text: 0.2}
  token_trimmer: {name: "tests.recipe.example_plugins:Trimmer"}
  head_trimmer: null
train: {max_steps: 10}
"""


def pytest_configure(config: pytest.Config) -> None:
    """Where tests run side by side (``pytest -n 2``), every process takes its share of the cores."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        torch.set_num_threads(max((os.cpu_count() or 1) // workers, 1))


@pytest.fixture
def recipe_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A valid recipe, ``r.yaml`` in the current directory."""
    monkeypatch.chdir(tmp_path)
    path = Path("r.yaml")
    path.write_text(RECIPE, encoding="utf-8")
    return path


@pytest.fixture
def fake_engine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replaces a module of the engine by one with a single function of the same name."""

    def install(name: str, function: Callable[..., Any]) -> None:
        monkeypatch.setitem(sys.modules, f"smarttrim_cli.engine.{name}", SimpleNamespace(**{name: function}))

    return install

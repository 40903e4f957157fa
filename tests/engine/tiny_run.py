"""Tiny runs for tests of the engine: a recipe that trains in a second, and one trained run for everybody."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from smarttrim_cli.engine.finetune import finetune
from smarttrim_cli.engine.report import SilentReporter
from smarttrim_cli.recipe import Recipe, load_recipe

RECIPE = """\
output_dir: runs/tiny
backbone:
  name: meter
  image_size: 32
  tokenizer: train
  max_text_length: 20
  initializer_range: 0.1
  vision:
    model: vit_tiny_patch16_224
    args: {patch_size: 8, embed_dim: 32, depth: 2, num_heads: 4}
    initializer_range: 0.1
  text:
    config:
      hidden_size: 32
      num_hidden_layers: 2
      num_attention_heads: 4
      intermediate_size: 64
      max_position_embeddings: 60
      type_vocab_size: 1
      initializer_range: 0.1
      hidden_dropout_prob: 0.1
  hidden_size: 32
  num_attention_heads: 4
  intermediate_size: 64
  num_cross_layers: 1
  dropout: 0.1
task:
  name: vqa
  min_answer_count: 1
  data:
    name: scenes
    image_size: 32
    grid: 2
    cell_size: 16
    object_sizes: [9, 13]
    max_objects: 4
    num_images: {train: 40, calibration: 60, val: 10, test: 30}
pruning:
  target_speedup: 1.5
  token_trimmer: {name: cross_modal, hidden_dim: 8}
  head_trimmer: {name: global_head, hidden_dim: 8}
optimizer: {learning_rate: 1.0e-4, multipliers: {trimmers: 30}}
train: {max_steps: 8, per_device_train_batch_size: 4}
logging: {logging_steps: 2}
"""
_SHARED: dict[str, Path] = {}
"""What is made once in a session."""


class Recorder(SilentReporter):
    """A reporter that remembers what was said."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.warnings: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def recipe_file(folder: Path) -> Path:
    """The tiny recipe as a file; never seen half written, since processes of a test may all write it."""
    path, whole = folder / "tiny.yaml", folder / f"tiny.yaml.{os.getpid()}"
    whole.write_text(RECIPE, encoding="utf-8")
    whole.replace(path)
    return path


def tiny_recipe(folder: Path, *overrides: str) -> Recipe:
    """The tiny recipe with its run in ``folder/run``."""
    return load_recipe(recipe_file(folder), [f"output_dir={folder / 'run'}", *overrides])


@contextlib.contextmanager
def tiny_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Data in a cache of the tests' own, and one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMARTTRIM_CACHE", str(cache_folder(tmp_path_factory)))
        yield
    torch.set_num_threads(threads)


def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the whole session."""
    if "cache" not in _SHARED:
        _SHARED["cache"] = tmp_path_factory.mktemp("cache")
    return _SHARED["cache"]


def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run trained long enough to answer differently from question to question; not to be changed."""
    if "run" not in _SHARED:
        folder = tmp_path_factory.mktemp("trained")
        finetune(tiny_recipe(folder, "train.max_steps=40", "train.eval_steps=20", "train.save_steps=20"))
        _SHARED["run"] = folder / "run"
    return _SHARED["run"]


def metrics(run: Path) -> list[dict[str, Any]]:
    """Logged records, without the time they took."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {os.path.relpath(path, folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module", autouse=True)
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The surroundings of a tiny run, for every test of a folder whose conftest imports this."""
    with tiny_settings(tmp_path_factory):
        yield


@pytest.fixture
def trained(settings: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The session's trained run; not to be changed."""
    return trained_run(tmp_path_factory)

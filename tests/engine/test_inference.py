"""Costs of instances that take several forward passes: an image scored with all texts of a split."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from smarttrim_cli.engine.build import build, plan_for
from smarttrim_cli.engine.data_processes import leave_signals
from smarttrim_cli.engine.inference import batches, predict, summed
from smarttrim_cli.engine.loading import batching
from smarttrim_cli.engine.report import SilentReporter
from smarttrim_cli.engine.scores import score_summary
from smarttrim_cli.engine.sharing import Share
from smarttrim_cli.errors import SmartTrimError
from smarttrim_cli.pruning.cost import instance_macs
from smarttrim_cli.tasks.base import Batch
from tests.engine.test_starting import BLIP
from tests.engine.tiny_run import tiny_recipe

pytestmark = pytest.mark.usefixtures("settings")


def test_sums_by_owner() -> None:
    assert summed([1.0, 2.0, 4.0, 8.0], ["a", "b", "a", "c"]) == [5.0, 2.0, 8.0]


def test_a_batch_is_pinned_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self + 1)
    batch = Batch({"x": torch.zeros(2)}, torch.zeros(2), {"y": torch.zeros(2)}, ["a", "b"]).pin_memory()
    assert all(bool((x == 1).all()) for x in (batch.inputs["x"], batch.instance_ids, batch.targets["y"]))
    assert batch.samples == ["a", "b"]


@torch.no_grad()
def test_an_image_costs_what_all_its_blocks_do(tmp_path: Path) -> None:
    images = "num_images: {train: 6, calibration: 2, val: 2, test: 4}, image_size: 32, grid: 3, cell_size: 10"
    data = f"{{name: scenes, {images}, object_sizes: [7, 9], min_objects: 1, max_objects: 3}}"
    task = f"task={{name: retrieval, block_size: 8, num_false_texts: 3, data: {data}}}"
    bundle = build(tiny_recipe(tmp_path, task, "backbone.max_text_length=30"), lambda text: None)
    bundle.model.eval()
    loader = batches(bundle, "test", 2)
    result = predict(bundle, loader, ("packed",), SilentReporter(), "")["packed"]
    assert len(result.records) == len(result.macs) == len(result.full_macs) == 4
    spent, seen = {image: [0.0, 0.0] for image in range(4)}, []
    for batch in loader:
        forward = bundle.model(batch.inputs, "packed", instance_ids=batch.instance_ids)
        pairs = zip(batch.samples, *instance_macs(bundle.model, forward.decisions), strict=True)
        for block, trimmed, full in pairs:
            spent[block.image][0] += float(trimmed)
            spent[block.image][1] += float(full)
            seen += [(block.image, text) for text in block.texts]
    assert sorted(seen) == [(image, text) for image in range(4) for text in range(20)]  # each pair once
    assert result.macs == pytest.approx([trimmed for trimmed, _ in spent.values()])
    assert result.full_macs == pytest.approx([full for _, full in spent.values()])
    summary = score_summary(bundle.task, result)
    assert summary["gmacs"] == pytest.approx(sum(result.macs) / 4 / 1e9)
    assert summary["scored_pairs"] == 4 * 20
    assert summary["gmacs_per_pair"] == pytest.approx(sum(result.macs) / 80 / 1e9)


@torch.no_grad()
@pytest.mark.parametrize("written", [False, True])
def test_outputs_that_are_no_numbers_have_no_score(tmp_path: Path, written: bool) -> None:
    overrides = (f"backbone={{{BLIP}}}", "task.inference=generate") if written else ()
    bundle = build(tiny_recipe(tmp_path, *overrides), lambda text: None)
    next(parameter for parameter in bundle.model.backbone.parameters() if parameter.ndim > 1).fill_(math.nan)
    loader = batches(bundle, "test", 2)
    ids = [sample.id for sample in bundle.task.samples("test")[:2]]
    with pytest.raises(SmartTrimError, match=f"samples {ids[0]}, {ids[1]}: the model's outputs are not num"):
        predict(bundle, loader, ("full",), SilentReporter(), "")


@torch.no_grad()
@pytest.mark.parametrize("candidates", [3, 128])
def test_ranked_answers_are_planned_as_they_are_ranked(tmp_path: Path, candidates: int) -> None:
    """Not as written ones, whose cost knows nothing of how many candidates there are."""
    section = f"backbone={{{BLIP}}}"
    recipe = tiny_recipe(tmp_path, section, f"task.num_candidates={candidates}")
    bundle = build(recipe, lambda text: None)
    planned = sum(plan_for(recipe, bundle).full_macs.values())
    result = predict(bundle, batches(bundle, "test", 10), ("packed",), SilentReporter(), "")["packed"]
    assert planned == pytest.approx(sum(result.full_macs) / len(result.full_macs), rel=0.02)
    written = build(tiny_recipe(tmp_path, section, "task.inference=generate"), lambda text: None)
    assert written.model.backbone.form.candidate_tokens == 0


@pytest.mark.parametrize("size", [1, 2, 3, 16])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_batches_of_one_width_keep_the_order_of_images(processes: int, size: int) -> None:
    """Five images in blocks of 7, 7 and 6 texts; a process may start in the middle of one."""

    class Blocks(Dataset[int]):
        def __len__(self) -> int:
            return 15

        def width(self, index: int) -> int:
            return 6 if index % 3 == 2 else 7

    found: list[list[int]] = []
    for rank in range(processes):
        part: Any = Share(rank, processes, torch.device("cpu")).part(Blocks())
        sampler = batching(part, size)["batch_sampler"]
        indices = part.indices if processes > 1 else range(15)
        own = [[indices[place] for place in batch] for batch in sampler]
        assert len(own) == len(sampler) and max(map(len, own)) <= size
        found += own
    assert all(len({index % 3 == 2 for index in batch}) == 1 for batch in found)
    assert sorted(index for batch in found for index in batch) == list(range(15))
    images = list(dict.fromkeys(index // 3 for batch in found for index in batch))
    assert images == sorted(images)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs signals to processes")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_data_process_outlives_a_signal_to_all(tmp_path: Path, name: str) -> None:
    """Such as Ctrl-C in a terminal: the training that gets it, too, needs the batch."""
    bundle = build(tiny_recipe(tmp_path), lambda text: None)
    loader, count = batches(bundle, "test", 2, workers=1), 0
    for count, _ in enumerate(loader, start=1):
        if count == 1:
            (worker,) = multiprocessing.active_children()
            assert worker.pid is not None
            os.kill(worker.pid, getattr(signal, name))
    assert count == len(loader)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs signals to processes")
def test_a_second_sigterm_ends_a_data_process() -> None:
    """As DataLoader wants of one that hangs."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_waits, args=(ready,), daemon=True)
    process.start()
    assert ready.wait(60)
    process.terminate()
    process.join(0.5)
    assert process.is_alive()
    for _ in range(60):  # two that arrive at once are one
        process.terminate()
        process.join(1)
        if not process.is_alive():
            break
    assert process.exitcode == -signal.SIGTERM


def _waits(ready: Any) -> None:
    leave_signals(0)
    ready.set()
    while True:
        time.sleep(60)


@pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="needs signals of child processes")
@pytest.mark.parametrize("waiting", [True, False], ids=["while waiting for it", "amid other work"])
def test_a_killed_data_process_is_named(tmp_path: Path, waiting: bool) -> None:
    """Torch notices it at the next batch, or by a signal at whatever is done meanwhile."""
    bundle = build(tiny_recipe(tmp_path), lambda text: None)
    loader = batches(bundle, "test", 2, workers=1)
    with pytest.raises(SmartTrimError, match="a process that loads data was killed") as error:
        for _ in loader:
            (worker,) = multiprocessing.active_children()
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            if not waiting:
                time.sleep(60)
    assert error.value.exit_code == 1 and "train.dataloader_num_workers" in str(error.value.hint)

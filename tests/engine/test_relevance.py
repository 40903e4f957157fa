from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from smarttrim_cli.data.samples import EntailmentSample, StatementSample, VqaSample
from smarttrim_cli.data.scenes import read_truth
from smarttrim_cli.data.scenes.truth import SceneTruth
from smarttrim_cli.engine.artifact import load_model
from smarttrim_cli.engine.evaluate import evaluate
from smarttrim_cli.engine.finetune import finetune
from smarttrim_cli.engine.inference import Predictions, batches
from smarttrim_cli.engine.relevance import TruthLog, covered, image_ids, watch
from smarttrim_cli.pruning.decision_log import DecisionLog
from smarttrim_cli.pruning.stream import MaskedStream
from smarttrim_cli.tasks.base import Batch
from tests.engine.tiny_run import tiny_recipe

LAYERS = {"vision.0", "vision.1", "vision.2"}  # two of the vision encoder, one of co-attention


def painted(boxes: list[tuple[int, int, int, int]], grid: int, side: int) -> np.ndarray:
    """Patches with at least four pixels of one box, pixel by pixel."""
    patch, found = side // grid, np.zeros((grid, grid), dtype=bool)
    for x, y, width, height in boxes:
        canvas = np.zeros((side, side))
        canvas[y : y + height, x : x + width] = 1
        found |= canvas.reshape(grid, patch, grid, patch).sum((1, 3)) >= 4
    return found.ravel()


def test_patches_that_boxes_cover() -> None:
    boxes = [(1, 1, 8, 6), (10, 0, 6, 10), (16, 16, 1, 3)]  # the last has three pixels
    assert covered(boxes, 3, 24).tolist() == painted(boxes, 3, 24).tolist()
    assert covered(boxes, 3, 24).nonzero()[0].tolist() == [0, 1, 4]
    assert not covered([], 3, 24).any()


def test_patches_of_a_model_that_sees_the_scene_smaller() -> None:
    """Three patches over 16 pixels, 5 1/3 each: 1 1/3 columns of the box are in patch 0, 2/3 in patch 1."""
    assert covered([(4, 0, 2, 4)], 3, 16).nonzero()[0].tolist() == [0]
    assert covered([(4, 0, 2, 4)], 2, 16).nonzero()[0].tolist() == [0]


def test_images_as_the_truth_names_them() -> None:
    path = Path("x")
    assert image_ids(VqaSample(1, (path,), "q", image_id=7)) == [7]
    pair = (path / "val-0-1-img0.png", path / "val-0-1-img1.png")
    assert image_ids(StatementSample(1, pair, "s")) == ["val-0-1-img0", "val-0-1-img1"]
    assert image_ids(EntailmentSample(1, (path / "3000001.png",), "h")) == [3000001]


def test_shares_are_those_of_every_instance_alone(trained: Path) -> None:
    report = evaluate(str(trained), split="test")
    assert set(report["relevance"]) == LAYERS
    bundle = load_model(trained / "model")
    task: Any = bundle.task
    truth = read_truth(task.folder, "test")
    shares: dict[tuple[str, str], list[float]] = {}
    shown: dict[str, list[float]] = {"relevant": [], "other": [], "background": []}
    with torch.no_grad():
        for batch in batches(bundle, "test", 1):
            keep = bundle.model(batch.inputs, "packed", instance_ids=batch.instance_ids).decisions.keep
            (sample,) = batch.samples
            asked = painted([box for _, box in truth.boxes[sample.id]], 4, 32)
            objects = painted([item.box for item in truth.objects[sample.image_id]], 4, 32)
            kinds = {"relevant": asked, "other": objects & ~asked, "background": ~objects & ~asked}
            for kind, mask in kinds.items():
                shown[kind].append(mask.mean())
                for layer in LAYERS if mask.any() else ():
                    kept = keep[f"{layer}.token"][0, 1:].numpy()
                    shares.setdefault((layer, kind), []).append(kept[mask].mean())
    assert len(shares) == 9
    for (layer, kind), values in shares.items():
        assert report["relevance"][layer][kind] == pytest.approx(sum(values) / len(values), abs=1e-5)
    for kind, values in shown.items():
        assert report["relevance_patches"][kind] == pytest.approx(sum(values) / len(values), abs=1e-5)
    assert any(0 < share < 1 for kinds in report["relevance"].values() for share in kinds.values())


def test_difficulty_correlates_costs_with_objects_and_steps(trained: Path) -> None:
    report = evaluate(str(trained), split="test")
    difficulty = report["difficulty"]
    assert set(difficulty) == {"objects", "steps"}
    for costs in difficulty.values():
        assert set(costs) == {"macs", "share"}
        for found in costs.values():
            assert -1 <= found["low"] <= found["rho"] <= found["high"] <= 1
            assert found["count"] == report["count"]


def test_a_log_of_costs_made_up(trained: Path) -> None:
    """Costs that grow with the number of objects: a rank correlation of one."""
    bundle = load_model(trained / "model")
    log = watch(bundle, "test")
    assert isinstance(log, TruthLog)
    with torch.no_grad():
        for batch in batches(bundle, "test", 40):
            forward = bundle.model(batch.inputs, "packed", instance_ids=batch.instance_ids)
            assert forward.context is not None
            log.add(batch, forward.context)
    count = len(log.objects)
    costs = [float(objects) for objects in log.objects]
    found = log.report(Predictions(records=[{}] * count, macs=costs, full_macs=[8.0] * count))
    assert found["difficulty"]["objects"]["macs"]["rho"] == pytest.approx(1)
    assert found["difficulty"]["objects"]["share"]["rho"] == pytest.approx(1)
    types = [sample.question_type for sample in bundle.task.samples("test")]  # type: ignore[attr-defined]
    named = {"existence": 1, "attribute": 2, "count": 2, "relation": 3, "comparison": 3}
    assert log.steps == [named[name] for name in types]


def test_what_a_statement_is_about_in_its_second_image() -> None:
    """Its first image shows it in the first patch, its second one in the last; all have four."""
    corners = {"left": (0, 0, 8, 8), "right": (8, 8, 8, 8)}
    objects = {
        image: tuple(SimpleNamespace(box=box) for box in ((8, 0, 8, 8), corners[image])) for image in corners
    }
    boxes, second = ({1: (("subject", box),)} for box in corners.values())
    log = TruthLog(SceneTruth(objects, boxes, second), 16)  # type: ignore[arg-type]
    keep = torch.tensor([[1.0, 1, 0, 0, 0], [1, 0, 0, 1, 1]])  # behind CLS: the first; the last two
    stream = MaskedStream(torch.ones_like(keep, dtype=torch.bool), keep)
    batch = Batch({}, torch.tensor([0]), {}, [StatementSample(1, (Path("left.png"), Path("right.png")), "s")])
    log.add(batch, SimpleNamespace(log=DecisionLog(tokens={"vision.0.token": stream})))  # type: ignore[arg-type]
    found = log.report(Predictions())
    assert found["relevance"] == {"vision.0": {"relevant": 1.0, "other": 0.0, "background": 0.25}}
    assert found["relevance_patches"] == {"relevant": 0.25, "other": 0.25, "background": 0.5}


def test_two_images_of_a_statement(tmp_path: Path) -> None:
    recipe = tiny_recipe(
        tmp_path,
        "task={name: nlvr2, data: {name: scenes, image_size: 32, grid: 2, cell_size: 16, "
        "object_sizes: [9, 13], max_objects: 4, min_objects: 2, nlvr2: {statements_per_set: 2}, "
        "num_images: {train: 16, calibration: 8, val: 8, test: 16}}}",
        "train.max_steps=2",
    )
    finetune(recipe)
    report = evaluate(str(tmp_path / "run"))
    assert set(report["relevance"]) == LAYERS
    assert math.isclose(sum(report["relevance_patches"].values()), 1, rel_tol=1e-5)
    assert report["difficulty"]["objects"]["macs"]["count"] == report["count"] == 16


def test_more_objects_than_in_training(trained: Path) -> None:
    """The crowded split belongs to the options: naming it for an evaluation is enough."""
    report = evaluate(
        str(trained),
        split="crowded",
        overrides=[
            "task.data.crowded={min_objects: 4, max_objects: 4}",
            "task.data.num_images.crowded=6",
        ],
    )
    assert (report["split"], report["count"]) == ("crowded", 24)
    assert "objects" not in report["difficulty"]  # all have four


def test_data_without_truth_have_none(trained: Path) -> None:
    bundle = load_model(trained / "model")
    assert watch(bundle, "test") is not None
    bundle.task.folder = None  # type: ignore[attr-defined]
    assert watch(bundle, "test") is None

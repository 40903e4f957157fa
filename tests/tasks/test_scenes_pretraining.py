"""Ground truth laid over patches, against scenes made by hand; and a short training."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from smarttrim_cli.data.scenes.options import PALETTE, SHAPES, SIZES
from smarttrim_cli.data.scenes.world import SceneObject
from smarttrim_cli.engine.build import build as engine_build
from smarttrim_cli.engine.finetune import finetune
from smarttrim_cli.errors import UserError
from smarttrim_cli.tasks._scenes_truth import (
    PatchLosses,
    anchor_side,
    neighbours,
    overlaps,
    patch_attributes,
    role_patches,
)
from smarttrim_cli.tasks.scenes_pretraining import Options, build
from tests.engine.tiny_run import metrics, tiny_recipe

RED, BLUE = list(PALETTE).index("red") + 1, list(PALETTE).index("blue") + 1
CIRCLE, CROSS = SHAPES.index("circle") + 1, SHAPES.index("cross") + 1
SMALL, LARGE = SIZES.index("small") + 1, SIZES.index("large") + 1


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 0, 8, 8), [(0, 64)]),
        ((6, 2, 4, 3), [(0, 6), (1, 6)]),
        ((6, 7, 4, 2), [(0, 2), (1, 2), (3, 2), (4, 2)]),
        ((8, 8, 16, 8), [(4, 64), (5, 64)]),
        ((20, 20, 10, 10), [(8, 16)]),  # beyond the edge of the 24 x 24 image
    ],
)
def test_overlaps_count_pixels(box: tuple[int, int, int, int], expected: list[tuple[int, int]]) -> None:
    assert overlaps(box, grid=3, patch=8) == expected


def test_patch_belongs_to_the_object_that_covers_most_of_it() -> None:
    objects = [
        SceneObject("circle", "red", "small", 0, 0, (1, 1, 8, 6)),  # 7 columns in patch 0, one in patch 1
        SceneObject("cross", "blue", "large", 0, 1, (10, 0, 6, 10)),  # patch 1 and, two rows, patch 4
    ]
    attributes = patch_attributes(objects, grid=3, patch=8)
    assert attributes.shape == (9, 6)
    assert attributes[0].tolist() == [RED, CIRCLE, SMALL, 1, 1, 0]
    assert attributes[1].tolist() == attributes[4].tolist() == [BLUE, CROSS, LARGE, 1, 2, 0]
    assert attributes[[2, 3, 5, 6, 7, 8]].sum() == 0
    assert torch.equal(patch_attributes(objects[::-1], grid=3, patch=8), attributes)


def test_medium_objects_have_no_size_class() -> None:
    (one,) = patch_attributes([SceneObject("circle", "red", "medium", 0, 0, (0, 0, 8, 8))], grid=1, patch=8)
    assert one.tolist() == [RED, CIRCLE, 0, 1, 1, 0]


def test_ground_is_an_attribute_where_it_is_named() -> None:
    item = SceneObject("circle", "red", "medium", 0, 0, (0, 0, 8, 8), "dots")
    (one,) = patch_attributes([item], grid=1, patch=8)
    assert one.tolist() == [RED, CIRCLE, 0, 1, 1, 6]  # the sixth of the grounds
    assert PatchLosses(4, 1, 1, 0.5).attributes.out_features == 10 + 6 + 3 + 2 + 2
    assert PatchLosses(4, 1, 1, 0.5, grounds=True).attributes.out_features == 10 + 6 + 3 + 2 + 2 + 7


def test_roles_mark_patches_with_enough_of_the_box() -> None:
    boxes = [("target", (0, 0, 8, 8)), ("anchor", (7, 8, 8, 8)), ("second", (16, 16, 1, 3))]
    marks = role_patches(boxes, grid=3, patch=8)
    assert marks[:, 0].nonzero().flatten().tolist() == [0]
    assert marks[:, 1].nonzero().flatten().tolist() == [3, 4]  # 8 and 56 pixels; three are too few
    assert role_patches([], grid=3, patch=8).sum() == 0


@pytest.mark.parametrize(
    ("question", "side"),
    [
        ("what color is the object just left of the red circle?", 1),
        ("what color is the object just right of the red circle?", 0),
        ("what shape is the object just above the red circle?", 3),
        ("what shape is the object just below the red circle?", 2),
        ("how many red circles are there?", -1),
    ],
)
def test_anchor_lies_on_the_opposite_side(question: str, side: int) -> None:
    assert anchor_side(question) == side


def test_neighbours_left_right_above_below() -> None:
    """Patches numbered 1 to 9, row by row."""
    patches = torch.arange(1, 10).view(1, 9, 1).expand(-1, -1, 5)
    left, right, above, below = neighbours(patches, grid=3)[..., 0].tolist()
    assert left == [[0, 1, 2, 0, 4, 5, 0, 7, 8]]
    assert right == [[2, 3, 0, 5, 6, 0, 8, 9, 0]]
    assert above == [[0, 0, 0, 1, 2, 3, 4, 5, 6]]
    assert below == [[4, 5, 6, 7, 8, 9, 0, 0, 0]]


def test_anchor_and_neighbours_agree() -> None:
    """The object just left of the anchor has the anchor at its right, which is side 1 of ``neighbours``."""
    objects = [
        SceneObject("circle", "red", "small", 0, 0, (0, 0, 8, 8)),
        SceneObject("cross", "blue", "small", 0, 1, (8, 0, 8, 8)),
    ]
    around = neighbours(patch_attributes(objects, grid=2, patch=8)[None], grid=2)
    side = anchor_side("what color is the object just left of the blue cross?")
    assert around[side, 0, 0].tolist() == [BLUE, CROSS, SMALL, 1, 2, 0]


def test_needs_scenes() -> None:
    with pytest.raises(UserError, match="needs the ground truth of the scenes"):
        build(Options(data={"name": "vqa_v2", "data_dir": "x"}), print, "classifies")


def test_needs_a_backbone_that_answers() -> None:
    with pytest.raises(UserError, match="cannot use a backbone that matches"):
        build(Options(data={"name": "scenes"}), print, "matches")


_SIZES = "hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 2"
BLIP = (
    "backbone={name: blip, tokenizer: train, image_size: 32, max_text_length: 20, "
    f"vision: {{config: {{patch_size: 8, {_SIZES}}}}}, "
    f"text: {{config: {{max_position_embeddings: 30, {_SIZES}}}}}}}"
)


def test_blip_learns_where_to_look(tmp_path: Path) -> None:
    """Its losses are computed where its modalities meet, and fall."""
    recipe = tiny_recipe(
        tmp_path,
        BLIP,
        "task.name=scenes_pretraining",
        "task.inference=generate",
        "task.vision_share=0.0",
        "task.answers_only_share=0.0",
        "pruning=null",
        "train.max_steps=60",
        "logging.logging_steps=5",
        "optimizer={learning_rate: 1.0e-3}",
    )
    finetune(recipe)
    rows = [row for row in metrics(tmp_path / "run") if "grounding" in row]
    for name in ("task", "grounding", "alignment"):
        assert rows[-1][name] < rows[0][name], name


def test_losses_are_finite_and_fall(tmp_path: Path) -> None:
    """First the vision encoder alone, then everything; the grounding loss goes on until nearly the end."""
    finetune(
        tiny_recipe(
            tmp_path,
            "task.name=scenes_pretraining",
            "task.vision_share=0.3",
            "pruning=null",
            "optimizer.learning_rate=3e-3",
            "train.max_steps=30",
            "train.per_device_train_batch_size=8",
            "logging.logging_steps=3",
        )
    )
    records = metrics(tmp_path / "run")
    assert "accuracy" in records.pop()["eval"]
    assert all(math.isfinite(value) for record in records for value in record.values())
    assert [set(record) & {"task", "grounding", "alignment"} for record in records[:3]] == [set()] * 3
    assert all({"task", "grounding", "alignment", "patches"} <= set(record) for record in records[3:])
    assert records[-1]["patches"] < 0.9 * records[0]["patches"]
    assert records[-1]["task"] < 0.9 * records[3]["task"]


def test_batch_without_an_attribute_word(tmp_path: Path) -> None:
    """The mean over no words used to be nan."""
    recipe = tiny_recipe(tmp_path, "task.name=scenes_pretraining", "pruning=null")
    bundle = engine_build(recipe, print)
    losses = bundle.task.auxiliary(bundle.model.backbone, bundle.processor)
    assert losses is not None
    items = bundle.task.dataset("train", bundle.processor, training=True)
    batch = bundle.task.collate([items[0]], bundle.processor, True)
    batch.inputs["input_ids"][:, 1:-1] = bundle.processor.tokenizer.unk_token_id
    terms = losses(batch, 0.5)
    assert float(terms["alignment"]) == 0 and bool(torch.isfinite(terms["loss"]))

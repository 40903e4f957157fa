from __future__ import annotations

import random

import numpy as np
import pytest
from pydantic import ValidationError

from smarttrim_cli.data.scenes.options import PALETTE, SHAPES, Options
from smarttrim_cli.data.scenes.render import render, shape_mask
from smarttrim_cli.data.scenes.world import Scene, sample_scene
from smarttrim_cli.data.scenes.write_vqa import make_example
from smarttrim_cli.errors import UserError

DENSE = Options(
    image_size=80,
    grid=8,
    cell_size=10,
    min_objects=61,
    max_objects=61,
    object_sizes=(8,),
    colors=("red", "green", "blue", "yellow", "purple", "cyan", "orange", "pink"),
    background={"kind": "tiles", "tiles": 6, "noise": 5},
    max_count=4,
    question_weights={"relation": 0, "comparison": 0},
)


def scenes(options: Options, number: int = 40) -> list[Scene]:
    return [sample_scene(random.Random(seed), options) for seed in range(number)]


@pytest.mark.parametrize("options", [Options(), DENSE], ids=["default", "dense"])
def test_objects_stay_in_their_cells(options: Options) -> None:
    for scene in scenes(options):
        places = [(item.row, item.col) for item in scene.objects]
        assert len(set(places)) == len(places)
        assert options.min_objects <= len(places) <= options.max_objects
        for item in scene.objects:
            x, y, width, height = item.box
            assert width == height
            assert item.col * options.cell_size <= x <= (item.col + 1) * options.cell_size - width
            assert item.row * options.cell_size <= y <= (item.row + 1) * options.cell_size - height


def test_number_of_objects_is_spread() -> None:
    numbers = [len(scene.objects) for scene in scenes(Options(), 400)]
    assert set(numbers) == set(range(3, 13))


def test_sizes_are_those_of_the_options() -> None:
    sizes = {(item.size, item.box[2]) for scene in scenes(Options()) for item in scene.objects}
    assert sizes == {("small", 7), ("large", 11)}


def test_objects_are_drawn_in_their_color_where_their_box_is() -> None:
    options = Options(background={"noise": 0})
    for scene in scenes(options):
        pixels = np.asarray(render(scene))
        assert pixels.shape == (48, 48, 3)
        for item in scene.objects:
            x, y, side, _ = item.box
            inside = (pixels[y : y + side, x : x + side] == PALETTE[item.color]).all(axis=2)
            np.testing.assert_array_equal(inside, shape_mask(item.shape, side))
            assert inside[side // 2, side // 2]


def test_background_is_grey_and_darker_than_objects() -> None:
    scene = scenes(Options(background={"noise": 0}))[0]
    pixels = np.asarray(render(scene)).astype(int)
    free = np.ones((48, 48), dtype=bool)
    for item in scene.objects:
        x, y, side, _ = item.box
        free[y : y + side, x : x + side] = False
    assert (pixels[free].max(axis=1) == pixels[free].min(axis=1)).all()
    assert pixels[free].max() <= 140


@pytest.mark.parametrize("side", [7, 8, 11])
def test_shapes_differ_and_fill_their_box(side: int) -> None:
    masks = [shape_mask(shape, side) for shape in SHAPES]
    assert len({mask.tobytes() for mask in masks}) == len(SHAPES)
    for mask in masks:
        assert mask.any(axis=0).all()
        assert mask.any(axis=1).all()


def test_dense_scenes_have_tiles_and_questions() -> None:
    scene, questions = make_example(DENSE, "train", 0)
    assert render(scene).size == (80, 80)
    assert len(set(scene.background.tiles)) == 6
    assert len(questions) == 4
    assert not any("small" in question.text or "size" in question.text for question in questions)


def test_an_example_depends_on_seed_split_and_index_only() -> None:
    few, many = Options(num_images={"train": 5}), Options(num_images={"train": 50, "test": 7})
    for index in range(3):
        assert make_example(few, "train", index) == make_example(many, "train", index)
    examples = [
        make_example(Options(), "train", 0),
        make_example(Options(), "train", 1),
        make_example(Options(), "test", 0),
        make_example(Options(seed=1), "train", 0),
    ]
    assert len({str(example) for example in examples}) == 4


def test_first_example_is_pinned() -> None:
    """Fails if the generator changes: then raise GENERATOR_VERSION, and update these values."""
    scene, questions = make_example(Options(), "train", 0)
    assert len(scene.objects) == 7
    assert [(question.text, question.answer) for question in questions] == [
        ("is there a square?", "no"),
        ("are there more crosses than diamonds?", "no"),
        ("what shape is the large yellow object?", "triangle"),
        ("what shape is the small orange object?", "cross"),
    ]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"min_objects": 9, "max_objects": 4}, "min_objects <= max_objects"),
        ({"max_objects": 17}, "16"),
        ({"cell_size": 13}, "image_size"),
        ({"object_sizes": (7, 13)}, "object_sizes"),
        ({"object_sizes": (11, 7)}, "small one first"),
        ({"colors": ("red", "mauve")}, "mauve not known"),
        ({"shapes": ("circle", "circle")}, "twice"),
        ({"min_objects": 1, "max_objects": 1}, "relation and comparison"),
        (
            {
                "question_weights": dict.fromkeys(
                    ["attribute", "existence", "count", "relation", "comparison"], 0
                )
            },
            "0",
        ),
        ({"num_imags": {}}, "num_imags"),
        ({"num_images": {"train": 0}}, "greater than or equal to 1"),
    ],
)
def test_impossible_options_are_refused(changes: dict[str, object], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        Options.model_validate(changes)


def test_too_many_questions_for_the_scenes_is_an_error() -> None:
    only_attributes = {"existence": 0, "count": 0, "relation": 0, "comparison": 0}
    options = Options(min_objects=1, max_objects=1, questions_per_image=20, question_weights=only_attributes)
    with pytest.raises(UserError, match="do not allow 20 different questions"):
        make_example(options, "train", 0)

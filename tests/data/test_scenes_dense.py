"""Scenes with an object in nearly every cell: what is behind an object is named; and the crowded split."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from smarttrim_cli.data import scenes
from smarttrim_cli.data.scenes import Options, open_or_build, read_truth
from smarttrim_cli.data.scenes.describe import Description
from smarttrim_cli.data.scenes.layouts import LAYOUTS
from smarttrim_cli.data.scenes.options import GROUNDS, SHAPES
from smarttrim_cli.data.scenes.write_vqa import make_example
from smarttrim_cli.errors import UserError

DENSE: dict[str, Any] = {
    **{"image_size": 80, "grid": 8, "cell_size": 10, "object_sizes": [7], "jitter": 0},
    **{"min_objects": 60, "max_objects": 64, "max_count": 4},
    **{"background": {"kind": "tiles", "tiles": 6}, "name_grounds": True},
    "colors": ["red", "green", "blue", "yellow", "purple", "cyan", "orange", "pink"],
    "question_weights": {"attribute": 2, "relation": 0, "comparison": 0},
}
FEW = {"train": 2, "calibration": 1, "val": 1, "test": 2, "crowded": 3}
CROWDED = {"min_objects": 9, "max_objects": 12}


def quiet(line: str) -> None:
    pass


def fitting(scene: Any, phrase: str) -> list[Any]:
    """Objects that a phrase fits, from its words and the textures that were drawn."""
    noun, _, ground = phrase.partition(" on ")
    words = [
        "cross" if word == "crosses" else word if word == "cross" else word.removesuffix("s")
        for word in noun.split()
    ]
    found = []
    for item in scene.objects:
        behind = GROUNDS[scene.background.tiles[item.row * 8 + item.col]]
        if ground in ("", behind) and all(word in (item.color, item.shape, "object") for word in words):
            found.append((item, behind))
    return found


def answer(scene: Any, text: str) -> str:
    if found := re.fullmatch(r"what is behind the (.+)\?", text):
        ((_, behind),) = fitting(scene, found[1])
        return behind
    if found := re.fullmatch(r"what (color|shape) is the (.+)\?", text):
        ((item, _),) = fitting(scene, found[2])
        return str(getattr(item, found[1]))
    if found := re.fullmatch(r"is there an? (.+)\?", text):
        return "yes" if fitting(scene, found[1]) else "no"
    found = re.fullmatch(r"how many (.+) are there\?", text)
    assert found, text
    return str(len(fitting(scene, found[1])))


def test_questions_about_dense_scenes_are_right_and_about_few_objects() -> None:
    options = Options.model_validate(DENSE)
    kinds, roles, asked_answers = set(), [], []
    for index in range(120):
        scene, questions = make_example(options, "train", index)
        assert 60 <= len(scene.objects) <= 64
        for question in questions:
            assert answer(scene, question.text) == question.answer, question.text
            kinds.add(question.type)
            roles.append(len(question.roles))
            if question.type == "attribute":
                asked_answers.append(question.answer)
                assert len(question.roles) == 1
    assert kinds == {"attribute", "existence", "count"}
    assert {*SHAPES, *GROUNDS} <= set(asked_answers)
    assert 1.0 < sum(roles) / len(roles) < 2.5  # of 64 patches: 2 to 4 %
    most = max(asked_answers.count(one) for one in set(asked_answers))
    assert most < 0.15 * len(asked_answers)


def test_phrases_with_what_is_behind() -> None:
    circle = Description(color="red", shape="circle", ground="dots")
    assert (circle.singular(), circle.plural()) == ("red circle on dots", "red circles on dots")
    assert Description(shape="cross", ground="bars").plural() == "crosses on bars"
    assert Description(ground="slate").with_article() == "an object on slate"


def test_grounds_stay_unsaid_unless_asked_for() -> None:
    scene, questions = make_example(Options.model_validate({**DENSE, "name_grounds": False}), "train", 0)
    assert all(item.ground is None for item in scene.objects)
    assert not any(name in question.text for question in questions for name in GROUNDS)


@pytest.mark.parametrize("background", [{}, {"kind": "tiles", "tiles": 1}])
def test_grounds_need_tiles(background: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="name_grounds needs"):
        Options(name_grounds=True, background=background)


def test_truth_has_the_grounds(tmp_path: Path) -> None:
    folder = open_or_build(Options.model_validate({**DENSE, "num_images": FEW}), tmp_path, quiet)
    truth = read_truth(folder, "train")
    assert {item.ground for items in truth.objects.values() for item in items} == set(GROUNDS)
    assert set(truth.types.values()) <= {"attribute", "existence", "count"}
    assert set(truth.types) == set(truth.boxes)


@pytest.mark.parametrize("task", ["vqa", "nlvr2", "snli_ve", "captioning"])
def test_crowded_split_has_more_objects(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTTRIM_CACHE", str(tmp_path))
    options = Options(num_images=FEW, max_objects=6, crowded=CROWDED)
    assert scenes.splits(options, task) == ["train", "calibration", "val", "test", "crowded"]
    samples = scenes.read(options, task, "crowded", labelled=True, log=quiet)
    folder = scenes.locate(options, quiet, task)
    numbers = {
        split: [len(items) for items in read_truth(folder, split).objects.values()]
        for split in ("test", "crowded")
    }
    assert len(numbers["crowded"]) == (8 if task == "nlvr2" else 3)
    assert min(numbers["crowded"]) >= 9 > 6 >= max(numbers["test"])
    assert all(image.is_file() for sample in samples for image in sample.images)
    assert json.loads((folder / "manifest.json").read_text())["counts"].keys() >= {"crowded", "test"}
    assert open_or_build(options, log=pytest.fail, task=task) == folder  # found whole again


def test_other_splits_do_not_change_with_it(tmp_path: Path) -> None:
    without, with_it = (
        open_or_build(Options(num_images=FEW, crowded=crowded), tmp_path, quiet)
        for crowded in (None, CROWDED)
    )
    assert without != with_it and not (without / "crowded").exists()
    for path in without.rglob("*.*"):
        if path.name != "manifest.json":
            assert (with_it / path.relative_to(without)).read_bytes() == path.read_bytes()
    ids = [set(read_truth(with_it, split).objects) for split in ("train", "test", "crowded")]
    assert not ids[0] & ids[2] and not ids[1] & ids[2]


def test_there_is_no_crowded_split_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTTRIM_CACHE", str(tmp_path))
    assert "crowded" not in scenes.splits(Options(), "vqa")
    with pytest.raises(UserError, match="crowded"):
        scenes.read(Options(num_images=FEW), "vqa", "crowded", labelled=True, log=quiet)
    assert LAYOUTS["vqa"].total_images(Options(num_images=FEW)) == 6
    assert LAYOUTS["vqa"].total_images(Options(num_images=FEW, crowded=CROWDED)) == 9


def test_crowded_scenes_have_to_be_possible() -> None:
    with pytest.raises(ValidationError, match="crowded: min_objects <= max_objects"):
        Options(crowded={"min_objects": 10, "max_objects": 17})

"""Captions of scenes: true of their own scene by a second reading, and hardly ever of another one."""

from __future__ import annotations

import pytest

from smarttrim_cli.data.scenes.options import Options
from smarttrim_cli.data.scenes.world import Scene
from smarttrim_cli.data.scenes.write_captions import make_examples
from smarttrim_cli.errors import UserError
from tests.data.scene_language import SIDES, caption_truth, parts

FEW = Options(min_objects=2, max_objects=4)
Made = list[tuple[Scene, list[str]]]


@pytest.fixture(scope="module")
def made() -> Made:
    return list(make_examples(FEW, "test", 300))


def test_captions_are_true(made: Made) -> None:
    for scene, captions in made:
        for caption in captions:
            assert caption_truth(scene.objects, caption), caption


def test_captions_are_true_of_scenes_with_many_objects_too() -> None:
    for scene, captions in make_examples(Options(), "test", 40):
        assert all(caption_truth(scene.objects, caption) for caption in captions)
        assert all(len(parts(caption)) <= 4 for caption in captions)


def test_captions_of_few_objects_name_them_all(made: Made) -> None:
    for scene, captions in made:
        looks = len({(item.size, item.color, item.shape) for item in scene.objects})
        assert all(len(parts(caption)) == looks for caption in captions)


def test_captions_tell_images_apart(made: Made) -> None:
    """All sets of captions differ, and few captions are true of another image as well."""
    assert len({frozenset(captions) for _, captions in made}) == 300
    looks = {tuple(sorted((i.size, i.color, i.shape) for i in scene.objects)) for scene, _ in made}
    assert len(looks) == 300
    others = [
        sum(caption_truth(other.objects, caption) for other, _ in made) - 1
        for _, captions in made[::6]
        for caption in captions
    ]
    assert sum(others) / len(others) < 0.1


def test_captions_of_an_image_differ_in_order_and_parts(made: Made) -> None:
    assert all(len(set(captions)) == 5 for _, captions in made)
    texts = [caption for _, captions in made for caption in captions]
    placed = [text for text in texts if any(f" {words} " in text for words in SIDES.split("|"))]
    assert 0.3 < len(placed) / len(texts) < 0.8
    assert any("objects: " in text for text in texts)


def test_language_is_small(made: Made) -> None:
    texts = [caption.replace(",", " ,").replace(":", " :").split() for _, found in made for caption in found]
    assert max(map(len, texts)) <= 23
    assert len({word for words in texts for word in words}) <= 50


def test_the_first_images_do_not_depend_on_how_many_follow(made: Made) -> None:
    assert [captions for _, captions in make_examples(FEW, "test", 30)] == [
        captions for _, captions in made[:30]
    ]


def test_too_few_different_scenes_are_refused() -> None:
    options = Options(colors=("red", "blue"), shapes=("circle", "square"), object_sizes=(7,), max_objects=3)
    with pytest.raises(UserError, match="captions of so many different images"):
        list(make_examples(options, "train", 100))
    alone = Options(min_objects=1, max_objects=1, question_weights={"relation": 0, "comparison": 0})
    with pytest.raises(UserError, match="5 captions"):
        list(make_examples(alone, "train", 1))

"""What all tasks share: recipe keys, splits, decoding, ids, cleaned texts, summaries."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from smarttrim_cli.data.images import BadSample
from smarttrim_cli.data.samples import CaptionedImage, StatementSample, VqaSample, is_labelled
from smarttrim_cli.errors import UserError
from smarttrim_cli.tasks import nlvr2, retrieval, snli_ve
from smarttrim_cli.tasks._data import cleaned, instance_ids, spread, stable_hash, usable
from smarttrim_cli.tasks._summary import summarize
from smarttrim_cli.tasks.base import EmptyBatch
from tests.tasks.own_data import processor, section, write_lines, write_pictures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight hypotheses about two pictures; of one of them the picture is missing."""
    write_pictures(tmp_path, ("red", "green"))
    lines = [
        {"id": f"h{i}", "image": f"{color}.png", "hypothesis": f"this is {color}", "label": "neutral"}
        for i, color in enumerate(["red", "green", "gone", "red", "green", "red", "green", "red"])
    ]
    write_lines(tmp_path, "train", lines)
    write_lines(tmp_path, "test", [{k: v for k, v in line.items() if k != "label"} for line in lines])
    return tmp_path


def task(folder: Path, **options: object) -> snli_ve.SnliVeTask:
    made = snli_ve.Options.model_validate({"data": section(folder), **options})
    return snli_ve.build(made, print, "classifies")


def test_data_section_is_checked_with_the_recipe(folder: Path) -> None:
    with pytest.raises(ValidationError, match="unknown data set 'jsonlines'"):
        snli_ve.Options(data={"name": "jsonlines"})
    with pytest.raises(ValidationError, match="data_dir"):
        snli_ve.Options(data={"name": "jsonl"})
    with pytest.raises(ValidationError, match="vqa_v2 has nothing for snli_ve; it is for vqa"):
        snli_ve.Options(data={"name": "vqa_v2", "data_dir": str(folder)})


def test_roles_name_splits(folder: Path) -> None:
    one = task(folder, splits={"eval": "dev"})
    assert [one.split_name(role) for role in ("train", "eval", "test1")] == ["train", "dev", "test1"]


def test_split_is_read_once_and_again_only_for_labels(folder: Path) -> None:
    one = task(folder)
    first = one.samples("train")
    assert one.samples("train", labelled=True) is first
    assert len(one.texts("test")) == 8
    with pytest.raises(UserError, match="label"):
        one.dataset("test", processor(), training=True)


def test_limit_is_spread_evenly(folder: Path) -> None:
    assert list(spread(range(10), 4)) == [0, 2, 5, 7]
    assert list(spread(range(3), 4)) == list(spread(range(3), None)) == [0, 1, 2]
    assert [s.id for s in task(folder).dataset("train", processor(), limit=3).samples] == ["h0", "h2", "h5"]


def test_broken_pictures_are_errors_or_skipped(folder: Path) -> None:
    words = processor("this is red green")
    with pytest.raises(BadSample, match="missing") as caught:
        task(folder).dataset("train", words)[2]
    assert "h2" in str(caught.value)
    one = task(folder, on_bad_sample="skip")
    dataset = one.dataset("train", words)
    assert dataset[2] is None
    batch = one.collate([dataset[1], dataset[2], dataset[3]], words)
    assert [sample.id for sample in batch.samples] == ["h1", "h3"] and len(batch) == 2
    assert batch.inputs["pixel_values"].shape == (2, 3, 4, 4)
    with pytest.raises(EmptyBatch, match="all 2 images of a batch are broken"):
        usable([None, None])


def test_two_pictures_are_stacked(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    write_lines(tmp_path, "val", [{"images": ["red.png", "blue.png"], "statement": "x", "label": True}])
    one = nlvr2.build(nlvr2.Options(data=section(tmp_path)), print, "classifies")
    ((sample, pixels),) = [one.dataset("val", processor("x"))[0]]
    assert pixels.shape == (2, 3, 4, 4) and len(sample.images) == 2
    assert pixels[0, 0, 0, 0] > pixels[1, 0, 0, 0] and pixels[0, 2, 0, 0] < pixels[1, 2, 0, 0]


def test_instance_ids_do_not_depend_on_the_process() -> None:
    """Values of the hash written down once: another machine or version must give the same."""
    ids = instance_ids([7, "7", "dev-0-0-1", -1])
    assert ids.tolist() == [7, 67530889677864, 40842088142720, 23177104556521]
    assert ids.dtype == torch.int64 and stable_hash("a", 1) != stable_hash("a", 2)


@pytest.mark.parametrize(
    ("sample", "labelled"),
    [
        (VqaSample(1, (), "?", 1), False),
        (VqaSample(1, (), "?", 1, answers=("yes",)), True),
        (StatementSample(1, (), "?", label=False), True),
        (CaptionedImage(1, ()), False),
        (CaptionedImage(1, (), captions=("a dog",)), True),
    ],
)
def test_is_labelled(sample: object, labelled: bool) -> None:
    assert is_labelled(sample) == labelled


def test_cleaning_is_that_of_blip() -> None:
    """By the regular expressions of the official ``pre_caption`` and ``pre_question``."""
    assert cleaned('  A man, (with "hat")... #1\n') == "a man, with hat 1"
    assert cleaned("Is it 5:30?", filler="") == "is it 530?"
    assert cleaned("Is it 5:30?") == "is it 5 30?"


def test_cleaning_is_optional(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    write_lines(tmp_path, "train", [{"image": "red.png", "captions": ["A Dog."]}] * 1)
    for clean, text in ((False, "A Dog."), (True, "a dog")):
        options = retrieval.Options(data=section(tmp_path), clean_texts=clean)
        assert retrieval.build(options, print, "matches").texts("train") == [text]


def test_summary_by_hand() -> None:
    """Scores 1, 1, 1, 0: mean 3/4, sample variance 1/4, standard error 1/4."""
    records = [{"type": t, "score": s} for t, s in (("a", 1.0), ("a", 1.0), ("b", 1.0), ("b", 0.0))]
    summary = summarize("accuracy", [*records, {"type": "b", "score": None}])
    assert (summary["accuracy"], summary["accuracy_se"], summary["count"]) == (0.75, 0.25, 4)
    assert summary["accuracy_by_type"] == {
        "a": {"accuracy": 1.0, "se": 0.0, "count": 2},
        "b": {"accuracy": 0.5, "se": 0.5, "count": 2},
    }
    assert "accuracy_by_type" not in summarize("accuracy", records[:2])
    assert summarize("accuracy", [{"type": "b", "score": None}] * 2) == {"count": 2}


def test_backbone_that_answers_otherwise_is_refused(folder: Path) -> None:
    options = snli_ve.Options(data=section(folder))
    with pytest.raises(UserError, match="cannot use a backbone that generates"):
        snli_ve.build(options, print, "generates")


def test_pictures_and_texts_of_the_users_own_have_to_match(folder: Path) -> None:
    from PIL import Image

    words = processor("this is red")
    picture = Image.new("RGB", (9, 5), "red")
    inputs = task(folder).inputs([picture, picture], ["this is red", "red"], words)
    assert inputs["pixel_values"].shape == (2, 3, 4, 4) and inputs["input_ids"].shape == (2, 5)
    with pytest.raises(UserError, match="1 texts need 1 pictures, found 2"):
        task(folder).inputs([picture, picture], ["this is red"], words)

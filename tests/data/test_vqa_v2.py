from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from smarttrim_cli.data import vqa_v2
from smarttrim_cli.data.samples import VqaSample
from smarttrim_cli.data.vqa_v2 import Options, read_folder, splits
from smarttrim_cli.errors import UserError


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def annotation(question_id: int, image_id: int, answers: list[str]) -> dict[str, Any]:
    return {
        "question_type": "what is",
        "multiple_choice_answer": answers[0],
        "answers": [
            {"answer": a, "answer_confidence": "yes", "answer_id": n} for n, a in enumerate(answers, 1)
        ],
        "image_id": image_id,
        "answer_type": "other",
        "question_id": question_id,
    }


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A folder as one has it after unpacking the official archives (two images)."""
    for split in ("train2014", "val2014", "test2015"):
        (tmp_path / split).mkdir()
        for image_id in (9, 25):
            Image.new("RGB", (8, 8)).save(tmp_path / split / f"COCO_{split}_{image_id:012d}.jpg")
    questions = [
        {"image_id": 9, "question": "What is this?", "question_id": 9000},
        {"image_id": 25, "question": "Is it red?", "question_id": 25001},
    ]
    for subtype in ("train2014", "val2014", "test2015", "test-dev2015"):
        write_json(tmp_path / f"v2_OpenEnded_mscoco_{subtype}_questions.json", {"questions": questions})
    given = [annotation(25001, 25, ["yes"] * 7 + ["no"] * 3), annotation(9000, 9, ["cat"] * 10)]
    for subtype in ("train2014", "val2014"):
        write_json(tmp_path / f"v2_mscoco_{subtype}_annotations.json", {"annotations": given})
    return tmp_path


def test_reads_questions_with_their_answers(data_dir: Path) -> None:
    first, second = read_folder(data_dir, "train", labelled=True)
    assert first == VqaSample(
        id=9000,
        images=(data_dir / "train2014" / "COCO_train2014_000000000009.jpg",),
        text="What is this?",
        image_id=9,
        answers=("cat",) * 10,
        question_type="what is",
        answer_type="other",
        major_answer="cat",
    )
    assert second.id == 25001
    assert second.answers == ("yes",) * 7 + ("no",) * 3


def test_split_can_have_its_year(data_dir: Path) -> None:
    assert read_folder(data_dir, "val2014", labelled=True) == read_folder(data_dir, "val", labelled=True)


@pytest.mark.parametrize("split", ["test", "test-dev"])
def test_test_splits_have_no_answers_and_share_images(data_dir: Path, split: str) -> None:
    sample = read_folder(data_dir, split, labelled=False)[0]
    assert sample.images[0] == data_dir / "test2015" / "COCO_test2015_000000000009.jpg"
    assert sample.answers is sample.question_type is sample.answer_type is sample.major_answer is None
    with pytest.raises(UserError, match=r"v2_mscoco_test.*2015_annotations\.json: split test.* no answers"):
        read_folder(data_dir, split, labelled=True)


def test_images_can_be_elsewhere(data_dir: Path) -> None:
    (data_dir / "images").mkdir()
    (data_dir / "train2014").rename(data_dir / "images" / "train2014")
    with pytest.raises(UserError, match="train2014: no such folder of images"):
        read_folder(data_dir, "train", labelled=True)
    samples = read_folder(data_dir, "train", labelled=True, images_dir=data_dir / "images")
    assert all(sample.images[0].is_file() for sample in samples)


def test_unknown_split_lists_those_present(data_dir: Path) -> None:
    assert splits(Options(data_dir=str(data_dir))) == ["test-dev2015", "test2015", "train2014", "val2014"]
    with pytest.raises(
        UserError, match="no questions for split tain\n.*test-dev2015, test2015, train2014, val2014"
    ):
        read_folder(data_dir, "tain", labelled=True)


def test_ambiguous_split_asks_for_the_year(data_dir: Path) -> None:
    questions = data_dir / "v2_OpenEnded_mscoco_train2014_questions.json"
    (data_dir / "v2_OpenEnded_mscoco_train2017_questions.json").write_bytes(questions.read_bytes())
    with pytest.raises(UserError, match="train2014, train2017"):
        read_folder(data_dir, "train", labelled=True)


def test_missing_folder_and_folder_without_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: cannot read the data folder"):
        read_folder(tmp_path / "nowhere", "train", labelled=True)
    with pytest.raises(UserError, match="It has no v2_OpenEnded"):
        read_folder(tmp_path, "train", labelled=True)


def test_question_without_annotation_is_named(data_dir: Path) -> None:
    path = data_dir / "v2_mscoco_train2014_annotations.json"
    write_json(path, {"annotations": [annotation(9000, 9, ["cat"])]})
    with pytest.raises(UserError, match=r"train2014_annotations\.json: no annotation for question_id 25001"):
        read_folder(data_dir, "train", labelled=True)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"annotations": [', r"not valid JSON.*line 1, column 18"),
        ("[1, 2]", "no list of annotations"),
        ('{"annotations": []}', "list of annotations is empty"),
        ('{"annotations": ["x"]}', "no list of annotations"),
        ('{"annotations": [{"image_id": 9}]}', "annotations.json, entry 0: the key question_id is missing"),
        (
            '{"annotations": [{"question_id": "9000"}]}',
            'question_id 9000: question_id is "9000", not a whole number',
        ),
        ('{"annotations": [{"question_id": 9000, "answers": [{"answer": 3}]}]}', "has no list of answers"),
        ('{"annotations": [{"question_id": 9000}]}', "question_id 9000 has no list of answers"),
        (
            '{"annotations": [{"question_id": 9000, "answers": []}]}',
            "question_id 9000 has no list of answers",
        ),
    ],
)
def test_damaged_annotations_are_errors(data_dir: Path, content: str, problem: str) -> None:
    path = data_dir / "v2_mscoco_train2014_annotations.json"
    path.write_text(content)
    with pytest.raises(UserError, match=problem) as caught:
        read_folder(data_dir, "train", labelled=True)
    assert str(path) in str(caught.value)


def test_question_without_text_is_named(data_dir: Path) -> None:
    path = data_dir / "v2_OpenEnded_mscoco_val2014_questions.json"
    write_json(path, {"questions": [{"image_id": 9, "question_id": 9000}]})
    with pytest.raises(
        UserError, match="val2014_questions.json, question_id 9000: the key question is missing"
    ):
        read_folder(data_dir, "val", labelled=True)


def test_not_utf8_is_an_error(data_dir: Path) -> None:
    (data_dir / "v2_OpenEnded_mscoco_val2014_questions.json").write_bytes(b'{"questions": "\xff"}')
    with pytest.raises(UserError, match="not UTF-8"):
        read_folder(data_dir, "val", labelled=True)


def test_folder_without_images_is_an_error(data_dir: Path) -> None:
    for path in (data_dir / "train2014").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="no image named COCO_train2014_"):
        read_folder(data_dir, "train", labelled=True)


def test_splits_are_joined(data_dir: Path) -> None:
    options = Options(data_dir=str(data_dir))
    for name in ("questions", "annotations"):
        prefix = "v2_OpenEnded_mscoco" if name == "questions" else "v2_mscoco"
        path = data_dir / f"{prefix}_val2014_{name}.json"
        path.write_text(path.read_text().replace("9000", "8000").replace("25001", "8001"))
    samples = vqa_v2.read(options, "vqa", "train+val", labelled=True, log=print)
    assert [sample.id for sample in samples] == [9000, 25001, 8000, 8001]
    with pytest.raises(UserError, match="no questions for split nope"):
        vqa_v2.read(options, "vqa", "train+nope", labelled=True)


def test_joined_splits_with_the_same_questions_are_refused(data_dir: Path) -> None:
    with pytest.raises(UserError, match="split train.val: two samples have the id 9000"):
        vqa_v2.read(Options(data_dir=str(data_dir)), "vqa", "train+val", labelled=True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ([annotation(9000, 9, ["cat"] * 10), annotation(9000, 9, ["dog"] * 10)], "two annotations"),
        ([annotation(9000, 25, ["cat"] * 10)], "annotation is of image 25, the question of image 9"),
        ([annotation(9000, 9, ["cat"] * 9 + ["a\ud800"])], "answer has half of a character at 1"),
    ],
)
def test_annotations_that_cannot_be_meant(data_dir: Path, changed: list[Any], message: str) -> None:
    file = data_dir / "v2_mscoco_train2014_annotations.json"
    write_json(file, {"annotations": [*changed, annotation(25001, 25, ["yes"] * 10)]})
    with pytest.raises(UserError, match=message) as caught:
        read_folder(data_dir, "train", labelled=True)
    assert caught.value.where == f"{file}, question_id 9000"

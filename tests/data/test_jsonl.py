from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smarttrim_cli.data.files import read_json
from smarttrim_cli.data.jsonl import TASKS, Options, read, splits
from smarttrim_cli.data.samples import (
    CaptionedImage,
    EntailmentSample,
    Sample,
    StatementSample,
    VqaSample,
)
from smarttrim_cli.data.vocab import AnswerVocab
from smarttrim_cli.errors import UserError
from smarttrim_cli.metrics.vqa_accuracy import vqa_accuracy

EXAMPLES: dict[str, dict[str, Any]] = {
    "vqa": {"image": "img/1.jpg", "question": "What color?", "answer": "red"},
    "nlvr2": {"images": ["l.jpg", "r.jpg"], "statement": "Both are red.", "label": True},
    "snli_ve": {"image": "img/1.jpg", "hypothesis": "It rains.", "label": "neutral"},
    "retrieval": {"image": "img/1.jpg", "captions": ["A cat.", "A pet."]},
    "captioning": {"image": "img/1.jpg", "captions": ["A cat."], "type": "pets"},
}


def samples(
    folder: Path,
    task: str,
    *entries: dict[str, Any],
    labelled: bool = True,
    log: Callable[[str], None] = print,
    **further: Any,
) -> list[Sample]:
    (folder / "train.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return read(Options(data_dir=str(folder), **further), task, "train", labelled=labelled, log=log)


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("vqa", lambda image, _: VqaSample("train:1", (image,), "What color?", str(image), ("red",) * 10)),
        ("nlvr2", lambda _, two: StatementSample("train:1", two, "Both are red.", True, "Both are red.")),
        ("snli_ve", lambda image, _: EntailmentSample("train:1", (image,), "It rains.", "neutral")),
        ("retrieval", lambda image, _: CaptionedImage("train:1", (image,), ("A cat.", "A pet."))),
        ("captioning", lambda image, _: CaptionedImage("train:1", (image,), ("A cat.",), type="pets")),
    ],
)
def test_every_task(tmp_path: Path, task: str, expected: Any) -> None:
    (sample,) = samples(tmp_path, task, EXAMPLES[task])
    wanted = expected(tmp_path / "img" / "1.jpg", (tmp_path / "l.jpg", tmp_path / "r.jpg"))
    if task == "vqa":
        wanted = VqaSample(**{**vars(wanted), "major_answer": "red", "normalized": True})
    assert sample == wanted
    assert set(EXAMPLES) == set(TASKS)


def test_answers_are_normalised_as_the_vocabulary_is(tmp_path: Path) -> None:
    """The official accuracy compares answers as they are written where all are the same."""
    lines = [
        {"image": "1.jpg", "question": "?", "answer": "Two"},
        {"image": "1.jpg", "question": "?", "answers": ["The dog.", "dog", "A"]},
    ]
    one, several = samples(tmp_path, "vqa", *lines)
    assert isinstance(one, VqaSample) and isinstance(several, VqaSample)
    assert one.answers == ("2",) * 10 and several.answers == ("dog", "dog", "a")
    assert vqa_accuracy("2", one.answers) == 1.0
    assert AnswerVocab(("2", "dog")).soft_targets(one.answers) == {0: 1.0}


def test_answers_of_which_normalising_leaves_nothing_are_classes(tmp_path: Path) -> None:
    answers = ["A", "the", "+", "-", 7]
    lines = [{"image": "1.jpg", "question": "?", "answer": answer} for answer in answers]
    read = [sample for sample in samples(tmp_path, "vqa", *lines) if isinstance(sample, VqaSample)]
    vocab = AnswerVocab.from_samples(read, min_count=1)
    assert vocab.answers == ("a", "the", "+", "-", "7")
    assert [vocab.soft_targets(sample.answers or ()) for sample in read] == [{n: 1.0} for n in range(5)]


@pytest.mark.parametrize("task", ["retrieval", "captioning"])
def test_lines_of_an_image_are_gathered(tmp_path: Path, task: str) -> None:
    """Else every line were an image of its own, and the captions of the other lines wrong ones of it."""
    lines = [{"image": f"{image}.jpg", "captions": [f"{image} {n}"]} for n in "ab" for image in (1, 2)]
    said: list[str] = []
    found = samples(tmp_path, task, *lines, log=said.append)
    assert [(s.images[0], s.captions) for s in found if isinstance(s, CaptionedImage)] == [
        (tmp_path / "1.jpg", ("1 a", "1 b")),
        (tmp_path / "2.jpg", ("2 a", "2 b")),
    ]
    assert said == ["train: 4 entries of 2 images; captions of an image are gathered"]


def test_images_to_be_captioned_are_not_gathered(tmp_path: Path) -> None:
    lines = [{"image": "1.jpg", "id": "x"}, {"image": "1.jpg", "id": "y"}]
    assert len(samples(tmp_path, "captioning", *lines, labelled=False)) == 2


def test_answers_of_several_annotators(tmp_path: Path) -> None:
    entry = {"image": "1.jpg", "question": "?", "answers": ["no", "yes", "yes"], "type": "hard"}
    (sample,) = samples(tmp_path, "vqa", entry)
    assert isinstance(sample, VqaSample)
    assert (sample.answers, sample.major_answer) == (("no", "yes", "yes"), "yes")
    assert sample.question_type == sample.answer_type == "hard"
    (sample,) = samples(tmp_path, "vqa", {**entry, "answers": ["no"]})
    assert isinstance(sample, VqaSample) and sample.answers == ("no",) * 10
    official = [{"answer": "a", "answer_id": 1}, {"answer": "b", "answer_id": 2}]
    (sample,) = samples(tmp_path, "vqa", {**entry, "answers": official, "answer": "b"})
    assert isinstance(sample, VqaSample) and (sample.answers, sample.major_answer) == (("a", "b"), "b")


def test_ids_are_given_or_made_of_split_and_line(tmp_path: Path) -> None:
    text = json.dumps({**EXAMPLES["vqa"], "id": 7}) + "\n\n" + json.dumps(EXAMPLES["vqa"])
    (tmp_path / "val.jsonl").write_text(text)
    found = read(Options(data_dir=str(tmp_path)), "vqa", "val", labelled=True)
    assert [sample.id for sample in found] == [7, "val:3"]
    samples(tmp_path, "vqa", EXAMPLES["vqa"])
    joined = read(Options(data_dir=str(tmp_path)), "vqa", "train+val", labelled=True)
    assert [sample.id for sample in joined] == ["train:1", 7, "val:3"]
    with pytest.raises(UserError, match="two samples have the id x"):
        samples(tmp_path, "vqa", {**EXAMPLES["vqa"], "id": "x"}, {**EXAMPLES["vqa"], "id": "x"})


def test_images_can_be_elsewhere_or_absolute(tmp_path: Path) -> None:
    absolute = {**EXAMPLES["vqa"], "image": str(tmp_path / "a.jpg")}
    one, two = samples(tmp_path, "vqa", EXAMPLES["vqa"], absolute, images_dir=str(tmp_path / "pictures"))
    assert one.images == (tmp_path / "pictures" / "img" / "1.jpg",)
    assert two.images == (tmp_path / "a.jpg",)


@pytest.mark.parametrize(
    ("task", "key"),
    [("vqa", "answer"), ("nlvr2", "label"), ("snli_ve", "label"), ("captioning", "captions")],
)
def test_without_annotations(tmp_path: Path, task: str, key: str) -> None:
    entry = {name: value for name, value in EXAMPLES[task].items() if name != key}
    (sample,) = samples(tmp_path, task, entry, labelled=False)
    assert not any(getattr(sample, name, None) for name in ("answers", "label", "captions"))
    with pytest.raises(UserError, match=rf"train\.jsonl:2: split train has samples but no {key}"):
        samples(tmp_path, task, EXAMPLES[task], entry)


def test_retrieval_needs_captions_even_where_nothing_is_scored(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no captions"):
        samples(tmp_path, "retrieval", {"image": "1.jpg"}, labelled=False)


@pytest.mark.parametrize(
    ("task", "change", "problem"),
    [
        ("vqa", {"question": None}, "question is null, not a text"),
        ("vqa", {"question": 5}, "question is 5, not a text"),
        ("vqa", {"image": ["a"]}, r'image is \["a"\], not a text'),
        ("vqa", {"answer": 3.5}, "answer is 3.5, not a text"),
        ("vqa", {"answers": "red"}, 'answers is "red", not a list'),
        ("vqa", {"answers": []}, r"answers is \[\], not a list of texts"),
        ("vqa", {"answers": [True, "2"]}, r"answers is \[true, \"2\"\], not a list of texts"),
        ("vqa", {"id": [1]}, r"id is \[1\], not a number or a text"),
        ("vqa", {"type": 3}, "type is 3, not a text"),
        ("nlvr2", {"images": ["one.jpg"]}, r"images is \['one.jpg'\], not a list of 2 paths"),
        ("nlvr2", {"label": "maybe"}, "label is 'maybe', not true or false"),
        ("snli_ve", {"label": "yes"}, "label is 'yes', not one of contradiction, neutral, entailment"),
        ("retrieval", {"captions": "A cat."}, 'captions is "A cat.", not a list'),
    ],
)
def test_wrong_values_name_line_and_key(
    tmp_path: Path, task: str, change: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UserError, match=rf"train\.jsonl:2: {problem}"):
        samples(tmp_path, task, EXAMPLES[task], {**EXAMPLES[task], **change})


@pytest.mark.parametrize(
    ("task", "key"), [("vqa", "image"), ("vqa", "question"), ("nlvr2", "images"), ("snli_ve", "hypothesis")]
)
def test_missing_keys_are_named(tmp_path: Path, task: str, key: str) -> None:
    entry = {name: value for name, value in EXAMPLES[task].items() if name != key}
    with pytest.raises(UserError, match=rf"train\.jsonl:1: the key {key} is missing"):
        samples(tmp_path, task, entry)


def test_keys_that_are_not_used_are_said_once(tmp_path: Path) -> None:
    (tmp_path / "val.jsonl").write_text(2 * (json.dumps({**EXAMPLES["nlvr2"], "tpye": "x", "a": 1}) + "\n"))
    said: list[str] = []
    read(Options(data_dir=str(tmp_path)), "nlvr2", "val", labelled=True, log=said.append)
    assert said == ["val.jsonl: keys that nlvr2 does not use: a, tpye"]


def test_unknown_split_and_damaged_lines(tmp_path: Path) -> None:
    options = Options(data_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"It has no file \*\.jsonl"):
        read(options, "vqa", "train", labelled=True)
    (tmp_path / "train.jsonl").write_bytes(b'{"image": "1.jpg"\n')
    (tmp_path / "val.jsonl").write_bytes(b'{"image": "\xff"}\n')
    assert splits(options, "vqa") == ["train", "val"]
    with pytest.raises(UserError, match="no samples for split test\n.*there: train, val"):
        read(options, "vqa", "test", labelled=True)
    with pytest.raises(UserError, match=r"train\.jsonl:1: not valid JSON: .*column 18"):
        read(options, "vqa", "train", labelled=True)
    with pytest.raises(UserError, match=r"val\.jsonl:1: not UTF-8 text \(byte 11 of the line\)"):
        read(options, "vqa", "val", labelled=True)


def test_keys_that_are_given_twice_are_named(tmp_path: Path) -> None:
    line = json.dumps(EXAMPLES["vqa"])
    (tmp_path / "train.jsonl").write_text(f'{line}\n{line[:-1]}, "question": "again?"}}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r'train\.jsonl:2: the key "question" is given twice'):
        read(Options(data_dir=str(tmp_path)), "vqa", "train", labelled=True)


def test_lines_of_the_guide_are_read(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| `(\{.+\})` \|$", guide, re.MULTILINE)
    assert {task for task, _ in rows} == set(TASKS)
    for task, line in rows:
        assert samples(tmp_path, task, json.loads(line))


def test_images_are_gathered_over_joined_splits(tmp_path: Path) -> None:
    for split in ("a", "b"):
        line = json.dumps({"image": "1.jpg", "captions": [split]})
        (tmp_path / f"{split}.jsonl").write_text(line, encoding="utf-8")
    said: list[str] = []
    (sample,) = read(Options(data_dir=str(tmp_path)), "retrieval", "a+b", labelled=True, log=said.append)
    assert sample.captions == ("a", "b")
    assert said == ["a+b: 2 entries of 1 images; captions of an image are gathered"]


@pytest.mark.parametrize("blank", [{"answer": ""}, {"answer": " \t"}, {"answers": ["", " "]}])
def test_blank_answers_name_file_and_line(tmp_path: Path, blank: dict[str, Any]) -> None:
    entry = {"image": "1.jpg", "question": "?"}
    with pytest.raises(UserError, match=r"train\.jsonl:2: answers? is blank"):
        samples(tmp_path, "vqa", {**entry, "answer": "red"}, {**entry, **blank})
    (sample,) = samples(tmp_path, "vqa", {**entry, "answers": ["", "red", ""]})
    assert isinstance(sample, VqaSample) and sample.answers == ("", "red", "")
    assert sample.major_answer == "red"


def test_blank_captions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.jsonl:1: captions is blank"):
        samples(tmp_path, "captioning", {"image": "1.jpg", "captions": ["a dog", " "]})


def test_images_by_id(tmp_path: Path) -> None:
    (sample,) = samples(tmp_path, "vqa", {**EXAMPLES["vqa"], "image_id": 0})
    assert isinstance(sample, VqaSample) and sample.image_id == 0
    with pytest.raises(UserError, match=r"train\.jsonl:1: image_id is True, not a number or a text"):
        samples(tmp_path, "vqa", {**EXAMPLES["vqa"], "image_id": True})


def test_half_characters_in_ids(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.jsonl:1: id has half of a character at 1"):
        samples(tmp_path, "vqa", {**EXAMPLES["vqa"], "id": "a\ud800"})


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
def test_lines_in_another_encoding(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "train.jsonl").write_bytes((json.dumps(EXAMPLES["vqa"]) + "\n").encode(encoding))
    with pytest.raises(UserError, match=r"train\.jsonl: not UTF-8 text, but UTF-16"):
        read(Options(data_dir=str(tmp_path)), "vqa", "train", labelled=True)


def test_a_path_with_nul(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no path of a file: embedded null byte") as error:
        read_json(tmp_path / "a\0b.json")
    assert "\0" not in str(error.value)

from __future__ import annotations

import json
from pathlib import Path

import pytest

from smarttrim_cli.data.samples import VqaSample
from smarttrim_cli.data.vocab import AnswerVocab
from smarttrim_cli.errors import UserError


def sample(major: str, answers: tuple[str, ...] | None = None) -> VqaSample:
    return VqaSample(1, (Path("x.png"),), "?", 1, answers or (major,) * 10, "what", "other", major)


def test_frequent_normalised_major_answers_are_classes() -> None:
    samples = [sample("Two")] * 5 + [sample("the cat")] * 9 + [sample("2")] * 4 + [sample("rare")] * 8
    assert AnswerVocab.from_samples(samples).answers == ("2", "cat")


def test_no_frequent_answer_is_an_error() -> None:
    with pytest.raises(UserError, match="at least 9 training questions"):
        AnswerVocab.from_samples([sample("yes")] * 8)


def test_soft_targets_grow_with_the_number_of_annotators() -> None:
    vocab = AnswerVocab(("a", "b", "c", "d"))
    answers = ["a"] * 4 + ["b"] * 3 + ["c"] * 2 + ["d"]
    assert vocab.soft_targets(answers) == {0: 1.0, 1: 0.9, 2: 0.6, 3: 0.3}
    assert vocab.soft_targets(["b"] * 10) == {1: 1.0}


def test_answers_outside_have_no_target_and_are_counted() -> None:
    vocab = AnswerVocab(("yes", "no"))
    assert vocab.soft_targets(["maybe"] * 9 + ["no"]) == {1: 0.3}
    assert vocab.soft_targets(["maybe"] * 10) == {}
    assert vocab.count_unanswerable([sample("yes"), sample("maybe"), sample("x", ("no", "x"))]) == 1


def test_saved_and_loaded(tmp_path: Path) -> None:
    vocab = AnswerVocab(("yes", "no", "café"))
    vocab.save(tmp_path / "answers.json")
    assert AnswerVocab.load(tmp_path / "answers.json") == vocab
    assert json.loads((tmp_path / "answers.json").read_text(encoding="utf-8"))["café"] == 2
    assert (len(vocab), vocab.index["no"]) == (3, 1)


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"a": 1}', '{"a": 0, "b": 0}', '{"a": "0"}', '{"a": [0]}', "{"]
)
def test_bad_files_are_errors(tmp_path: Path, content: str) -> None:
    (tmp_path / "answers.json").write_text(content)
    with pytest.raises(UserError, match=r"answers\.json"):
        AnswerVocab.load(tmp_path / "answers.json")


def test_a_list_of_answers_is_in_class_order(tmp_path: Path) -> None:
    """As BLIP's ``answer_list.json``."""
    path = tmp_path / "answer_list.json"
    path.write_text('["yes", "no", "2"]', encoding="utf-8")
    assert AnswerVocab.load(path).answers == ("yes", "no", "2")
    path.write_text('["yes", "yes"]', encoding="utf-8")
    with pytest.raises(UserError, match="listed twice"):
        AnswerVocab.load(path)


@pytest.mark.parametrize("content", ['["yes", "a\\ud800"]', '{"yes": 0, "a\\ud800": 1}'])
def test_half_characters_are_refused(tmp_path: Path, content: str) -> None:
    """No answers.json could be saved with them, after all the training."""
    (tmp_path / "answers.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"answers\.json: answer 1 has half of a character at 1"):
        AnswerVocab.load(tmp_path / "answers.json")

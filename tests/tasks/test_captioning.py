"""Captioning: what is learned behind the prompt, what is read from written tokens, and the scores."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from smarttrim_cli.data.processor import Processor
from smarttrim_cli.data.samples import CaptionedImage
from smarttrim_cli.errors import UserError
from smarttrim_cli.metrics import captions
from smarttrim_cli.tasks import captioning
from smarttrim_cli.tasks.captioning import CaptioningTask, Options, build
from tests.tasks.own_data import processor, section, write_lines, write_pictures

CAPTIONS = {
    "red": ["A red square.", "all red"],
    "green": ["a green square", "grass"],
    "blue": ["blue, as the sky is"],
}


@pytest.fixture
def task(tmp_path: Path) -> CaptioningTask:
    write_pictures(tmp_path)
    lines = [{"id": color, "image": f"{color}.png", "captions": texts} for color, texts in CAPTIONS.items()]
    write_lines(tmp_path, "val", [{**line, "type": "near" if i else "in"} for i, line in enumerate(lines)])
    write_lines(tmp_path, "test", [{"id": 7, "image": "red.png"}])
    return build(Options(data=section(tmp_path)), print, "generates")


@pytest.fixture
def words(task: CaptioningTask) -> Processor:
    return processor(*task.texts("val"))


@pytest.fixture
def simple(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without Java."""
    monkeypatch.setattr(captioning, "official_metric", lambda: False)
    skipped = captions.CaptionScore(skipped="skipped: needs Java")
    monkeypatch.setattr(captions, "official_scores", lambda *_: {"cider": skipped, "bleu4": skipped})


def written(texts: list[str], words: Processor) -> torch.Tensor:
    """Tokens as a decoder gives them: its own start token, the prompt, the text, padding."""
    ids, _ = words.tokens([f"a picture of {text}" for text in texts])
    ids[:, 0] = len(words.tokenizer)
    return ids


def evaluated(task: CaptioningTask, words: Processor, split: str, texts: list[str]) -> list[dict[str, Any]]:
    dataset: Any = task.dataset(split, words)
    batch = task.collate([dataset[i] for i in range(len(dataset))], words)
    return task.finish(task.predict(written(texts, words), batch, words))


def test_form_is_that_of_the_official_blip(task: CaptioningTask) -> None:
    form, decoding = task.form, task.form.decoding
    assert (form.name, form.text_tokens, form.prompt_tokens, form.new_tokens) == ("captioning", 4, 4, 15.2)
    assert decoding is not None and not decoding.rank
    assert (decoding.num_beams, decoding.max_length, decoding.min_length) == (3, 20, 5)


def test_training_has_an_item_per_caption(task: CaptioningTask, words: Processor) -> None:
    dataset: Any = task.dataset("val", words, training=True)
    assert [s.id for s in dataset.samples] == ["red#0", "red#1", "green#0", "green#1", "blue#0"]
    batch = task.collate([dataset[0], dataset[4]], words, True)
    assert batch.inputs["pixel_values"].shape == (2, 3, 4, 4)
    assert batch.inputs["answer_ids"].shape == batch.inputs["answer_mask"].shape == (2, 1, 11)
    decoded = [words.decode(row) for row in batch.inputs["answer_ids"][:, 0]]
    assert decoded == ["a picture of a red square", "a picture of blue, as the sky is"]


def test_prompt_is_given_and_padding_not_learned(task: CaptioningTask, words: Processor) -> None:
    """The first caption has four targets (three words, the end), the second seven."""
    dataset: Any = task.dataset("val", words, training=True)
    batch = task.collate([dataset[0], dataset[4]], words, True)
    ids, targets = batch.inputs["answer_ids"], batch.targets["caption"]
    assert targets.shape == (2, 1, 10)
    assert targets[0, 0].tolist() == [-100] * 3 + ids[0, 0, 4:8].tolist() + [-100] * 3
    assert targets[1, 0].tolist() == [-100] * 3 + ids[1, 0, 4:].tolist()


def test_loss_is_the_mean_over_tokens(task: CaptioningTask, words: Processor) -> None:
    """Where the first caption's tokens are sure to be wrong, the loss is 4 of 11 parts of theirs."""
    dataset: Any = task.dataset("val", words, training=True)
    batch = task.collate([dataset[0], dataset[4]], words, True)
    size = len(words.tokenizer)
    logits = torch.zeros(2, 1, 11, size)
    assert float(task.loss(logits, batch)) == pytest.approx(math.log(size))
    logits[0, ..., 0] = math.log(3)  # a token that is never a target: p = 3 / (V + 2), of others 1 / (V + 2)
    wrong = math.log(size + 2) - 0.1 * math.log(3) / size
    assert float(task.loss(logits, batch)) == pytest.approx((4 * wrong + 7 * math.log(size)) / 11)
    assert task.logits(logits, batch).shape == (11, size)


def test_evaluation_gets_the_prompt_without_its_end(task: CaptioningTask, words: Processor) -> None:
    dataset: Any = task.dataset("test", words)
    batch = task.collate([dataset[0]], words)
    assert set(batch.inputs) == {"pixel_values", "prompt_ids"} and batch.instance_ids.tolist() == [7]
    assert batch.inputs["prompt_ids"].tolist() == [words.tokenizer("a picture of").input_ids[:-1]]
    own = task.inputs([Image.new("RGB", (3, 3))] * 2, ["", ""], words)
    assert own["prompt_ids"].shape == (2, 4) and own["pixel_values"].shape == (2, 3, 4, 4)


def test_captions_come_without_the_prompt(task: CaptioningTask, words: Processor) -> None:
    answers = task.answer(written(["a red square", "grass"], words), words)
    assert [text for text, _ in answers] == ["a red square", "grass"]
    assert all(math.isnan(confidence) for _, confidence in answers)


@pytest.mark.usefixtures("simple")
def test_scores_without_java_have_names_of_their_own(task: CaptioningTask, words: Processor) -> None:
    records = evaluated(task, words, "val", ["a red square", "grass", "sky"])
    texts = [record["prediction"] for record in records]
    expected = captions.simple_scores(texts, list(CAPTIONS.values()))
    per_instance = expected["cider_simple_tokens"].per_instance
    assert [record["score"] for record in records] == list(per_instance or ())
    summary = task.summarize(records)
    assert task.metric == "cider_simple_tokens"
    assert summary["cider_simple_tokens"] == pytest.approx(sum(per_instance or ()) / 3)
    assert (summary["cider"], summary["cider_skipped"]) == (None, "skipped: needs Java")
    assert summary["bleu4_simple_tokens"] == expected["bleu4_simple_tokens"].estimate.mean  # type: ignore[union-attr]
    assert summary["count"] == 3 and set(summary["cider_simple_tokens_by_type"]) == {"in", "near"}
    json.dumps(records)


@pytest.mark.usefixtures("simple")
def test_a_domain_is_scored_by_itself(task: CaptioningTask, words: Processor) -> None:
    """As NoCaps does it: "red" is in the captions of every image of one domain, and worth nothing there."""
    seen = {1: ("in", "a red cat", "a red cat sits"), 2: ("in", "a red dog", "the red dog")}
    seen |= {3: ("near", "a big blue cat", "a blue cat"), 4: ("near", "grass", "a green bird on grass")}
    seen |= {5: ("near", "some red bird", "a red bird flies")}
    samples = {n: CaptionedImage(n, (), (reference,), type=kind) for n, (kind, _, reference) in seen.items()}
    records = task.finish([task.record(samples[n], text) for n, (_, text, _) in seen.items()])
    by_type = task.summarize(records)["cider_simple_tokens_by_type"]
    assert list(by_type) == ["in", "near"]
    for name, score in by_type.items():
        own = [(text, [reference]) for kind, text, reference in seen.values() if kind == name]
        expected = captions.simple_scores(*map(list, zip(*own, strict=True)))["cider_simple_tokens"].estimate
        assert expected is not None and score["count"] == expected.count == len(own)
        assert (score["cider_simple_tokens"], score["se"]) == (expected.mean, expected.standard_error)


@pytest.mark.skipif(not captioning.official_metric(), reason="needs Java and pycocoevalcap")
def test_official_scores_where_there_is_java(task: CaptioningTask, words: Processor) -> None:
    records = evaluated(task, words, "val", ["a red square", "grass", "sky"])
    summary = task.summarize(records)
    assert task.metric == "cider" and "cider_simple_tokens" not in summary
    assert summary["cider"] == pytest.approx(sum(record["score"] for record in records) / 3)
    assert 0 < summary["bleu1"] <= 1 and summary["count"] == 3


@pytest.mark.usefixtures("simple")
def test_split_without_captions_gives_a_submission(task: CaptioningTask, words: Processor) -> None:
    records = evaluated(task, words, "test", ["grass"])
    assert (records[0]["score"], records[0]["reference"]) == (None, None)
    assert task.summarize(records) == {"count": 1}
    assert task.submission(records) == [{"image_id": 7, "caption": "grass"}]
    with pytest.raises(UserError, match="captions"):
        task.dataset("test", words, training=True)


@pytest.mark.usefixtures("simple")
def test_rescoring(task: CaptioningTask, words: Processor) -> None:
    records = evaluated(task, words, "val", ["a red square", "grass", "sky"])
    stored = [{"id": record["id"], "prediction": record["prediction"]} for record in records]
    assert task.rescore(stored, "val") == records


def test_questions_are_none_since_the_prompt_is_always_the_same(task: CaptioningTask) -> None:
    assert task.questions("val") == []
    assert task.texts("val")[0] == "a picture of a red square"

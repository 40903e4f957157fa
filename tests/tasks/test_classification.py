"""NLVR2 and SNLI-VE on data of one's own; losses against the official METER's."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from smarttrim_cli.data.samples import EntailmentSample, StatementSample
from smarttrim_cli.errors import UserError
from smarttrim_cli.tasks import nlvr2, snli_ve
from smarttrim_cli.tasks.base import Batch
from smarttrim_cli.tasks.records import StoredRecord
from tests.tasks.own_data import golden, processor, section, write_lines, write_pictures


@pytest.fixture
def nlvr(tmp_path: Path) -> nlvr2.Nlvr2Task:
    write_pictures(tmp_path)
    pairs = [("red", "blue", True), ("red", "green", False), ("blue", "blue", False)]
    lines = [
        {
            "id": f"dev-1-{pair}-0",
            "images": [f"{left}.png", f"{right}.png"],
            "statement": "left is red, right is blue",
            "label": label,
        }
        for pair, (left, right, label) in enumerate(pairs)
    ]
    write_lines(tmp_path, "dev", lines)
    return nlvr2.build(nlvr2.Options(data=section(tmp_path)), print, "classifies")


def statement(number: int, label: bool | None, sentence: str | None) -> StatementSample:
    return StatementSample(f"dev-{number}-0-0", (), "x", label, sentence)


def batch(samples: list, label: list[int]) -> Batch:
    return Batch({}, torch.arange(len(samples)), {"label": torch.tensor(label)}, samples)


def test_nlvr2_batch_and_form(nlvr: nlvr2.Nlvr2Task) -> None:
    words = processor(*nlvr.texts("dev"))
    dataset = nlvr.dataset("dev", words, training=True)
    made = nlvr.collate([dataset[i] for i in range(3)], words, True)
    assert made.inputs["pixel_values"].shape == (3, 2, 3, 4, 4)
    assert made.inputs["input_ids"].shape == made.inputs["attention_mask"].shape == (3, 9)
    assert made.targets["label"].tolist() == [1, 0, 0]
    form = nlvr.form
    assert (form.name, form.num_labels, form.images, form.text_tokens) == ("nlvr2", 2, 2, 19)
    assert form.decoding is None and nlvr.form_name == "nlvr2"


def test_cross_entropy_by_hand_leaves_out_what_has_no_label(nlvr: nlvr2.Nlvr2Task) -> None:
    logits = torch.tensor([[0.0, math.log(3)], [math.log(4), 0.0], [9.0, 1.0]])
    loss = nlvr.loss(logits, batch([None] * 3, [1, 1, -100]))
    assert float(loss) == pytest.approx((math.log(4 / 3) + math.log(5)) / 2)
    assert nlvr.logits(logits, batch([None] * 3, [1, 1, 0])) is logits


def test_losses_are_those_of_the_official_meter(nlvr: nlvr2.Nlvr2Task, tmp_path: Path) -> None:
    data = golden("meter_tiny.npz")
    entailment = snli_ve.build(snli_ve.Options(data=section(tmp_path)), print, "classifies")
    for one, name, labels in ((nlvr, "nlvr2", "in_nlvr2_answers"), (entailment, "snli", "in_snli_labels")):
        logits = torch.tensor(data[f"out_{name}_logits"])
        loss = one.loss(logits, batch([None] * 3, data[labels].tolist()))
        assert float(loss) == pytest.approx(float(data[f"out_{name}_loss"]), abs=1e-6)


def test_nlvr2_predictions_and_consistency(nlvr: nlvr2.Nlvr2Task) -> None:
    """Sentence a is right for both pairs, b for one of two; what has no label or sentence does not count."""
    samples = [
        statement(1, True, "a"),
        statement(2, False, "a"),
        statement(3, True, "b"),
        statement(4, True, "b"),
        statement(5, False, None),
        statement(6, None, "c"),
    ]
    logits = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    records = nlvr.finish(nlvr.predict(logits, batch(samples, [1, 0, 1, 1, 0, -100]), processor()))
    assert [record["prediction"] for record in records] == ["True", "False", "True", "False", "False", "True"]
    assert [record["score"] for record in records] == [1, 1, 1, 0, 1, None]
    assert records[0] | {"id": "dev-1-0-0", "reference": "True", "statement": "a"} == records[0]
    summary = nlvr.summarize(records)
    assert (summary["accuracy"], summary["count"]) == (0.8, 5)
    assert (summary["consistency"], summary["consistency_se"], summary["statements"]) == (0.5, 0.5, 2)
    assert nlvr.submission(records[:2]) == "dev-1-0-0,True\ndev-2-0-0,False\n"
    for broken in ("a,b", "a\nb"):
        with pytest.raises(UserError, match="has a comma or a line break"):
            nlvr.submission([{**records[0], "id": broken}])
    json.dumps(records)


def test_consistency_needs_all_pairs_of_a_statement(
    nlvr: nlvr2.Nlvr2Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a part of a split, or with broken images: to be right for fewer pairs is easier."""
    samples = [
        statement(1, True, "a"),
        statement(2, True, "a"),
        statement(3, True, "b"),
        statement(4, True, "b"),
    ]
    monkeypatch.setattr(nlvr.data, "samples", lambda split, labelled: samples)
    nlvr.samples("dev")
    wrong, right = [1.0, 0.0], [0.0, 1.0]
    records = nlvr.predict(torch.tensor([wrong, right, right]), batch(samples[1:], [1, 1, 1]), processor())
    summary = nlvr.summarize(records)
    assert (summary["count"], summary["consistency"], summary["statements"]) == (3, 1.0, 1)
    assert "consistency" not in nlvr.summarize(records[:1])


def test_consistency_needs_statements(nlvr: nlvr2.Nlvr2Task) -> None:
    records = nlvr.predict(torch.zeros(1, 2), batch([statement(1, False, None)], [0]), processor())
    assert "consistency" not in nlvr.summarize(records)


def test_rescoring_reads_labels_anew(nlvr: nlvr2.Nlvr2Task) -> None:
    (record,) = nlvr.rescore([{"id": "dev-1-1-0", "prediction": "True"}], "dev")
    assert (record["score"], record["reference"]) == (0.0, "False")
    with pytest.raises(UserError, match="1 of 1 predictions .* split dev does not have, such as id x"):
        nlvr.rescore([{"id": "x", "prediction": "True"}], "dev")
    with pytest.raises(UserError, match="is true, not a text"):
        nlvr.rescore([{"id": "dev-1-1-0", "prediction": True}], "dev")
    (record,) = nlvr.rescore([{"id": "dev-1-1-0", "prediction": "false"}], "dev")
    assert (record["score"], record["prediction"]) == (1.0, "False")
    with pytest.raises(UserError, match='p:3: .*for id dev-1-1-0 is "yes", not one of False, True'):
        nlvr.rescore([StoredRecord({"id": "dev-1-1-0", "prediction": "yes"}, "p:3")], "dev")


def test_two_pictures_per_text_of_the_users_own(nlvr: nlvr2.Nlvr2Task) -> None:
    pictures = [Image.new("RGB", (6, 6), color) for color in ("red", "blue", "blue", "red")]
    inputs = nlvr.inputs(pictures, ["left", "right"], processor("left right"))
    pixels = inputs["pixel_values"]
    assert pixels.shape == (2, 2, 3, 4, 4) and torch.equal(pixels[0, 0], pixels[1, 1])
    with pytest.raises(UserError, match="2 texts need 4 pictures, found 2"):
        nlvr.inputs(pictures[:2], ["left", "right"], processor("left right"))


def test_snli_ve_scores_per_class(tmp_path: Path) -> None:
    one = snli_ve.build(snli_ve.Options(data=section(tmp_path)), print, "classifies")
    labels = ["entailment", "neutral", "contradiction", "contradiction", None]
    samples = [EntailmentSample(f"p{i}", (), "x", label) for i, label in enumerate(labels)]
    said = ["entailment", "entailment", "contradiction", "neutral", "entailment"]
    logits = torch.eye(3)[[one.classes.index(label) for label in said]]
    records = one.predict(logits, batch(samples, [2, 1, 0, 0, -100]), processor())
    summary = one.summarize(records)
    assert (summary["accuracy"], summary["count"]) == (0.5, 4)
    assert {name: part["accuracy"] for name, part in summary["accuracy_by_type"].items()} == {
        "entailment": 1.0,
        "neutral": 0.0,
        "contradiction": 0.5,
    }
    assert one.submission(records).splitlines()[1] == '{"pairID": "p1", "prediction": "entailment"}'
    assert one.classes == ("contradiction", "neutral", "entailment")  # as in METER's write_snli.py
    assert one.form.num_labels == 3 and one.form.text_tokens == 10


def test_confidence_is_the_softmax(tmp_path: Path) -> None:
    one = snli_ve.build(snli_ve.Options(data=section(tmp_path)), print, "classifies")
    logits = torch.tensor([[0.0, math.log(2), 0.0]])
    assert one.answer(logits, processor()) == [("neutral", pytest.approx(0.5))]

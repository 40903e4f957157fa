from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from smarttrim_cli.data.samples import VqaSample
from smarttrim_cli.data.vocab import AnswerVocab
from smarttrim_cli.errors import UserError
from smarttrim_cli.tasks.base import Batch, EmptyBatch
from smarttrim_cli.tasks.records import StoredRecord
from smarttrim_cli.tasks.vqa import Options, VqaTask, build
from tests.tasks.own_data import golden

SCENES = {
    "name": "scenes",
    "image_size": 16,
    "grid": 2,
    "cell_size": 8,
    "object_sizes": [7],
    "max_objects": 4,
}
DATA = {**SCENES, "num_images": {"train": 6, "calibration": 1, "val": 2, "test": 2}}


def task(log: Any = print, **options: Any) -> VqaTask:
    made = build(Options(data=DATA, min_answer_count=1, **options), log, "classifies")
    assert isinstance(made, VqaTask)
    return made


def sample(number: int, *answers: str) -> VqaSample:
    major = max(set(answers), key=answers.count)
    return VqaSample(number, (Path(f"{number}.png"),), "?", number, answers, "what", "other", major)


class Tokens:
    """Stands for a processor: as many zeros as there are words."""

    def batch(self, pixels: Any, texts: Any) -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.stack(pixels), "input_ids": torch.zeros(len(texts), 3)}


def test_loss_is_the_mean_over_instances_of_the_sum_over_answers() -> None:
    one = task()
    one.vocab = AnswerVocab(("a", "b"))
    items = [(sample(1, *["a"] * 10), torch.zeros(3)), (sample(2, *["b"] * 2, *["c"] * 8), torch.zeros(3))]
    batch = one.collate(items, Tokens())  # type: ignore[arg-type]
    assert batch.targets["answers"].tolist() == [[1.0, 0.0], [0.0, pytest.approx(0.6)]]
    assert batch.instance_ids.tolist() == [1, 2] and len(batch) == 2
    loss = one.loss(torch.tensor([[0.0, 0.0], [0.0, math.log(3.0)]]), batch)
    last = -0.6 * math.log(0.75) - 0.4 * math.log(0.25)
    assert float(loss) == pytest.approx((3 * math.log(2) + last) / 2)


def test_loss_is_that_of_the_official_meter() -> None:
    data = golden("meter_tiny.npz")
    batch = Batch({}, torch.arange(3), {"answers": torch.tensor(data["out_vqa_targets"])})
    loss = task().loss(torch.tensor(data["out_vqa_logits"]), batch)
    assert float(loss) == pytest.approx(float(data["out_vqa_loss"]), rel=1e-6)


def test_form_has_a_label_per_answer() -> None:
    one = task(num_answers=7)
    assert (one.form.name, one.form.num_labels, one.form.text_tokens) == ("vqa", 7, 10)
    one.vocab = AnswerVocab(("a", "b"))
    assert one.form.num_labels == 2 and one.form.decoding is None


def test_predictions_and_submission() -> None:
    one = task(types="question_type")
    one.vocab = AnswerVocab(("a", "b"))
    items = [(sample(1, *["a"] * 10), torch.zeros(3)), (sample(2, *["b"], *["c"] * 9), torch.zeros(3))]
    batch = one.collate(items, Tokens())  # type: ignore[arg-type]
    records = one.predict(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), batch, Tokens())  # type: ignore[arg-type]
    assert [record["prediction"] for record in records] == ["a", "b"]
    assert [record["score"] for record in records] == pytest.approx([1.0, 0.3])
    assert records[0] | {"type": "what", "reference": "a", "id": 1} == records[0]
    assert one.submission(records) == [
        {"question_id": 1, "answer": "a"},
        {"question_id": 2, "answer": "b"},
    ]


def test_the_likeliest_of_answers_that_are_all_but_certain() -> None:
    """1 - sigmoid(18) is less than half of float32's step below 1, so both scores are 1.0."""
    one = task()
    one.vocab = AnswerVocab(("a", "b"))
    ((text, score),) = one.answer(torch.tensor([[18.0, 25.0]]), Tokens())  # type: ignore[arg-type]
    assert (text, score) == ("b", 1.0)


def test_broken_images_leave_a_batch() -> None:
    one = task()
    one.vocab = AnswerVocab(("a",))
    batch = one.collate([None, (sample(2, "a"), torch.zeros(3)), None], Tokens())  # type: ignore[arg-type]
    assert batch.instance_ids.tolist() == [2]
    with pytest.raises(EmptyBatch, match="all 2 images of a batch are broken"):
        one.collate([None, None], Tokens())  # type: ignore[arg-type]


def test_roles_and_limits() -> None:
    one = task(splits={"eval": "test"})
    assert one.split_name("eval") == "test" and one.split_name("train2014") == "train2014"
    one.prepare_labels(None)
    everything = one.samples("train")
    assert len(everything) == 24
    some = one.dataset("train", None, limit=4)  # type: ignore[arg-type]
    assert [s.id for s in some.samples] == [everything[i].id for i in (0, 6, 12, 18)]  # type: ignore[attr-defined]


def test_answers_come_from_the_model(tmp_path: Path) -> None:
    (tmp_path / "answers.json").write_text('{"x": 1, "y": 0}', encoding="utf-8")
    one = task()
    one.prepare_labels(tmp_path)
    assert one.form.num_labels == 2 and one.vocab == AnswerVocab(("y", "x"))
    other = tmp_path / "other.json"
    other.write_text(
        '{"x": 0, "y": 1}', encoding="utf-8"
    )  # as many, in another order: answers would be mixed up
    with pytest.raises(UserError, match="not the answers of the model"):
        task(answers=str(other)).prepare_labels(tmp_path)
    task(answers=str(tmp_path / "gone.json")).prepare_labels(tmp_path)
    with pytest.raises(UserError, match="the model's answers are missing"):
        task().prepare_labels(tmp_path / "empty")
    assert not one.data._read  # no data were read


def test_answers_outside_the_vocabulary() -> None:
    messages: list[str] = []
    one = task(messages.append)
    one.vocab = AnswerVocab(("yes", "no"))
    unanswerable = sum(not {"yes", "no"} & set(s.answers or ()) for s in one.samples("train"))
    assert 0 < unanswerable < 24
    one.dataset("train", None, training=True)  # type: ignore[arg-type]
    assert messages[-1].startswith(f"{unanswerable} of 24 questions of split train have no answer")
    one.vocab = AnswerVocab(("zebra",))
    one.dataset("train", None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="none of the 24 questions of split train"):
        one.dataset("train", None, training=True)  # type: ignore[arg-type]


def test_rescoring_takes_what_it_knows_only() -> None:
    one = task()
    known = one.samples("val")[0]
    (record,) = one.rescore([{"id": known.id, "prediction": known.major_answer}], "val")
    assert record["score"] == 1.0
    with pytest.raises(UserError, match="1 of 2 predictions .* such as id -1"):
        one.rescore([{"id": known.id, "prediction": "a"}, {"id": -1, "prediction": "a"}], "val")
    with pytest.raises(UserError, match="p:2: the prediction .* is 3, not a text"):
        one.rescore([StoredRecord({"id": known.id, "prediction": 3}, "p:2")], "val")


def test_own_answers_are_compared_as_they_are_normalised(tmp_path: Path) -> None:
    answers = ["Yes", "Two", "T-shirt", "A"]
    lines = [{"id": n, "image": "1.jpg", "question": "?", "answer": text} for n, text in enumerate(answers)]
    (tmp_path / "val.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    one = build(Options(data={"name": "jsonl", "data_dir": str(tmp_path)}), print, "classifies")
    records = one.rescore([{"id": n, "prediction": text} for n, text in enumerate(answers)], "val")
    assert [record["score"] for record in records] == [1.0] * 4


def test_training_split_without_answers_is_refused_even_if_read_before(tmp_path: Path) -> None:
    """Zero targets used to be trained on if the questions had been read for the tokenizer."""
    folder = task().folder
    assert folder is not None
    files = {"name": "vqa_v2", "data_dir": str(tmp_path), "images_dir": str(folder)}
    questions = "v2_OpenEnded_mscoco_train_questions.json"
    (tmp_path / questions).write_bytes((folder / questions).read_bytes())
    (tmp_path / "answers.json").write_text(json.dumps({"yes": 0}), encoding="utf-8")
    one = build(Options(data=files), print, "classifies")
    one.prepare_labels(tmp_path)
    assert len(one.texts("train")) == 24
    with pytest.raises(UserError, match="split train has .*no answers"):
        one.dataset("train", None, training=True)  # type: ignore[arg-type]

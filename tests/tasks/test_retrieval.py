"""Retrieval: false texts, blocks that cover the matrix, and recalls worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from smarttrim_cli.data.images import BadSample
from smarttrim_cli.data.processor import Processor
from smarttrim_cli.data.samples import CaptionedImage
from smarttrim_cli.engine.loading import BatchesOfOneWidth
from smarttrim_cli.errors import UserError
from smarttrim_cli.forms import Ranking
from smarttrim_cli.tasks._gallery import Gallery, gallery, images_in_blocks
from smarttrim_cli.tasks.base import Batch
from smarttrim_cli.tasks.records import StoredRecord
from smarttrim_cli.tasks.retrieval import Options, RetrievalTask, build
from tests.tasks.own_data import COLORS, golden, processor, section, write_lines, write_pictures

TEXTS = {"red": ["red one", "red two"], "green": ["green one"], "blue": ["blue one", "blue two"]}


def make(folder: Path, **options: Any) -> RetrievalTask:
    write_pictures(folder)
    lines = [{"id": color, "image": f"{color}.png", "captions": texts} for color, texts in TEXTS.items()]
    write_lines(folder, "test", lines)
    more = [{"id": c, "image": f"{c}.png", "captions": [f"{c} {i}" for i in range(5)]} for c in COLORS]
    write_lines(folder, "train", more)
    return build(Options.model_validate({"data": section(folder), **options}), print, "matches")


def words(task: RetrievalTask) -> Processor:
    return processor(*task.texts("test"), *task.texts("train"))


def images(*counts: int) -> list[CaptionedImage]:
    """Images with so many texts each."""
    return [CaptionedImage(i, (), tuple(f"{i} {k}" for k in range(n))) for i, n in enumerate(counts)]


def evaluated(task: RetrievalTask, score: Any, limit: int | None = None, batch_size: int = 2) -> list:
    """Records of split test with ``score(image's place, text's place)`` for the model's."""
    tokens = words(task)
    dataset: Any = task.dataset("test", tokens, limit=limit)
    records = []
    for indices in BatchesOfOneWidth(dataset.width, len(dataset), batch_size):
        items = [dataset[i] for i in indices]
        if not any(items):
            continue
        batch = task.collate(items, tokens)
        output = [[score(block.image, text) for text in block.texts] for block in batch.samples]
        assert batch.inputs["input_ids"].shape[:2] == (len(batch), len(batch.samples[0].texts))
        records += task.predict(torch.tensor(output), batch, tokens)
    return task.finish(records)


# --- training ---


def test_true_text_is_first_and_false_ones_are_of_other_images(tmp_path: Path) -> None:
    task = make(tmp_path, num_false_texts=7)
    tokens = words(task)
    dataset: Any = task.dataset("train", tokens, training=True)
    assert len(dataset) == 30
    batch = task.collate([dataset[i] for i in (0, 13, 29)], tokens, True)
    assert batch.inputs["pixel_values"].shape == (3, 3, 4, 4)
    assert batch.inputs["input_ids"].shape[:2] == batch.inputs["attention_mask"].shape[:2] == (3, 9)
    for pair, row in zip(batch.samples, batch.inputs["input_ids"], strict=True):
        texts = [tokens.decode(ids) for ids in row]
        assert texts[0] == texts[-1] == pair.text and len(set(texts)) == 8
        assert all(text.split()[0] != pair.text.split()[0] for text in texts[1:-1])


def test_half_of_a_batch_is_matched_with_another_image(tmp_path: Path) -> None:
    task = make(tmp_path, num_false_texts=2)
    tokens = words(task)
    dataset: Any = task.dataset("train", tokens, training=True)
    seen = set()
    for first in range(5):
        batch = task.collate([dataset[place] for place in (first, 5 + first, 12, 19, 29)], tokens, True)
        matches, others = batch.targets["matching"].tolist(), batch.inputs["other_images"]
        assert sum(matches) == 2  # of five: the smaller half
        for row, match in enumerate(matches):
            assert torch.equal(others[row], batch.inputs["pixel_values"][row]) == bool(match)
            assert any(torch.equal(others[row], image) for image in batch.inputs["pixel_values"])
        seen.add(tuple(matches))
    assert len(seen) > 1
    again = task.collate([dataset[place] for place in (4, 9, 12, 19, 29)], tokens, True)
    assert torch.equal(again.targets["matching"], batch.targets["matching"])


def test_a_batch_of_one_image_has_no_other(tmp_path: Path) -> None:
    task = make(tmp_path, num_false_texts=2)
    dataset: Any = task.dataset("train", words(task), training=True)
    batch = task.collate([dataset[0], dataset[1]], words(task), True)
    assert batch.targets["matching"].tolist() == [1, 1]
    assert torch.equal(batch.inputs["other_images"], batch.inputs["pixel_values"])


def test_without_the_matching_loss(tmp_path: Path) -> None:
    task = make(tmp_path, num_false_texts=2, matching_weight=0)
    dataset: Any = task.dataset("train", words(task), training=True)
    batch = task.collate([dataset[0], dataset[9]], words(task), True)
    assert set(batch.inputs) == {"pixel_values", "input_ids", "attention_mask"} and not batch.targets
    assert batch.inputs["input_ids"].shape[:2] == (2, 3)


def test_false_texts_depend_on_batch_and_seed_alone() -> None:
    whole = Gallery("x", images(*[5] * 20))
    pairs = whole.pairs()
    batch = [pairs[3], pairs[50]]
    drawn = whole.false_texts(batch, 15, seed=1)
    assert whole.false_texts(batch, 15, seed=1) == drawn
    others = (whole.false_texts(batch, 15, 2), whole.false_texts(batch[::-1], 15, 1)[::-1])
    assert all(other != drawn for other in others)
    assert all(len(set(row)) == 15 for row in drawn)
    assert not {0, 1, 2, 3, 4} & set(drawn[0]) and not {50, 51, 52, 53, 54} & set(drawn[1])


def test_false_texts_are_spread_over_all_others() -> None:
    """95 texts of other images, 15 of them in each of 400 batches: 63 each, on average."""
    whole = Gallery("x", images(*[5] * 20))
    pairs = whole.pairs()
    counts = np.zeros(100)
    for other in range(5, 85):
        for seed in range(5):
            counts[whole.false_texts([pairs[0], pairs[other]], 15, seed)[0]] += 1
    assert counts[:5].sum() == 0 and counts.sum() == 6000
    assert abs(counts[5:] - 6000 / 95).max() < 5 * math.sqrt(6000 / 95)


def test_batches_of_workers_are_the_same(tmp_path: Path) -> None:
    task = make(tmp_path, num_false_texts=3)
    tokens = words(task)
    dataset: Any = task.dataset("train", tokens, training=True)
    batches = [[0, 7, 9], [29, 1, 2]]
    collate = Collate(task, tokens)
    loaders = [DataLoader(dataset, batch_sampler=batches, num_workers=n, collate_fn=collate) for n in (0, 2)]
    for one, other in zip(*loaders, strict=True):
        assert torch.equal(one.inputs["input_ids"], other.inputs["input_ids"])


class Collate:
    def __init__(self, task: RetrievalTask, tokens: Processor) -> None:
        self.task, self.tokens = task, tokens

    def __call__(self, items: list) -> Batch:
        return self.task.collate(items, self.tokens, True)


def test_loss_by_hand_and_as_the_official_meter(tmp_path: Path) -> None:
    task = make(tmp_path)
    scores = torch.tensor([[math.log(2), 0.0, 0.0], [0.0, 0.0, 0.0]])
    batch = Batch({}, torch.arange(2), {})
    assert float(task.loss(scores, batch)) == pytest.approx((math.log(2) + math.log(3)) / 2)
    assert task.logits(scores, batch) is scores
    data = golden("meter_tiny.npz")
    loss = task.loss(torch.tensor(data["out_irtr_scores"]), batch)
    assert float(loss) == pytest.approx(float(data["out_irtr_loss"]), abs=1e-6)


def test_matching_loss_is_added(tmp_path: Path) -> None:
    scores = torch.tensor([[math.log(2), 0.0, 0.0], [0.0, 0.0, 0.0]])
    matching = torch.tensor([[0.0, math.log(3)], [0.0, math.log(4)]])
    batch = Batch({}, torch.arange(2), {"matching": torch.tensor([1, 0])})
    ranking = (math.log(2) + math.log(3)) / 2
    both = (-math.log(3 / 4) - math.log(1 / 5)) / 2
    task = make(tmp_path)
    assert float(task.loss(Ranking(scores, matching), batch)) == pytest.approx(ranking + both)
    assert task.logits(Ranking(scores, matching), batch) is scores
    halved = make(tmp_path, matching_weight=0.5)
    assert float(halved.loss(Ranking(scores, matching), batch)) == pytest.approx(ranking + both / 2)


def test_too_few_texts_of_others(tmp_path: Path) -> None:
    task = make(tmp_path, num_false_texts=26)
    with pytest.raises(UserError, match="30 texts do not give 26 of other images"):
        task.dataset("train", words(task), training=True)


# --- evaluation ---


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16])
def test_blocks_cover_the_matrix(tmp_path: Path, size: int) -> None:
    task = make(tmp_path, block_size=size)
    dataset: Any = task.dataset("test", words(task))
    blocks = [dataset.block(index) for index in range(len(dataset))]
    assert [(block.image, text) for block in blocks for text in block.texts] == [
        (image, text) for image in range(3) for text in range(5)
    ]
    assert [len(block.texts) for block in blocks] == [dataset.width(index) for index in range(len(dataset))]
    assert max(len(block.texts) for block in blocks) == len(blocks[0].texts) <= size
    assert [block.image for block in blocks] == sorted(block.image for block in blocks)
    assert len({block.id for block in blocks}) == len(blocks)


def test_ranks_and_recalls_by_hand(tmp_path: Path) -> None:
    """Texts 0 1 are red's, 2 green's, 3 4 blue's. Rows are images.

    Red finds its best text first; green's comes second, behind text 0; blue's third, behind texts 0 and 1. Of
    the texts, 0, 2 and 3 have their image first; 1 second, behind blue; 4 last, as the tie with green counts
    against it.
    """
    matrix = [[9, 1, 0, 2, 3], [5, 0, 4, 1, 1], [5, 6, 3, 4, 1]]
    task = make(tmp_path, block_size=2)
    records = evaluated(task, lambda image, text: float(matrix[image][text]))
    assert [record["prediction"] for record in records] == [(1, 1, 2), (2, 1), (3, 1, 3)]
    assert [record["id"] for record in records] == ["red", "green", "blue"]
    assert [record["best_text"] for record in records] == ["red one", "red one", "red two"]
    summary = task.summarize(records)
    assert summary["image_to_text_recall@1"] == pytest.approx(1 / 3)
    assert summary["text_to_image_recall@1"] == pytest.approx(3 / 5)
    assert summary["text_to_image_recall@5"] == summary["image_to_text_recall@10"] == 1
    assert summary["mean_recall"] == pytest.approx((1 / 3 + 1 + 1 + 3 / 5 + 1 + 1) / 6)
    assert summary["mean_recall"] == pytest.approx(sum(record["score"] for record in records) / 3)
    assert (summary["images"], summary["texts"], summary["scored_pairs"], summary["count"]) == (3, 5, 15, 3)
    assert summary["mean_recall_se"] > 0 and summary["text_to_image_recall@1_se"] > 0
    json.dumps(records)


def test_a_perfect_model_and_one_without_an_opinion(tmp_path: Path) -> None:
    task = make(tmp_path)
    owner = [0, 0, 1, 2, 2]
    right = task.summarize(evaluated(task, lambda image, text: float(owner[text] == image)))
    assert right["mean_recall"] == 1
    flat = task.summarize(evaluated(task, lambda image, text: 0.5))
    assert flat["image_to_text_recall@1"] == flat["text_to_image_recall@1"] == 0


def test_broken_picture_leaves_the_matrix_with_its_texts(tmp_path: Path) -> None:
    task = make(tmp_path, on_bad_sample="skip", block_size=2)
    (tmp_path / "green.png").write_bytes(b"")
    matrix = [[9, 8, 99, 0, 0], [], [7, 1, 99, 8, 9]]
    records = evaluated(task, lambda image, text: float(matrix[image][text]), batch_size=3)
    assert [(record["id"], record["prediction"]) for record in records] == [
        ("red", (1, 1, 1)),
        ("blue", (1, 1, 1)),
    ]
    summary = task.summarize(records)
    assert (summary["images"], summary["texts"], summary["scored_pairs"]) == (2, 4, 8)
    strict = make(tmp_path)
    (tmp_path / "green.png").write_bytes(b"")
    with pytest.raises(BadSample):
        evaluated(strict, lambda image, text: 0.0)


@pytest.mark.parametrize(
    ("limit", "number"),
    [(None, 20), (140, 20), (139, 19), (28, 9), (27, 9), (26, 8), (4, 3), (2, 2), (1, 1)],
)
def test_limit_on_blocks_takes_fewer_images(limit: int | None, number: int) -> None:
    """5 texts per image, blocks of 16: an image has 7 blocks if there are 20, 3 if there are 9, 1 with 3."""
    assert images_in_blocks(images(*[5] * 20), limit, 16) == number
    assert number * math.ceil(5 * number / 16) <= (limit or math.inf)
    chosen = gallery("test", images(*[5] * 20), number)
    assert len(chosen.images) == number and chosen.name == (
        "test" if number == 20 else f"test, {number} images"
    )


def test_limited_evaluation_is_complete(tmp_path: Path) -> None:
    task = make(tmp_path, block_size=2)
    records = evaluated(task, lambda image, text: 0.0, limit=4)
    assert [record["id"] for record in records] == ["red", "green"]
    assert task.summarize(records)["scored_pairs"] == 2 * 3


def test_rescoring_takes_stored_ranks(tmp_path: Path) -> None:
    task = make(tmp_path)
    records = evaluated(task, lambda image, text: float((image * 5 + text * 3) % 7))
    stored = json.loads(json.dumps(records))
    again = task.rescore(stored, "test")
    assert [record["score"] for record in again] == [record["score"] for record in records]
    summary = task.summarize(again)
    assert summary["mean_recall"] == task.summarize(records)["mean_recall"] and "scored_pairs" not in summary
    with pytest.raises(UserError, match="for id green is .*, not the rank of the best text .* and 1 ranks"):
        task.rescore([{"id": "green", "prediction": [1, 2, 3]}], "test")
    for rank in ("a", -3, [1], 1.5, True, 4, 10**400):
        with pytest.raises(UserError, match="not the rank of the best text"):
            task.rescore([{"id": "green", "prediction": [1, rank]}], "test")
    with pytest.raises(UserError, match=r"p:7: .*best text \(1 to 5\) and 1 ranks of the image \(1 to 3\)"):
        task.rescore([StoredRecord({"id": "green", "prediction": [6, 1]}, "p:7")], "test")
    assert task.rescore([{"id": "green", "prediction": [5, None]}], "test")[0]["prediction"] == (5, None)
    with pytest.raises(UserError, match="such as id x"):
        task.rescore([{"id": "x", "prediction": [1, 1]}], "test")


def test_there_is_no_submission(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no official submission format"):
        make(tmp_path).submission([])
    with pytest.raises(UserError, match="no official submission format"):
        make(tmp_path).check_submission([])


def test_images_need_texts() -> None:
    with pytest.raises(UserError, match="image 1 has no text"):
        gallery("test", images(2, 0, 1))


def test_pictures_of_the_users_own(tmp_path: Path) -> None:
    task = make(tmp_path)
    inputs = task.inputs([Image.new("RGB", (3, 3))] * 2, ["red one", "blue"], words(task))
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (2, 1, 4)
    answers = task.answer(torch.tensor([[0.0], [math.log(3)]]), words(task))
    assert answers == [("score 0.000", 0.5), ("score 1.099", pytest.approx(0.75))]
    assert (task.form.name, task.form.text_tokens) == ("retrieval", 14)

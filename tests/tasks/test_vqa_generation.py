"""VQA with a backbone that generates: losses worked out by hand and against the official BLIP."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from smarttrim_cli.data.processor import Processor
from smarttrim_cli.data.samples import VqaSample
from smarttrim_cli.data.vocab import AnswerVocab
from smarttrim_cli.errors import UserError
from smarttrim_cli.tasks._generation import next_tokens, target_rows, token_losses
from smarttrim_cli.tasks._vqa_generation import GenerativeVqa, annotated_answers
from smarttrim_cli.tasks.base import Batch
from smarttrim_cli.tasks.vqa import Options, build
from tests.tasks.own_data import golden, processor, section, write_lines, write_pictures

ANSWERS = ("yes", "no", "two red")
PIXELS = torch.zeros(3, 4, 4)


def words() -> Processor:
    return processor("what is it?", *ANSWERS)


def task(folder: Path, **options: Any) -> GenerativeVqa:
    made = build(Options(data=section(folder), **options), print, "generates")
    assert isinstance(made, GenerativeVqa)
    made.vocab = AnswerVocab(ANSWERS)
    return made


def sample(number: int, *answers: str) -> VqaSample:
    return VqaSample(number, (), "what is it?", number, answers, "what", "other", answers[0])


def asked() -> list[tuple[VqaSample, torch.Tensor]]:
    return [(sample(1, *["yes"] * 7, *["no"] * 3), PIXELS), (sample(2, *["two red"] * 10), PIXELS)]


def test_targets_are_the_next_real_tokens() -> None:
    ids = torch.tensor([[[0, 7, 8, 2], [0, 9, 2, 1]]])
    mask = torch.tensor([[[1, 1, 1, 1], [1, 1, 1, 0]]])
    assert next_tokens(ids, mask).tolist() == [[[7, 8, 2], [9, 2, -100]]]
    assert next_tokens(ids, mask, given=2).tolist() == [[[-100, 8, 2], [-100, 2, -100]]]


def test_smoothed_loss_by_hand() -> None:
    """Position t is right about token t + 1 with odds 3 : 1 : 1 : 1, so p = 1/2, 1/6, 1/6, 1/6."""
    ids = torch.tensor([[[0, 3, 2]]])
    targets = next_tokens(ids, torch.ones_like(ids))
    logits = F.one_hot(targets, 4).float() * math.log(3)
    logits = F.pad(logits, (0, 0, 0, 1))  # what follows the last token is nobody's target
    half, sixth = math.log(2), math.log(6)
    one = 0.9 * half + 0.1 * (half + 3 * sixth) / 4
    assert token_losses(logits, targets).tolist() == [[[pytest.approx(one)] * 2]]
    assert torch.equal(target_rows(logits, targets), logits[0, 0, :2])


def test_loss_is_that_of_the_official_blip(tmp_path: Path) -> None:
    """Three answers to the first question and two to the second, laid out in (B, A, T)."""
    data = golden("blip_vqa_tiny.npz")
    logits = torch.zeros(2, 3, *data["out_train_logits"].shape[1:])
    ids, mask, weights = torch.zeros(2, 3, 5).long(), torch.zeros(2, 3, 5).long(), torch.zeros(2, 3)
    for row, (question, answer) in enumerate(((0, 0), (0, 1), (0, 2), (1, 0), (1, 1))):
        logits[question, answer] = torch.tensor(data["out_train_logits"][row])
        ids[question, answer] = torch.tensor(data["in_train_answer_ids"][row])
        mask[question, answer] = torch.tensor(data["in_train_answer_mask"][row])
        weights[question, answer] = float(data["in_train_weights"][row])
    batch = Batch({}, torch.arange(2), {"answers": next_tokens(ids, mask), "weights": weights})
    loss = task(tmp_path).loss(logits, batch)
    assert float(loss) == pytest.approx(float(data["out_train_loss"]), rel=1e-6)
    per_answer = token_losses(logits, batch.targets["answers"]).sum(-1)[weights > 0]
    torch.testing.assert_close(per_answer, torch.tensor(data["out_train_loss_per_answer"]))


def test_distinct_answers_with_their_shares(tmp_path: Path) -> None:
    tokens = words()
    ids, mask, weights = annotated_answers([s for s, _ in asked()], tokens)
    assert ids.shape == mask.shape == (2, 2, 4)
    assert weights.tolist() == [[pytest.approx(0.7), pytest.approx(0.3)], [1.0, 0.0]]
    assert mask.sum(-1).tolist() == [[3, 3], [4, 0]]  # start, words, end; no second answer
    assert [tokens.decode(row) for row in (ids[0, 0], ids[0, 1], ids[1, 0])] == ["yes", "no", "two red"]


def test_annotators_who_said_nothing_teach_nothing() -> None:
    """An empty text as the commonest answer used to be learned."""
    tokens = words()
    ids, mask, weights = annotated_answers([sample(1, *["yes"] * 4, *[""] * 5, " ")], tokens)
    assert [tokens.decode(row) for row in ids[0]] == ["yes"]
    assert weights.tolist() == [[pytest.approx(0.4)]] and mask.sum(-1).tolist() == [[3]]
    _, mask, weights = annotated_answers([sample(2, "")], tokens)
    assert weights.tolist() == [[0.0]] and not mask.any()


def test_training_batch_and_weighted_loss_by_hand(tmp_path: Path) -> None:
    """With equal logits every target costs log V: (0.7 * 2 + 0.3 * 2 + 1 * 3) targets over two questions."""
    one, tokens = task(tmp_path), words()
    batch = one.collate(asked(), tokens, True)
    assert set(batch.inputs) == {"pixel_values", "input_ids", "attention_mask", "answer_ids", "answer_mask"}
    size = len(tokens.tokenizer)
    logits = torch.zeros(2, 2, 4, size)
    assert float(one.loss(logits, batch)) == pytest.approx(5 / 2 * math.log(size))
    assert one.logits(logits, batch).shape == (7, size)


def test_ranking_takes_the_best_candidate(tmp_path: Path) -> None:
    one, tokens = task(tmp_path), words()
    batch = one.collate(asked(), tokens)
    assert batch.inputs["candidate_ids"].shape == batch.inputs["candidate_mask"].shape == (3, 4)
    assert [tokens.decode(row) for row in batch.inputs["candidate_ids"]] == list(ANSWERS)
    scores = torch.tensor([[-1.0, -math.inf, -1.0 - math.log(3)], [-math.inf, -7.0, -math.inf]])
    assert one.answer(scores, tokens) == [("yes", pytest.approx(0.75)), ("no", 1.0)]
    records = one.predict(scores, batch, tokens)
    assert [record["score"] for record in records] == [1.0, 0.0]
    assert one.submission(records) == [
        {"question_id": 1, "answer": "yes"},
        {"question_id": 2, "answer": "no"},
    ]


def test_ranks_are_those_of_the_official_blip(tmp_path: Path) -> None:
    """Scores as a backbone gives them: -inf for what the first token did not pre-select."""
    data = golden("blip_vqa_tiny.npz")
    one = task(tmp_path)
    one.vocab = AnswerVocab(tuple(data["in_candidates"].tolist()))
    for k in (3, 7):
        scores = torch.full((2, 7), -math.inf)
        scores.scatter_(1, *(torch.tensor(data[f"out_rank_{n}_k{k}"]) for n in ("topk_ids", "logprob_sum")))
        expected = [data["in_candidates"][index] for index in data[f"out_rank_ids_k{k}"]]
        assert [text for text, _ in one.answer(scores, words())] == expected


def test_written_answers_are_decoded(tmp_path: Path) -> None:
    one, tokens = task(tmp_path, inference="generate"), words()
    batch = one.collate(asked(), tokens)
    assert "candidate_ids" not in batch.inputs
    start = len(tokens.tokenizer)  # the model's own token
    written, _ = tokens.tokens(["two red", "no"])
    written[:, 0] = start
    (first, confidence), (second, _) = one.answer(written, tokens)
    assert (first, second) == ("two red", "no") and math.isnan(confidence)


def test_form_says_how_to_decode(tmp_path: Path) -> None:
    one = task(tmp_path)
    decoding = one.form.decoding
    assert (
        decoding is not None and decoding.rank and decoding.num_candidates == 3
    )  # there are no more answers
    assert (decoding.num_beams, decoding.max_length, decoding.min_length) == (3, 10, 1)
    assert (one.form.text_tokens, one.form.new_tokens, one.form.prompt_tokens) == (10, 4, 1)
    one.vocab = None
    assert one.form.decoding is not None and one.form.decoding.num_candidates == 128
    written = task(tmp_path, inference="generate", num_beams=1).form.decoding
    assert written is not None and not written.rank and written.num_beams == 1


def test_what_writes_needs_no_frequent_answers(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["red"])
    lines = [{"image": "red.png", "question": "?", "answer": f"a {n}"} for n in (2, 1, 2)]
    write_lines(tmp_path, "train", lines)
    written = task(tmp_path, inference="generate")
    written.prepare_labels(None)
    assert written.answers == ("2", "1")
    written = task(tmp_path, inference="generate", min_answer_count=2)
    written.prepare_labels(None)
    assert written.answers == ("2",)
    with pytest.raises(UserError, match="no answer is the major one of at least 9"):
        task(tmp_path).prepare_labels(None)


def test_tokenizer_learns_answers_too(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["red"])
    line = {"image": "red.png", "question": "what is it?"}
    write_lines(tmp_path, "train", [{**line, "answers": ["red", "red", "ruby"]}, {**line, "answer": "rose"}])
    one = task(tmp_path)
    assert one.texts("train") == ["what is it?"] * 2 + ["no", "red", "rose", "ruby", "two red", "yes"]
    assert one.questions("train") == ["what is it?"] * 2


def test_users_own_question_comes_with_the_candidates(tmp_path: Path) -> None:
    picture = Image.new("RGB", (5, 5))
    inputs = task(tmp_path).inputs([picture], ["what is it?"], words())
    assert inputs["candidate_ids"].shape == (3, 4) and inputs["pixel_values"].shape == (1, 3, 4, 4)
    inputs = task(tmp_path, inference="generate").inputs([picture], ["what is it?"], words())
    assert "candidate_ids" not in inputs


def test_answers_outside_the_vocabulary_are_said_where_answers_are_ranked(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    lines = [{"image": "red.png", "question": "?", "answer": answer} for answer in ("yes", "maybe")]
    write_lines(tmp_path, "train", lines)
    said: list[str] = []
    for inference in ("rank", "generate"):
        options = Options.model_validate({"data": section(tmp_path), "inference": inference})
        made = build(options, said.append, "generates")
        made.vocab = AnswerVocab(ANSWERS)
        made.dataset("train", words(), training=True)
    assert said == [
        "1 of 2 questions of split train have no answer in the vocabulary: nothing is right for them"
    ]
    write_lines(tmp_path, "train", lines[1:])
    with pytest.raises(UserError, match="none of the 1 questions"):
        task(tmp_path).dataset("train", words(), training=True)

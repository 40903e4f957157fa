"""What the two kinds of VQA share: recipe keys, the vocabulary of answers, records and submissions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset

from smarttrim_cli.data.processor import Processor
from smarttrim_cli.data.samples import VqaSample
from smarttrim_cli.data.vocab import AnswerVocab
from smarttrim_cli.errors import UserError
from smarttrim_cli.metrics.vqa_accuracy import plain_answer, vqa_accuracy
from smarttrim_cli.tasks._data import DataOptions, Item, instance_ids, usable
from smarttrim_cli.tasks._task import DataTask
from smarttrim_cli.tasks.base import Batch, Record

FORM = "vqa"
_ANSWERS_FILE = "answers.json"


class Options(DataOptions):
    """Recipe section of this task."""

    form_name: ClassVar[str] = FORM
    answers: str | None = Field(
        default=None,
        description="JSON file {answer: index} for a new model; null: from the training data",
    )
    min_answer_count: int = Field(default=9, ge=1, description="answers rarer than this are no class")
    num_answers: int = Field(
        default=3129, ge=2, le=1_000_000, description="number of answers of a model built without data"
    )
    types: Literal["question_type", "answer_type"] = Field(
        default="answer_type", description="what accuracy is broken down by"
    )
    inference: Literal["rank", "generate"] = Field(
        default="rank",
        description="a backbone that generates chooses among all answers, or writes one",
    )
    num_candidates: int = Field(
        default=128, ge=1, le=1_000_000, description="rank: answers that the first token leaves"
    )
    num_beams: int = Field(default=3, ge=1, le=1000, description="generate: beams")
    max_length: int = Field(
        default=10, ge=2, le=10_000, description="generate: most tokens, the start token included"
    )
    min_length: int = Field(default=1, ge=1, le=10_000, description="generate: fewest tokens")


class AnswerTask(DataTask):
    """A task with a vocabulary of answers; a subclass adds form, collation and loss."""

    filler = ""

    def __init__(self, options: Options, log: Callable[[str], None]) -> None:
        super().__init__(options, log)
        self.vocab: AnswerVocab | None = None

    # --- answers ---

    def prepare_labels(self, folder: Path | None) -> None:
        """Answers of a model from its folder, else the recipe's file; of a new one from that or the data.

        Raises:
            UserError: The model has none, or others than the recipe.
        """
        if folder is not None and (folder / _ANSWERS_FILE).exists():
            self.vocab = AnswerVocab.load(folder / _ANSWERS_FILE)
            self._refuse_other_answers(folder)
        elif self.options.answers is not None:
            self.vocab = AnswerVocab.load(Path(self.options.answers))
        elif folder is not None:
            raise UserError(
                "the model's answers are missing",
                where=str(folder / _ANSWERS_FILE),
                hint="task.answers=FILE names a JSON file {answer: index} to take instead",
            )
        else:
            self.vocab = self.new_vocab(self.samples(self.split_name("train"), labelled=True))

    def new_vocab(self, samples: Sequence[VqaSample]) -> AnswerVocab:
        """The answers of a model that has none yet.

        Raises:
            UserError: None is frequent enough.
        """
        return AnswerVocab.from_samples(samples, self.options.min_answer_count)

    def _refuse_other_answers(self, folder: Path) -> None:
        """The recipe's file has to agree with the model; it may be absent, as beside exports."""
        file = Path(self.options.answers or "")
        if self.options.answers and file.exists() and AnswerVocab.load(file) != self.vocab:
            raise UserError(
                f"not the answers of the model in {folder}, which has {len(self.answers)} of its own",
                where=f"task.answers, {file}",
                hint="leave it out: with a model, the answers come from there",
            )

    def save_labels(self, folder: Path) -> None:
        """Write ``answers.json``."""
        self.known.save(folder / _ANSWERS_FILE)

    @property
    def answers(self) -> tuple[str, ...]:
        """The answer vocabulary, in the order of its indices."""
        return self.known.answers

    @property
    def known(self) -> AnswerVocab:
        """The answer vocabulary, once there is one."""
        if self.vocab is None:
            raise RuntimeError("prepare_labels was not called")
        return self.vocab

    @property
    def ranks(self) -> bool:
        """Whether answers are chosen from the vocabulary, not written."""
        return True

    # --- batches, predictions, scores ---

    def dataset(
        self, split: str, processor: Processor, *, limit: int | None = None, training: bool = False
    ) -> Dataset[Any]:
        """Questions of a split; ``limit`` takes so many, spread evenly. Training needs answers."""
        if training and self.ranks:
            self._count_unanswerable(self.samples(split, labelled=True), split)
        return super().dataset(split, processor, limit=limit, training=training)

    def _count_unanswerable(self, samples: Sequence[VqaSample], split: str) -> None:
        """Say how many questions have no answer that the model can give; refuse if none has."""
        missing = self.known.count_unanswerable(samples)
        if missing == len(samples):
            raise UserError(
                f"none of the {missing} questions of split {split} has an answer in the vocabulary "
                f"(such as {samples[0].answers[0]!r})",  # type: ignore[index]
                where="task",
                hint="the model's answers.json, or task.answers, is of other data",
            )
        if missing:
            self.log(
                f"{missing} of {len(samples)} questions of split {split} have no answer in the vocabulary: "
                "nothing is right for them"
            )

    def asked(self, items: Sequence[Item | None], processor: Processor) -> Batch:
        """A batch with images and questions, but no targets."""
        good = usable(items)
        samples = [sample for sample, _ in good]
        questions = [self.clean(sample.text) for sample in samples]
        inputs = processor.batch([pixels for _, pixels in good], questions)
        return Batch(inputs, instance_ids([sample.id for sample in samples]), {}, samples)

    def predict(self, output: Tensor, batch: Batch, processor: Processor) -> list[Record]:
        """The likeliest answer of every question."""
        answers = self.answer(output, processor)
        return [self.record(sample, text) for sample, (text, _) in zip(batch.samples, answers, strict=True)]

    @abstractmethod
    def answer(self, output: Tensor, processor: Processor) -> list[tuple[str, float]]:
        """Answers without references, each with the model's confidence."""

    def record(self, sample: VqaSample, prediction: str) -> Record:
        """The record of a sample's answer, with its VQA accuracy."""
        compared = plain_answer(prediction) if sample.normalized else prediction
        return {
            "id": sample.id,
            "type": getattr(sample, self.options.types) or "all",
            "question": sample.text,
            "prediction": prediction,
            "reference": sample.major_answer,
            "score": None if sample.answers is None else vqa_accuracy(compared, sample.answers),
        }

    def submission(self, records: Sequence[Record]) -> list[dict[str, Any]]:
        """The official result format: ``[{question_id, answer}, ...]``."""
        return [{"question_id": record["id"], "answer": record["prediction"]} for record in records]

"""Visual question answering as classification over a vocabulary of answers (VQA v2 and its layout).

Loss as in METER: binary cross-entropy with soft targets, mean times the number of answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn
from torch.utils.data import Dataset

from smarttrim_cli import registry
from smarttrim_cli.data import vqa_v2
from smarttrim_cli.data.images import BadSample, load_rgb
from smarttrim_cli.data.processor import Processor
from smarttrim_cli.data.vocab import AnswerVocab
from smarttrim_cli.data.vqa_v2 import VqaSample
from smarttrim_cli.errors import UserError
from smarttrim_cli.metrics.vqa_accuracy import vqa_accuracy
from smarttrim_cli.tasks.base import Batch, EmptyBatch, Record

_ANSWERS_FILE = "answers.json"
Item = tuple[VqaSample, Tensor]


class Splits(BaseModel):
    """Which split of the data plays which role."""

    model_config = ConfigDict(extra="forbid")
    train: str = Field(default="train", description="trained on")
    eval: str = Field(default="val", description="evaluated on during training")
    test: str = Field(default="test", description="held out")
    calibration: str = Field(default="calibration", description="the budget is calibrated on it")


class Options(BaseModel):
    """Recipe section of this task."""

    model_config = ConfigDict(extra="forbid")
    data: dict[str, Any] = Field(description="{name: scenes, ...} or {name: vqa_v2, data_dir: ...}")
    splits: Splits = Field(default=Splits(), description="names of the splits")
    answers: str | None = Field(
        default=None,
        description="JSON file {answer: index} for a new model; null: from the training data",
    )
    min_answer_count: int = Field(default=9, ge=1, description="answers rarer than this are no class")
    num_answers: int = Field(
        default=3129, ge=2, description="number of answers of a model built without data"
    )
    types: Literal["question_type", "answer_type"] = Field(
        default="answer_type", description="what accuracy is broken down by"
    )
    on_bad_sample: Literal["error", "skip"] = Field(default="error", description="what a broken image does")

    @field_validator("data")
    @classmethod
    def _data_is_valid(cls, section: dict[str, Any]) -> dict[str, Any]:
        registry.options("data", section)
        return section


class VqaDataset(Dataset[Item]):
    """Samples with their decoded image; an item is None where a broken image is skipped."""

    def __init__(self, samples: Sequence[VqaSample], processor: Processor, skip_bad: bool) -> None:
        self.samples, self.processor, self.skip_bad = samples, processor, skip_bad

    def __len__(self) -> int:
        """Number of questions."""
        return len(self.samples)

    def __getitem__(self, index: int) -> Item | None:  # type: ignore[override]
        """Decode one image."""
        sample = self.samples[index]
        try:
            image = load_rgb(sample.image_path, sample_id=sample.question_id)
        except BadSample:
            if self.skip_bad:
                return None
            raise
        return sample, self.processor.preprocess(image)


class VqaTask:
    """See :class:`smarttrim_cli.tasks.base.Task`."""

    metric = "accuracy"

    def __init__(self, options: Options, log: Callable[[str], None]) -> None:
        self.options = options
        self.log = log
        self.vocab: AnswerVocab | None = None
        self._folder: Path | None = None
        self._cache: dict[str, list[VqaSample]] = {}

    @property
    def folder(self) -> Path:
        """Folder with the data in VQA v2 layout; scenes are generated when it is first asked for."""
        if self._folder is None:
            section = self.options.data
            options = registry.options("data", section)
            self._folder = registry.load("data", section["name"]).locate(options, self.log)
        return self._folder

    def split_name(self, role: str) -> str:
        """The split for a role; names that are no role are splits themselves."""
        return str(getattr(self.options.splits, role, role))

    def samples(self, split: str, *, require_answers: bool = False) -> list[VqaSample]:
        """Questions of a split, read once."""
        if split not in self._cache or (require_answers and self._cache[split][0].answers is None):
            images = self.options.data.get("images_dir")
            self._cache[split] = vqa_v2.read(
                self.folder, split, require_answers=require_answers, images_dir=images
            )
        return self._cache[split]

    def texts(self, split: str) -> list[str]:
        """Questions, for training a tokenizer."""
        return [sample.question for sample in self.samples(split)]

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
            samples = self.samples(self.split_name("train"), require_answers=True)
            self.vocab = AnswerVocab.from_samples(samples, self.options.min_answer_count)

    def _refuse_other_answers(self, folder: Path) -> None:
        """The recipe's file has to agree with the model; it may be absent, as beside exports."""
        file = Path(self.options.answers or "")
        if self.options.answers and file.exists() and AnswerVocab.load(file) != self.vocab:
            raise UserError(
                f"not the answers of the model in {folder}, which has {self.num_labels} of its own",
                where=f"task.answers, {file}",
                hint="leave it out: with a model, the answers come from there",
            )

    def save_labels(self, folder: Path) -> None:
        """Write ``answers.json``."""
        self._vocab().save(folder / _ANSWERS_FILE)

    def _vocab(self) -> AnswerVocab:
        if self.vocab is None:
            raise RuntimeError("prepare_labels was not called")
        return self.vocab

    @property
    def num_labels(self) -> int:
        """Number of answers."""
        return len(self._vocab())

    def dataset(
        self, split: str, processor: Processor, *, limit: int | None = None, training: bool = False
    ) -> Dataset[Any]:
        """Questions of a split; ``limit`` takes so many, spread evenly. Training needs answers."""
        samples = self.samples(split, require_answers=training)
        if training:
            self._count_unanswerable(samples, split)
        if limit is not None and limit < len(samples):
            samples = [samples[index * len(samples) // limit] for index in range(limit)]
        return VqaDataset(samples, processor, self.options.on_bad_sample == "skip")

    def _count_unanswerable(self, samples: Sequence[VqaSample], split: str) -> None:
        """Say how many questions have no answer that the model can give; refuse if none has."""
        missing = self._vocab().count_unanswerable(samples)
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

    def collate(self, items: Sequence[Item | None], processor: Processor) -> Batch:
        """Pad texts, stack images, lay out soft targets (B, answers)."""
        good = [item for item in items if item is not None]
        if not good:
            raise EmptyBatch(
                f"all {len(items)} images of a batch are broken, so there is nothing to skip to",
                where="task.on_bad_sample",
                hint="on_bad_sample: error names the first of them",
            )
        samples = [sample for sample, _ in good]
        inputs = processor.batch([pixels for _, pixels in good], [sample.question for sample in samples])
        targets = torch.zeros(len(good), self.num_labels)
        for row, sample in enumerate(samples):
            for index, value in self._vocab().soft_targets(sample.answers or ()).items():
                targets[row, index] = value
        ids = torch.tensor([sample.question_id for sample in samples])
        return Batch(inputs, ids, {"answers": targets}, samples)

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Binary cross-entropy with soft targets, mean over instances of the sum over answers (METER)."""
        targets = batch.targets["answers"]
        return F.binary_cross_entropy_with_logits(logits.float(), targets) * targets.shape[1]

    def auxiliary(self, backbone: nn.Module, processor: Processor) -> nn.Module | None:
        """None: the answers alone."""
        return None

    def predict(self, logits: Tensor, batch: Batch) -> list[Record]:
        """The likeliest answer of every question."""
        answers = [self._vocab().answers[index] for index in logits.argmax(-1).tolist()]
        return [self._record(sample, answer) for sample, answer in zip(batch.samples, answers, strict=True)]

    def answer(self, logits: Tensor) -> list[tuple[str, float]]:
        """Likeliest answers of logits (B, answers), with their sigmoid: every answer has its own target."""
        best_B, index_B = torch.sigmoid(logits.float()).max(-1)
        answers = self._vocab().answers
        return [(answers[i], score) for i, score in zip(index_B.tolist(), best_B.tolist(), strict=True)]

    def rescore(self, records: Sequence[Record], split: str) -> list[Record]:
        """Score stored predictions against the split's annotations."""
        by_id = {sample.question_id: sample for sample in self.samples(split)}
        unknown = [record["id"] for record in records if record["id"] not in by_id]
        if unknown:
            raise UserError(
                f"{len(unknown)} of {len(records)} predictions are for questions that split {split} does not "
                f"have, such as question_id {unknown[0]}",
                where=str(self.folder),
                hint="name the split they were made on with --split",
            )
        odd = next((record for record in records if not isinstance(record["prediction"], str)), None)
        if odd is not None:
            text = f"the prediction for question_id {odd['id']} is {odd['prediction']!r}, not a text"
            raise UserError(text)
        return [self._record(by_id[record["id"]], record["prediction"]) for record in records]

    def _record(self, sample: VqaSample, answer: str) -> Record:
        return {
            "id": sample.question_id,
            "type": getattr(sample, self.options.types) or "all",
            "question": sample.question,
            "prediction": answer,
            "reference": sample.major_answer,
            "score": None if sample.answers is None else vqa_accuracy(answer, sample.answers),
        }

    def submission(self, records: Sequence[Record]) -> list[dict[str, Any]]:
        """The official result format: ``[{question_id, answer}, ...]``."""
        return [{"question_id": record["id"], "answer": record["prediction"]} for record in records]


def build(options: Options, log: Callable[[str], None]) -> VqaTask:
    """The task; data are read when first needed."""
    return VqaTask(options, log)

"""Visual question answering as classification over a vocabulary of answers (VQA v2, and scenes in its layout).

Loss as in METER: binary cross-entropy with soft targets, mean times the number of answers.
"""

from __future__ import annotations

import json
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
from smarttrim_cli.tasks.base import Batch, Record

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
        default=None, description="JSON file {answer: index}; null: from the model folder, else from training data"
    )
    min_answer_count: int = Field(default=9, ge=1, description="answers rarer than this are no class")
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
        if split not in self._cache:
            images = self.options.data.get("images_dir")
            self._cache[split] = vqa_v2.read(self.folder, split, require_answers=require_answers, images_dir=images)
        return self._cache[split]

    def texts(self, split: str) -> list[str]:
        """Questions, for training a tokenizer."""
        return [sample.question for sample in self.samples(split)]

    def prepare_labels(self, folder: Path | None) -> None:
        """Answers from the recipe's file, else the model folder, else the training split."""
        if self.options.answers is not None:
            self.vocab = AnswerVocab.load(Path(self.options.answers))
        elif folder is not None and (folder / _ANSWERS_FILE).exists():
            self.vocab = AnswerVocab.load(folder / _ANSWERS_FILE)
        else:
            samples = self.samples(self.split_name("train"), require_answers=True)
            self.vocab = AnswerVocab.from_samples(samples, self.options.min_answer_count)

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

    def dataset(self, split: str, processor: Processor, *, limit: int | None = None) -> VqaDataset:
        """Samples of a split; ``limit`` takes them evenly over the split."""
        samples = self.samples(split)
        if limit is not None and limit < len(samples):
            samples = [samples[index * len(samples) // limit] for index in range(limit)]
        return VqaDataset(samples, processor, self.options.on_bad_sample == "skip")

    def collate(self, items: Sequence[Item | None], processor: Processor) -> Batch:
        """Pad texts, stack images, lay out soft targets (B, answers)."""
        good = [item for item in items if item is not None]
        if not good:
            raise UserError("every image of a batch is broken", where="task.on_bad_sample")
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

    def auxiliary(self, backbone: nn.Module) -> nn.Module | None:
        """None: the answers alone."""
        return None

    def predict(self, logits: Tensor, batch: Batch) -> list[Record]:
        """The likeliest answer of every question."""
        answers = [self._vocab().answers[index] for index in logits.argmax(-1).tolist()]
        return [_record(sample, answer) for sample, answer in zip(batch.samples, answers, strict=True)]

    def answer(self, logits: Tensor) -> list[str]:
        """Answers of logits (B, answers), without references."""
        return [self._vocab().answers[index] for index in logits.argmax(-1).tolist()]

    def rescore(self, records: Sequence[Record], split: str) -> list[Record]:
        """Score stored predictions against the split's annotations."""
        by_id = {sample.question_id: sample for sample in self.samples(split)}
        unknown = [record["id"] for record in records if record["id"] not in by_id]
        if unknown:
            raise UserError(
                f"{len(unknown)} predictions are for questions that are not in split {split}, such as {unknown[0]}"
            )
        return [_record(by_id[record["id"]], record["prediction"]) for record in records]

    def submission(self, records: Sequence[Record]) -> list[dict[str, Any]]:
        """The official result format: ``[{question_id, answer}, ...]``."""
        return [{"question_id": record["id"], "answer": record["prediction"]} for record in records]


def _record(sample: VqaSample, answer: str) -> Record:
    score = None if sample.answers is None else vqa_accuracy(answer, sample.answers)
    kind = sample.question_type or sample.answer_type or "all"
    return {
        "id": sample.question_id,
        "type": kind,
        "question": sample.question,
        "prediction": answer,
        "reference": None if sample.answers is None else sample.major_answer,
        "score": score,
    }


def read_predictions(path: Path) -> list[Record]:
    """Predictions from a JSON-lines file.

    Raises:
        UserError: The file cannot be read or a line is no prediction.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the predictions: {error}", where=str(path)) from error
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            records.append({"id": record["id"], "prediction": record["prediction"]})
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"not a prediction ({error!r})", where=f"{path}:{number}") from error
    if not records:
        raise UserError("no predictions in the file", where=str(path))
    return records


def build(options: Options, log: Callable[[str], None]) -> VqaTask:
    """The task; data are read when first needed."""
    return VqaTask(options, log)

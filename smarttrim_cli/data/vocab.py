"""The answer vocabulary of VQA as classification, and its soft targets.

As in METER: the classes are the normalised answers that are the major answer of at least nine training
questions; an answer's target grows with the number of annotators who gave it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from smarttrim_cli.data.files import read_json, refuse_half_characters
from smarttrim_cli.data.samples import VqaSample
from smarttrim_cli.errors import UserError
from smarttrim_cli.metrics.vqa_accuracy import normalize_answer

SOFT_SCORES = (0.0, 0.3, 0.6, 0.9, 1.0)
"""Target of an answer that 0, 1, 2, 3, and 4 or more annotators gave."""


@dataclass(frozen=True)
class AnswerVocab:
    """Answers in the order of their class indices."""

    answers: tuple[str, ...]

    def __len__(self) -> int:
        """Number of classes."""
        return len(self.answers)

    @cached_property
    def index(self) -> dict[str, int]:
        """Class index of each answer."""
        return {answer: position for position, answer in enumerate(self.answers)}

    def soft_targets(self, answers: Sequence[str]) -> dict[int, float]:
        """Targets by class index of a question's annotated answers; empty if none is in the vocabulary."""
        return {
            self.index[answer]: SOFT_SCORES[min(number, len(SOFT_SCORES) - 1)]
            for answer, number in Counter(answers).items()
            if answer in self.index
        }

    def count_unanswerable(self, samples: Iterable[VqaSample]) -> int:
        """How many samples have no answer in the vocabulary, so that nothing can be learned from them."""
        return sum(not self.soft_targets(sample.answers or ()) for sample in samples)

    @classmethod
    def from_samples(cls, samples: Iterable[VqaSample], min_count: int = 9) -> AnswerVocab:
        """The vocabulary of training samples, in the order in which answers first occur.

        METER and ViLT order theirs so, over train and then val of VQA v2.

        Args:
            samples: Training samples with their answers.
            min_count: How many questions have to have a major answer for it to be a class.

        Raises:
            UserError: No answer is that frequent.
        """
        counts = Counter(
            sample.major_answer if sample.normalized else normalize_answer(sample.major_answer)
            for sample in samples
            if sample.major_answer is not None
        )
        answers = tuple(answer for answer, number in counts.items() if number >= min_count)
        if not answers:
            raise UserError(
                f"no answer is the major one of at least {min_count} training questions",
                where="task.min_answer_count",
                hint="more training data, or a smaller number",
            )
        return cls(answers)

    @classmethod
    def load(cls, path: Path) -> AnswerVocab:
        """Read a JSON file that maps each answer to its class index, or lists the answers in that order.

        METER and ViLT write the former, BLIP's ``answer_list.json`` is the latter.

        Raises:
            UserError: The file cannot be read, or holds neither.
        """
        content = read_json(path)
        if isinstance(content, list) and content and all(isinstance(answer, str) for answer in content):
            if len(set(content)) < len(content):
                raise UserError("an answer is listed twice", where=str(path))
            _refuse_broken(content, path)
            return cls(tuple(content))
        if not isinstance(content, dict) or not content:
            raise UserError("not a map from answers to class indices", where=str(path))
        _refuse_broken(content, path)
        indices = list(content.values())
        if any(type(index) is not int for index in indices) or sorted(indices) != list(range(len(indices))):
            raise UserError(
                f"the class indices of {len(content)} answers are not 0 to {len(content) - 1}",
                where=str(path),
            )
        return cls(tuple(sorted(content, key=content.__getitem__)))

    def save(self, path: Path) -> None:
        """Write the JSON file that ``load`` reads."""
        content = {answer: position for position, answer in enumerate(self.answers)}
        path.write_text(json.dumps(content, ensure_ascii=False, indent=0), encoding="utf-8")


def _refuse_broken(answers: Iterable[str], path: Path) -> None:
    for number, answer in enumerate(answers):
        refuse_half_characters(answer, f"answer {number}", str(path))

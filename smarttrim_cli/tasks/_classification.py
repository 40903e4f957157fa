"""Classification of images with a text into a few fixed classes, learned with cross-entropy.

Legend: B instances, C classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from smarttrim_cli.data.files import shown
from smarttrim_cli.data.processor import Processor
from smarttrim_cli.errors import UserError
from smarttrim_cli.tasks._data import Item, instance_ids, usable
from smarttrim_cli.tasks._task import DataTask
from smarttrim_cli.tasks.base import Batch, Record
from smarttrim_cli.tasks.records import place_of

_NO_LABEL = -100


class Classification(DataTask):
    """A task with ``classes`` in the order of the logits."""

    classes: tuple[str, ...]

    @abstractmethod
    def label(self, sample: Any) -> str | None:
        """The right class of a sample; None where it is not known."""

    def collate(self, items: Sequence[Item | None], processor: Processor, training: bool = False) -> Batch:
        """Pad texts, stack images; ``label`` (B,) in the targets, negative where it is not known."""
        good = usable(items)
        samples = [sample for sample, _ in good]
        texts = [self.clean(sample.text) for sample in samples]
        inputs = processor.batch([pixels for _, pixels in good], texts)
        labels = [self.label(sample) for sample in samples]
        known = [_NO_LABEL if label is None else self.classes.index(label) for label in labels]
        ids = instance_ids([sample.id for sample in samples])
        return Batch(inputs, ids, {"label": torch.tensor(known)}, samples)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy, mean over instances."""
        return F.cross_entropy(output.float(), batch.targets["label"], ignore_index=_NO_LABEL)

    def predict(self, output: Tensor, batch: Batch, processor: Processor) -> list[Record]:
        """The likeliest class of every instance."""
        answers = self.answer(output, processor)
        return [self.record(sample, label) for sample, (label, _) in zip(batch.samples, answers, strict=True)]

    def answer(self, output: Tensor, processor: Processor) -> list[tuple[str, float]]:
        """Likeliest classes of logits (B, C), with their probability."""
        best_B, index_B = output.float().softmax(-1).max(-1)
        return [(self.classes[i], p) for i, p in zip(index_B.tolist(), best_B.tolist(), strict=True)]

    def rescore(self, records: Sequence[Record], split: str) -> list[Record]:
        """Stored predictions, scored; classes may be written in any case ("true").

        Raises:
            UserError: A prediction is for a sample that the split does not have, or is none of the classes.
        """
        names = {name.lower(): name for name in self.classes}
        named = []
        for record in records:
            label = record["prediction"]
            label = names.get(label.lower()) if isinstance(label, str) else label
            if label is None:
                raise UserError(
                    f"the prediction for id {record['id']} is {shown(record['prediction'])}, "
                    f"not one of {', '.join(self.classes)}",
                    where=place_of(record),
                )
            named.append({**record, "prediction": label})
        return super().rescore(named, split)

    def record(self, sample: Any, prediction: str) -> Record:
        """The record of a sample's prediction; its score is 1 or 0."""
        label = self.label(sample)
        return {
            "id": sample.id,
            "type": "all",
            "question": sample.text,
            "prediction": prediction,
            "reference": label,
            "score": None if label is None else float(prediction == label),
        }

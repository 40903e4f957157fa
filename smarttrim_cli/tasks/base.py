"""What the engine asks of a task.

A task file has ``FORM`` (the form of backbone it needs, see :mod:`smarttrim_cli.forms`), ``Options`` (its
recipe section) and ``build(options, log, style) -> Task``, where ``style`` is how the backbone answers in
that form: it classifies, matches, contrasts or generates. A new task is one new file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from smarttrim_cli.data.processor import Processor
from smarttrim_cli.errors import UserError
from smarttrim_cli.forms import Form


class EmptyBatch(UserError):
    """A batch in which no sample can be used."""


Record = dict[str, Any]
"""A prediction, JSON-serialisable.

Keys: ``id``, ``type``, ``question``, ``prediction``, and ``reference`` and ``score``, None where there are
none. A task may add keys; before ``finish`` there may be some that only ``finish`` can read. Records that
``finish`` makes one of (blocks of a score matrix) have the same ``part_of``: their costs are summed.
"""


@dataclass(frozen=True)
class Batch:
    """A collated batch.

    Attributes:
        inputs: Keyword arguments of the backbone's forward; tensors whose first dimension is B (but for
            candidates that all instances share).
        instance_ids: (B,) integers that identify the instances.
        targets: Whatever the task's loss needs, tensors with first dimension B.
        samples: The samples themselves.
    """

    inputs: dict[str, Tensor]
    instance_ids: Tensor
    targets: dict[str, Tensor]
    samples: list[Any] = field(default_factory=list)

    def __len__(self) -> int:
        """Number of instances."""
        return len(self.instance_ids)

    def pin_memory(self) -> Batch:
        """The same in page-locked memory, from which copies to a GPU go on beside other work."""
        inputs = {name: tensor.pin_memory() for name, tensor in self.inputs.items()}
        targets = {name: tensor.pin_memory() for name, tensor in self.targets.items()}
        return Batch(inputs, self.instance_ids.pin_memory(), targets, self.samples)


class Task(Protocol):
    """A task with its data."""

    metric: str
    form_name: str

    def split_name(self, role: str) -> str:
        """Name of the data split that plays a role (``train``, ``eval``, ``test``, ``calibration``)."""
        ...

    def samples(self, split: str, *, labelled: bool = False) -> list[Any]:
        """Samples of a split, one per record; ``labelled``: refuse a split without references."""
        ...

    def texts(self, split: str) -> list[str]:
        """All texts of a split, for training a tokenizer."""
        ...

    def questions(self, split: str) -> list[str]:
        """What the backbone reads, a text per instance; empty where that is always the same."""
        ...

    def prepare_labels(self, folder: Path | None) -> None:
        """Take the label vocabulary from a model folder, or build it from training data."""
        ...

    def save_labels(self, folder: Path) -> None:
        """Write the label vocabulary into a model folder."""
        ...

    @property
    def form(self) -> Form:
        """What the backbone has to be; known once the labels are."""
        ...

    def dataset(
        self, split: str, processor: Processor, *, limit: int | None = None, training: bool = False
    ) -> Dataset[Any]:
        """Samples of a split, decoded; ``limit`` takes so many, spread evenly."""
        ...

    def collate(self, items: Sequence[Any], processor: Processor, training: bool = False) -> Batch:
        """Items of the data set to a batch; for training with what the loss needs, else for prediction.

        Raises:
            EmptyBatch: None of them can be used.
        """
        ...

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """Task loss, a scalar: mean over instances. ``output`` is the backbone's for a training batch.

        It may be a :class:`smarttrim_cli.pruning.objective.StatefulLoss` instead of a method: for what
        training carries along, and for choices of the trimmed pass that the full model's is to repeat.
        """
        ...

    def logits(self, output: Any, batch: Batch) -> Tensor:
        """The distributions in a training output that self-distillation compares, (n, C)."""
        ...

    def auxiliary(self, backbone: nn.Module, processor: Processor) -> nn.Module | None:
        """Losses in place of the task loss, to train from scratch: ``module(batch, progress)``; or None."""
        ...

    def predict(self, output: Any, batch: Batch, processor: Processor) -> list[Record]:
        """Predictions of a batch, scored where there is a reference."""
        ...

    def finish(self, records: list[Record]) -> list[Record]:
        """Records of a whole split, once all batches are predicted: where scores need all of them."""
        ...

    def summarize(self, records: Sequence[Record]) -> dict[str, Any]:
        """Metrics of a split: ``<metric>``, ``<metric>_se``, ``count``; without references the last."""
        ...

    def inputs(
        self, images: Sequence[Image.Image], texts: Sequence[str], processor: Processor
    ) -> dict[str, Tensor]:
        """Backbone inputs for pictures and texts of the user's own: one text per instance."""
        ...

    def answer(self, output: Any, processor: Processor) -> list[tuple[str, float]]:
        """Predictions without references, each with the model's confidence in 0..1."""
        ...

    def rescore(self, records: Sequence[Record], split: str) -> list[Record]:
        """Score stored predictions anew."""
        ...

    def submission(self, records: Sequence[Record]) -> Any:
        """Predictions in the official submission format, JSON-serialisable."""
        ...


class TwoStageTask(Task, Protocol):
    """A task whose predictions rank pairs of images and texts that a first stage chooses.

    Where ``two_stage`` is true, an item of the data set is an image of ``dataset.gallery``
    (:mod:`smarttrim_cli.tasks._gallery`), and :mod:`smarttrim_cli.engine.retrieval` takes the place of
    ``predict`` and ``finish``.
    """

    two_stage: bool
    num_candidates: int
    block_size: int

    def text_inputs(self, found: Any, processor: Processor) -> tuple[Tensor, Tensor]:
        """Tokens and mask of all texts of a gallery, (T, L)."""
        ...

    def ranked(
        self, found: Any, image_to_text: Any, text_to_image: Any, costs: Sequence[dict[str, float]]
    ) -> list[Record]:
        """Records of all images: from a gallery, a score matrix per direction, and what each image cost."""
        ...

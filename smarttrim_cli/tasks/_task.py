"""What most tasks have in common: data through a data plug-in, one sample per item, one record per sample."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from smarttrim_cli.data.files import shown
from smarttrim_cli.data.processor import Processor
from smarttrim_cli.errors import UserError
from smarttrim_cli.forms import Form
from smarttrim_cli.tasks._data import DataOptions, SampleDataset, SplitReader, cleaned, spread
from smarttrim_cli.tasks._summary import summarize
from smarttrim_cli.tasks.base import Record
from smarttrim_cli.tasks.records import place_of

Log = Callable[[str], None]


class DataTask(ABC):
    """A task whose samples come from a data plug-in; a subclass adds form, collation, loss and records.

    Args:
        options: Recipe section.
        log: Receives messages for the user.
    """

    metric = "accuracy"
    filler = " "
    """What stands for a sign that ``clean_texts`` removes."""

    def __init__(self, options: DataOptions, log: Log) -> None:
        self.options: Any = options
        self.log = log
        self.form_name = options.form_name
        self.data = SplitReader(options, log)

    @property
    @abstractmethod
    def form(self) -> Form:
        """What the backbone has to be."""

    @functools.cached_property
    def folder(self) -> Path | None:
        """Where the data are, if they are generated: the ground truth of scenes lies there."""
        locate = getattr(self.data.plugin, "locate", None)
        return None if locate is None else cast(Path, locate(self.data.options, self.log, self.form_name))

    # --- data ---

    def split_name(self, role: str) -> str:
        """The split for a role; names that are no role are splits themselves."""
        return self.data.name(role)

    def samples(self, split: str, *, labelled: bool = False) -> list[Any]:
        """Samples of a split, read once; with ``labelled`` a split without annotations is a UserError."""
        return self.data.samples(split, labelled=labelled)

    def texts(self, split: str) -> list[str]:
        """All texts of a split, for training a tokenizer."""
        return self.questions(split)

    def questions(self, split: str) -> list[str]:
        """What the backbone reads, a text per instance; empty where that is always the same."""
        return [self.clean(sample.text) for sample in self.samples(split)]

    def clean(self, text: str) -> str:
        """A text as the backbone gets it."""
        return cleaned(text, self.filler) if self.options.clean_texts else text

    def dataset(
        self, split: str, processor: Processor, *, limit: int | None = None, training: bool = False
    ) -> Dataset[Any]:
        """Samples of a split, decoded; ``limit`` takes so many, spread evenly. Training needs annotations."""
        samples = spread(self.samples(split, labelled=training), limit)
        return SampleDataset(samples, processor, self.skips_bad)

    @property
    def skips_bad(self) -> bool:
        """Whether samples with broken images are left out."""
        return bool(self.options.on_bad_sample == "skip")

    def prepare_labels(self, folder: Path | None) -> None:  # noqa: B027 (not abstract: most tasks need none)
        """There is no label vocabulary."""

    def save_labels(self, folder: Path) -> None:  # noqa: B027
        """There is no label vocabulary."""

    # --- losses, predictions, scores ---

    def logits(self, output: Any, batch: Any) -> Tensor:
        """The output itself, (B, C), is what self-distillation compares."""
        return cast(Tensor, output)

    def auxiliary(self, backbone: nn.Module, processor: Processor) -> nn.Module | None:
        """None: the task loss alone."""
        return None

    @abstractmethod
    def record(self, sample: Any, prediction: Any) -> Record:
        """The record of a sample's prediction, scored if the sample has a reference."""

    def finish(self, records: list[Record]) -> list[Record]:
        """The records as they are: their scores need nothing but the instance."""
        return records

    def summarize(self, records: Sequence[Record]) -> dict[str, Any]:
        """Mean score with standard error and count, overall and by type."""
        return summarize(self.metric, records)

    def rescore(self, records: Sequence[Record], split: str) -> list[Record]:
        """Stored predictions, scored against the split's annotations.

        Raises:
            UserError: A prediction is for a sample that the split does not have, or is no text.
        """
        by_id = {sample.id: sample for sample in self.samples(split)}
        refuse_unknown(records, by_id, split)
        odd = next((record for record in records if not isinstance(record["prediction"], str)), None)
        if odd is not None:
            raise UserError(
                f"the prediction for id {odd['id']} is {shown(odd['prediction'])}, not a text",
                where=place_of(odd),
            )
        return self.finish([self.record(by_id[record["id"]], record["prediction"]) for record in records])

    def inputs(
        self, images: Sequence[Image.Image], texts: Sequence[str], processor: Processor
    ) -> dict[str, Tensor]:
        """Backbone inputs for pictures and texts of the user's own: one text per instance.

        Raises:
            UserError: There are not as many pictures as the texts need.
        """
        check_number_of_images(len(images), len(texts), self.form)
        pixels = [processor.preprocess(image) for image in images]
        each = self.form.images
        if each > 1:
            pixels = [torch.stack(pixels[first : first + each]) for first in range(0, len(pixels), each)]
        return processor.batch(pixels, [self.clean(text) for text in texts])


def check_number_of_images(images: int, texts: int, form: Form) -> None:
    """Refuse a number of pictures that does not go with the number of texts.

    Raises:
        UserError: It does not.
    """
    if images != texts * form.images:
        raise UserError(
            f"{texts} texts need {texts * form.images} pictures, found {images}",
            hint=f"{form.name} takes {form.images} per text",
        )


def refuse_unknown(records: Sequence[Record], known: Any, split: str) -> None:
    """Refuse stored predictions for other samples than a split has.

    Raises:
        UserError: There are some.
    """
    unknown = [record["id"] for record in records if record["id"] not in known]
    if unknown:
        raise UserError(
            f"{len(unknown)} of {len(records)} predictions are for samples that split {split} does not have, "
            f"such as id {unknown[0]}",
            where="task.data",
            hint="name the split they were made on with --split",
        )


def need_style(task: str, style: str, allowed: Sequence[str]) -> None:
    """Refuse a backbone that answers in a way which a task cannot use.

    Raises:
        UserError: ``style`` is not one of ``allowed``.
    """
    if style not in allowed:
        raise UserError(
            f"task {task} cannot use a backbone that {style}",
            where="task.name",
            hint=f"it needs one that {' or '.join(allowed)}",
        )

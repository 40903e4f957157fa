"""Data as all tasks use them: their recipe keys, splits read once, images decoded, stable instance ids.

Legend: B instances, H and W pixels.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor
from torch.utils.data import Dataset

from smarttrim_cli import registry
from smarttrim_cli.data.images import BadSample, load_rgb
from smarttrim_cli.data.processor import Processor
from smarttrim_cli.data.samples import is_labelled
from smarttrim_cli.tasks.base import EmptyBatch

T = TypeVar("T")
Item = tuple[Any, Tensor]
"""A sample and its preprocessed image, (3, H, W), or images, (2, 3, H, W)."""

_ID_BITS = 46
"""Instance ids are multiplied by small constants (random trimmers); so many bits leave room for that."""
_CLEANED_AWAY = re.compile(r"[.!\"()*#:;~]")


class Splits(BaseModel):
    """Which split of the data plays which role."""

    model_config = ConfigDict(extra="forbid")
    train: str = Field(default="train", description="trained on")
    eval: str = Field(default="val", description="evaluated on during training")
    test: str = Field(default="test", description="held out")
    calibration: str = Field(default="calibration", description="the budget is calibrated on it")


class DataOptions(BaseModel):
    """The part of a recipe section that all tasks have; ``form_name`` says which data a task takes."""

    model_config = ConfigDict(extra="forbid")
    form_name: ClassVar[str]
    data: dict[str, Any] = Field(description="{name: scenes, ...} or another data set with its keys")
    splits: Splits = Field(default=Splits(), description="names of the splits")
    on_bad_sample: Literal["error", "skip"] = Field(default="error", description="what a broken image does")
    clean_texts: bool = Field(
        default=False, description='lower case, and . ! " ( ) * # : ; ~ removed, as the official BLIP does'
    )

    @field_validator("data")
    @classmethod
    def _data_is_valid(cls, section: dict[str, Any]) -> dict[str, Any]:
        registry.options("data", section)
        tasks = getattr(registry.load("data", section["name"]), "TASKS", ())
        if cls.form_name not in tasks:
            raise registry.PluginError(
                f"data set {section['name']} has nothing for {cls.form_name}; "
                f"it is for {', '.join(tasks) or 'no task'}"
            )
        return section


class SplitReader:
    """The splits of a task's data; each is read once, when first asked for."""

    def __init__(self, options: DataOptions, log: Callable[[str], None]) -> None:
        self.form_name, self.splits, self.log = options.form_name, options.splits, log
        self.plugin_name = str(options.data["name"])
        self.options = registry.options("data", options.data)
        self._read: dict[str, list[Any]] = {}

    @property
    def plugin(self) -> Any:
        """The data set's module; not kept, since a module cannot be pickled."""
        return registry.load("data", self.plugin_name, whole=True)

    def name(self, role: str) -> str:
        """The split for a role; names that are no role are splits themselves."""
        return str(getattr(self.splits, role)) if role in Splits.model_fields else role

    def samples(self, split: str, *, labelled: bool = False) -> list[Any]:
        """Samples of a split; with ``labelled`` a split without annotations is a UserError."""
        if split not in self._read or (labelled and not all(map(is_labelled, self._read[split]))):
            self._read[split] = self.plugin.read(
                self.options, self.form_name, split, labelled=labelled, log=self.log
            )
        return self._read[split]


class SampleDataset(Dataset[Item | None]):
    """Samples with their decoded images; an item is None where a broken image is skipped."""

    def __init__(self, samples: Sequence[Any], processor: Processor, skip_bad: bool) -> None:
        self.samples, self.processor, self.skip_bad = samples, processor, skip_bad

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.samples)

    def __getitem__(self, index: int) -> Item | None:
        """Decode the images of one sample."""
        try:
            return self.samples[index], pixels_of(self.samples[index], self.processor)
        except BadSample:
            if self.skip_bad:
                return None
            raise


def pixels_of(sample: Any, processor: Processor) -> Tensor:
    """The preprocessed image of a sample, (3, H, W), or its images, (2, 3, H, W).

    Raises:
        BadSample: One of them is missing or broken.
    """
    images = [processor.preprocess(load_rgb(image, sample_id=sample.id)) for image in sample.images]
    return images[0] if len(images) == 1 else torch.stack(images)


def usable(items: Sequence[T | None]) -> list[T]:
    """The items of a batch without those that were skipped.

    Raises:
        EmptyBatch: All were.
    """
    good = [item for item in items if item is not None]
    if not good:
        raise EmptyBatch(
            f"all {len(items)} images of a batch are broken, so there is nothing to skip to",
            where="task.on_bad_sample",
            hint="on_bad_sample: error names the first of them",
        )
    return good


def spread(samples: Sequence[T], limit: int | None) -> Sequence[T]:
    """At most ``limit`` of the samples, spread evenly over them."""
    if limit is None or limit >= len(samples):
        return samples
    return [samples[index * len(samples) // limit] for index in range(limit)]


def instance_ids(ids: Sequence[int | str]) -> Tensor:
    """Integers (B,) for sample ids, the same in every process: a number is itself, a text its hash."""
    return torch.tensor([sample_id if _is_small(sample_id) else stable_hash(sample_id) for sample_id in ids])


def stable_hash(*values: int | str) -> int:
    """A number that is the same on every machine, unlike Python's own hash."""
    digest = hashlib.blake2b(repr(values).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - _ID_BITS)


def _is_small(sample_id: int | str) -> bool:
    return isinstance(sample_id, int) and 0 <= sample_id < 1 << _ID_BITS


def cleaned(text: str, filler: str = " ") -> str:
    """A text as the official BLIP cleans it (``data/utils.py``), but for its limit on words.

    Args:
        text: A question, statement or caption.
        filler: What stands for a removed sign: a blank; nothing in questions.
    """
    return " ".join(_CLEANED_AWAY.sub(filler, text.lower()).split())

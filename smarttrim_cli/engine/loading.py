"""Batches from worker processes or this one, with the errors of bad samples as they were raised.

A DataLoader turns an error in a worker into one whose message is a traceback, and cannot leave a batch out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, Subset

from smarttrim_cli.data.processor import Processor
from smarttrim_cli.engine.data_processes import deaths_as_errors, leave_signals, tell_of_deaths
from smarttrim_cli.errors import UserError
from smarttrim_cli.tasks.base import Batch, EmptyBatch, Task


class _Caught(Dataset[Any]):
    """Items of a data set; those that cannot be had are the errors themselves."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except UserError as error:
            return error


class _Collate:
    def __init__(self, task: Task, processor: Processor, training: bool) -> None:
        self.task, self.processor, self.training = task, processor, training

    def __call__(self, items: list[Any]) -> Batch | UserError:
        bad = next((item for item in items if isinstance(item, UserError)), None)
        if bad is not None:
            return bad
        try:
            return self.task.collate(items, self.processor, self.training)
        except UserError as error:
            return error


class BatchesOfOneWidth:
    """Indices of batches whose items have one width each, in order: of a data set that has ``width(index)``.

    Args:
        width: Of the item of an index.
        count: Number of items.
        batch_size: Most items of a batch.
    """

    def __init__(self, width: Callable[[int], int], count: int, batch_size: int) -> None:
        self.width, self.count, self.batch_size = width, count, batch_size

    def __len__(self) -> int:
        """Number of batches."""
        of_width = Counter(map(self.width, range(self.count)))
        return sum(math.ceil(number / self.batch_size) for number in of_width.values())

    def __iter__(self) -> Iterator[list[int]]:
        """A batch as soon as it is full, then what is left of each width.

        Images first appear in their order; of an image that another process began, its end may come later.
        """
        waiting: dict[int, list[int]] = {}
        for index in range(self.count):
            batch = waiting.setdefault(self.width(index), [])
            batch.append(index)
            if len(batch) == self.batch_size:
                yield waiting.pop(self.width(index))
        yield from waiting.values()


def batching(dataset: Any, batch_size: int) -> dict[str, Any]:
    """Settings of a DataLoader for batches of a data set, or of a part of one, in order."""
    whole: Any = dataset.dataset if isinstance(dataset, Subset) else dataset
    if not hasattr(whole, "width"):
        return {"batch_size": batch_size}
    places = dataset.indices if isinstance(dataset, Subset) else range(len(whole))
    sampler = BatchesOfOneWidth(lambda index: whole.width(places[index]), len(places), batch_size)
    return {"batch_sampler": sampler}


def batches_of_places(dataset: Any, places: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Places of a data set, batch by batch, as a DataLoader of them would have them."""
    settings = batching(Subset(dataset, places), batch_size)
    order = range(len(places))
    for batch in settings.get("batch_sampler") or BatchSampler(order, batch_size, drop_last=False):
        yield [places[number] for number in batch]


class Loader:
    """Batches of a data set; uses no global random state.

    Args:
        dataset: Of a task.
        task: Collates.
        processor: For the collation.
        skip_empty: Leave out batches without a usable sample; else each has another sample instead, so that
            there are as many, and it is an error if none can be used.
        training: Whether batches are for the loss, not for predictions.
        settings: Of the DataLoader.
    """

    def __init__(
        self,
        dataset: Any,
        task: Task,
        processor: Processor,
        *,
        skip_empty: bool,
        training: bool = False,
        **settings: Any,
    ) -> None:
        self.dataset, self.skip_empty = dataset, skip_empty
        self.collate = _Collate(task, processor, training)
        self.loader: DataLoader[Any] = DataLoader(
            _Caught(dataset),
            collate_fn=self.collate,
            generator=torch.Generator(),
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=leave_signals,
            **settings,
        )

    def __len__(self) -> int:
        """Number of batches, empty ones included."""
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        """Batches; raises the UserError of a bad sample, or a SmartTrimError if a data process was killed."""
        watched = deaths_as_errors if self.loader.num_workers > 0 else nullcontext
        with watched():
            batches = iter(self.loader)
        if self.loader.num_workers > 0:
            tell_of_deaths()
        number = -1
        try:
            while True:
                with watched():
                    batch = next(batches, None)
                if batch is None:
                    return
                number += 1
                if isinstance(batch, EmptyBatch):
                    if self.skip_empty:
                        continue
                    batch = self._instead(number, batch)
                if isinstance(batch, UserError):
                    raise batch
                yield batch
        finally:
            del batches  # and with it its processes, which the traceback of an error would keep

    def _instead(self, number: int, empty: EmptyBatch) -> Batch | UserError:
        """The next usable sample in the order of the data set, for a batch in which none can be used."""
        batches: Any = self.loader.batch_sampler
        first = list(batches)[number][-1] + 1
        for index in range(len(self.dataset)):
            batch = self.collate([self.loader.dataset[(first + index) % len(self.dataset)]])
            if not isinstance(batch, EmptyBatch):
                return batch
        return empty

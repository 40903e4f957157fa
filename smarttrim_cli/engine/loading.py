"""Batches from worker processes or this one, with the errors of bad samples as they were raised.

A DataLoader turns an error in a worker into one whose message is a traceback, and cannot leave a batch out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from smarttrim_cli.data.processor import Processor
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


class Loader:
    """Batches of a data set; uses no global random state.

    Args:
        dataset: Of a task.
        task: Collates.
        processor: For the collation.
        skip_empty: Leave out batches without a usable sample, instead of raising.
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
        collate = _Collate(task, processor, training)
        self.loader: DataLoader[Any] = DataLoader(
            _Caught(dataset),
            collate_fn=collate,
            generator=torch.Generator(),
            pin_memory=torch.cuda.is_available(),
            **settings,
        )

    def __len__(self) -> int:
        """Number of batches, empty ones included."""
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        """Batches; raises the UserError of a bad sample."""
        for batch in self.loader:
            if isinstance(batch, EmptyBatch) and self.skip_empty:
                continue
            if isinstance(batch, UserError):
                raise batch
            yield batch

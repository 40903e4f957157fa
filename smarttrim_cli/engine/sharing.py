"""Evaluation by several processes (``torchrun``): each runs its part of a split, the first has the whole."""

from __future__ import annotations

import atexit
import gc
import os
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch.utils.data import Dataset, Subset

from smarttrim_cli.engine.devices import best_device, several_on_cpu
from smarttrim_cli.errors import SmartTrimError

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """What part of the work is this process's.

    Attributes:
        rank: Number of the process.
        count: Number of processes.
        device: Where it computes.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that says what came out."""
        return self.rank == 0

    def part(self, dataset: Dataset[Any]) -> Dataset[Any]:
        """The ``rank``-th of ``count`` parts of a data set, one after the other in its order."""
        if self.count == 1:
            return dataset
        size = len(dataset)  # type: ignore[arg-type]
        start, end = (size * number // self.count for number in (self.rank, self.rank + 1))
        return Subset(dataset, range(start, end))

    def gathered(self, value: T) -> list[T]:
        """The values of all processes, in their order; every process has to ask."""
        return [value] if self.count == 1 else list(gather_object([value]))

    def refuse_failures(self, failure: SmartTrimError | None) -> None:
        """Raise in all processes what failed in any of them; every process has to ask."""
        if any(self.gathered(failure is not None)):
            raise failure or SmartTrimError("another process could not run its part of the split")


def alone() -> Share:
    """All of it, on the best device."""
    return Share(0, 1, best_device())


def share_of_this_process() -> Share:
    """This process's share; it meets the others, if there are any."""
    if not (several_on_cpu() or int(os.environ.get("WORLD_SIZE", 1)) > 1):
        return alone()
    state = PartialState(cpu=several_on_cpu())
    leave_group_at_exit()
    return Share(state.process_index, state.num_processes, state.device)


def leave_group_at_exit() -> None:
    """Have this process leave its group, if it is in one, before the interpreter ends.

    A group's threads outlive the interpreter otherwise, and now and then abort the process at its very end.
    """
    atexit.unregister(leave_group)
    atexit.register(leave_group)


def leave_group() -> None:
    """Leave the group of processes that work together; nothing outside of one.

    What was trained by several processes holds on to the group, and itself lies in circles of references.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.destroy_process_group()

"""Batches of a training run as a function of seed and step: a resumed run sees exactly the same ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import Sampler

from smarttrim_cli.tasks._data import stable_hash


@dataclass
class StepSampler(Sampler[list[int]]):
    """Yields the indices of every batch from a given one on; each epoch is a permutation of its own.

    Attributes:
        size: Number of samples in the data set.
        batch_size: Samples per batch.
        seed: Seed of the permutations.
        first: Number of the first batch to yield.
        last: Number of the batch after the last one.
    """

    size: int
    batch_size: int
    seed: int
    first: int
    last: int

    def __len__(self) -> int:
        """Number of batches still to come."""
        return self.last - self.first

    def __iter__(self) -> Iterator[list[int]]:
        """Batches ``first`` to ``last - 1``; one may span two epochs."""
        epoch, order = -1, torch.empty(0, dtype=torch.long)
        for number in range(self.first, self.last):
            batch = []
            for place in range(number * self.batch_size, (number + 1) * self.batch_size):
                if place // self.size != epoch:
                    epoch = place // self.size
                    order = self._order(epoch)
                batch.append(int(order[place % self.size]))
            yield batch

    def _order(self, epoch: int) -> torch.Tensor:
        """The permutation of an epoch; no other seed has it for another epoch."""
        seed = self.seed if epoch == 0 else stable_hash(self.seed, epoch)
        return torch.randperm(self.size, generator=torch.Generator().manual_seed(seed))

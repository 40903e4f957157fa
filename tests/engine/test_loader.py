"""Training batches in which no sample can be used have another one instead: steps stay as many."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from torch.utils.data import Dataset

from smarttrim_cli.engine.loading import Loader
from smarttrim_cli.tasks._data import usable
from smarttrim_cli.tasks.base import EmptyBatch


class Numbers(Dataset[Any]):
    """0 to 7, some of them broken."""

    def __init__(self, broken: Sequence[int]) -> None:
        self.broken = broken

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int | None:
        return None if index in self.broken else index


def loader(broken: Sequence[int], skip_empty: bool, processes: int = 0) -> Loader:
    task: Any = SimpleNamespace(collate=lambda items, *_: usable(items))
    order = [[0, 1], [3, 2], [6, 7]]
    settings: dict[str, Any] = {"batch_sampler": order, "num_workers": processes}
    unused: Any = None
    return Loader(Numbers(broken), task, unused, skip_empty=skip_empty, training=True, **settings)


@pytest.mark.parametrize(
    ("broken", "second", "third"),
    [([], [3, 2], [6, 7]), ([2], [3], [6, 7]), ([2, 3], [4], [6, 7]), ([2, 3, 4, 6, 7], [5], [0])],
)
def test_the_next_usable_sample_stands_in(broken: list[int], second: list[int], third: list[int]) -> None:
    assert list(loader(broken, skip_empty=False)) == [[0, 1], second, third]


def test_an_evaluation_leaves_such_batches_out() -> None:
    assert list(loader([2, 3, 7], skip_empty=True)) == [[0, 1], [6]]


def test_without_any_usable_sample_it_is_an_error() -> None:
    with pytest.raises(EmptyBatch, match="all 2 images of a batch are broken"):
        list(loader(range(8), skip_empty=False))

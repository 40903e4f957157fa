from __future__ import annotations

import pytest

from smarttrim_cli.engine.sampling import StepSampler


@pytest.mark.parametrize(("size", "batch"), [(10, 3), (7, 7), (5, 8), (1, 2)])
def test_every_epoch_is_a_permutation_of_its_own(size: int, batch: int) -> None:
    steps = 6 * size
    batches = list(StepSampler(size, batch, seed=3, first=0, last=steps))
    assert len(batches) == steps and {len(one) for one in batches} == {batch}
    flat = [index for one in batches for index in one]
    epochs = [tuple(flat[at : at + size]) for at in range(0, len(flat) - size, size)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    if size > 4:
        assert len(set(epochs)) > 1


def test_no_epoch_is_that_of_another_seed() -> None:
    found = [list(StepSampler(50, 50, seed, first=0, last=5)) for seed in range(5)]
    orders = [tuple(order) for batches in found for order in batches]
    assert len(set(orders)) == 25


@pytest.mark.parametrize("first", [0, 1, 4, 9, 20])
def test_resumed_sampler_yields_the_same_batches(first: int) -> None:
    everything = list(StepSampler(10, 4, seed=0, first=0, last=20))
    rest = StepSampler(10, 4, seed=0, first=first, last=20)
    assert list(rest) == everything[first:] and len(rest) == 20 - first
    assert everything != list(StepSampler(10, 4, seed=1, first=0, last=20))

"""Learning-rate schedules: values at some steps by hand."""

from __future__ import annotations

import pytest

from smarttrim_cli.engine.optim import schedule_factor
from smarttrim_cli.recipe.schema import Optimizer


def factors(kind: str, warmup: float, steps: tuple[int, ...], total: int = 10) -> list[float]:
    factor = schedule_factor(Optimizer(lr_scheduler_type=kind, warmup_steps=warmup), total)
    return [factor(step) for step in steps]


STEPS = (0, 1, 2, 4, 6, 8, 10, 12)
"""Two steps of warm-up, then quarters of the remaining eight, and beyond."""


@pytest.mark.parametrize(
    ("kind", "after"),
    [
        ("linear", [1, 3 / 4, 1 / 2, 1 / 4, 0, 0]),
        ("cosine", [1, (2 + 2**0.5) / 4, 1 / 2, (2 - 2**0.5) / 4, 0, 0]),
        ("constant", [1] * 6),
    ],
)
@pytest.mark.parametrize("warmup", [0.2, 2])
def test_schedules_by_hand(kind: str, after: list[float], warmup: float) -> None:
    assert factors(kind, warmup, STEPS) == pytest.approx([1 / 3, 2 / 3, *after], abs=1e-12)


def test_without_warm_up_the_first_step_is_at_the_peak() -> None:
    assert factors("linear", 0.0, (0, 5)) == [1, 0.5]


def test_warm_up_from_one_is_a_number_of_steps() -> None:
    assert factors("linear", 1.0, (0, 1, 10), total=11) == pytest.approx([0.5, 1, 0.1])
    assert factors("linear", 0.99, (0, 98), total=100) == pytest.approx([0.01, 0.99])  # a share

"""The curriculum at a few points."""

from __future__ import annotations

import pytest

from smarttrim_cli.pruning.schedule import linear_schedule, noise_share, scheduled_targets


@pytest.mark.parametrize(
    ("progress", "expected"), [(0.0, 1.0), (0.15, 0.85), (0.3, 0.7), (0.6, 0.4), (0.61, 0.4), (1.0, 0.4)]
)
def test_targets_fall_linearly_and_stay(progress: float, expected: float) -> None:
    assert linear_schedule(0.4, progress, 0.6) == pytest.approx(expected)


def test_schedules_of_groups() -> None:
    targets = {"a": 0.5, "b": 1.0}
    assert scheduled_targets(targets, 0.25, 0.5, True) == {"a": 0.75, "b": 1.0}
    assert scheduled_targets(targets, 0.0, 0.5, False) == targets


def test_noise_grows_with_the_curriculum_under_stable_initialisation() -> None:
    assert noise_share(0.0, 0.6, stable=True, noise=True) == 0.0
    assert noise_share(0.3, 0.6, stable=True, noise=True) == pytest.approx(0.5)
    assert noise_share(0.9, 0.6, stable=True, noise=True) == 1.0
    assert noise_share(0.0, 0.6, stable=False, noise=True) == 1.0
    assert noise_share(0.9, 0.6, stable=True, noise=False) == 0.0

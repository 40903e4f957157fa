"""The curriculum at a few points."""

from __future__ import annotations

import pytest

from smarttrim_cli.pruning.schedule import linear_schedule, noise_share, scheduled_targets, steered_threshold


@pytest.mark.parametrize(
    ("progress", "expected"), [(0.0, 1.0), (0.15, 0.85), (0.3, 0.7), (0.6, 0.4), (0.61, 0.4), (1.0, 0.4)]
)
def test_targets_fall_linearly_and_stay(progress: float, expected: float) -> None:
    assert linear_schedule(0.4, progress, 0.6) == pytest.approx(expected)


def test_schedules_of_groups() -> None:
    targets = {"a": 0.5, "b": 1.0}
    assert scheduled_targets(targets, 0.25, 0.5, True) == {"a": 0.75, "b": 1.0}
    assert scheduled_targets(targets, 0.0, 0.5, False) == targets


def test_noise_grows_with_the_curriculum_or_is_whole() -> None:
    assert noise_share(0.0, 0.6, grows=True) == 0.0
    assert noise_share(0.3, 0.6, grows=True) == pytest.approx(0.5)
    assert noise_share(0.9, 0.6, grows=True) == 1.0
    assert noise_share(0.0, 0.6, grows=False) == 1.0


def test_annealed_noise_falls_to_nothing_at_the_end() -> None:
    assert noise_share(0.6, 0.4, grows=True, anneal_ratio=0.5) == pytest.approx(0.8)
    assert noise_share(0.9, 0.4, grows=False, anneal_ratio=0.5) == pytest.approx(0.2)
    assert noise_share(1.0, 0.4, grows=True, anneal_ratio=0.5) == 0.0
    assert noise_share(0.2, 0.4, grows=True, anneal_ratio=0.5) == pytest.approx(0.5)


def test_the_threshold_rises_while_too_much_is_kept() -> None:
    assert steered_threshold(1.0, macs_ratio=0.7, target=0.5, gain=0.5) == pytest.approx(1.1)
    assert steered_threshold(1.0, macs_ratio=0.4, target=0.5, gain=0.5) == pytest.approx(0.95)

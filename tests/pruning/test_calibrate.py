"""Calibration shifts the threshold until the measured speed-up is the target."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from smarttrim_cli.pruning.calibrate import calibrate, measured_speedup
from smarttrim_cli.pruning.cost import instance_macs
from smarttrim_cli.pruning.model import TrimmedModel
from tests import tiny


def model_and_batches(pair: tuple[str, str]) -> tuple[TrimmedModel, list[SimpleNamespace]]:
    model = tiny.attach(tiny.meter(), *pair)
    ranked = {name: trimmer for name, trimmer in model.sites.items() if trimmer.by_importance}
    torch.manual_seed(0)
    importance = {name: torch.rand(trimmer.importance_H.shape) for name, trimmer in ranked.items()}
    for name, trimmer in ranked.items():
        trimmer.set_importance(name, importance)
    batches = []
    for seed, more in enumerate((-2, -1, 0, 1)):  # of one length, whole numbers are reached by all at once
        inputs = model.backbone.example_inputs(tiny.TEXT_TOKENS + more, batch=8, seed=seed)
        batches.append(SimpleNamespace(inputs=inputs, instance_ids=torch.arange(8) + 8 * seed))
    return model, batches


@pytest.mark.parametrize("target", [1.5, 2.0])
@pytest.mark.parametrize("pair", tiny.pairs(), ids="+".join)
def test_the_budget_is_met_and_the_threshold_stays(pair: tuple[str, str], target: float) -> None:
    model, batches = model_and_batches(pair)
    # what ranks tokens, or heads for all instances, keeps whole numbers: large steps where there are so few
    coarse = any(trimmer.relative or trimmer.by_importance for trimmer in model.sites.values())
    tolerance = 0.05 if coarse else 0.02
    before = measured_speedup(model, batches)
    result = calibrate(model, batches, target, tolerance=tolerance)
    assert result.reached and result.target == target
    assert result.trained_speedup == pytest.approx(before, rel=1e-6)
    assert target <= result.speedup <= target * (1 + tolerance)
    assert float(model.threshold) == pytest.approx(result.threshold)
    assert measured_speedup(model, batches) == pytest.approx(result.speedup, rel=1e-6)


def test_what_is_measured_is_the_ratio_of_sums_in_packed_mode() -> None:
    model, batches = model_and_batches(("cross_modal", "global_head"))
    trimmed, full = 0.0, 0.0
    with torch.no_grad():
        for batch in batches:
            log = model(batch.inputs, "packed").decisions
            trimmed_B, full_B = instance_macs(model, log)
            trimmed, full = trimmed + trimmed_B.sum().item(), full + full_B.sum().item()
    assert measured_speedup(model, batches) == pytest.approx(full / trimmed, rel=1e-3)


class Scaled(nn.Module):
    """A trimmer whose scores are no logits: of another scale, or far from 0."""

    def __init__(self, real: Any, scale: float, shift: float) -> None:
        super().__init__()
        self.real, self.scale, self.shift = real, scale, shift
        self.relative = self.rewrites = self.draws = self.static = False
        self.fixed_macs, self.token_macs, self.pair_macs = real.fixed_macs, real.token_macs, real.pair_macs

    def forward(self, *arguments: Any) -> torch.Tensor:
        return self.scale * self.real(*arguments) + self.shift


@pytest.mark.parametrize(("scale", "shift"), [(1e4, 0.0), (1.0, 300.0), (1.0, -300.0)])
def test_scores_of_any_scale(scale: float, shift: float) -> None:
    model, batches = model_and_batches(("cross_modal", "global_head"))
    scaled = {name: Scaled(trimmer, scale, shift) for name, trimmer in model.sites.items()}
    result = calibrate(TrimmedModel(model.backbone, scaled).eval(), batches[:2], 1.5, tolerance=0.02)
    assert result.reached and 1.5 <= result.speedup <= 1.53
    threshold = result.threshold / scale - shift / scale
    assert -64 < threshold < 64 < abs(result.threshold)


def test_a_budget_out_of_reach_is_reported() -> None:
    model, batches = model_and_batches(("cross_modal", "global_head"))
    result = calibrate(model, batches[:1], 1000.0)
    assert not result.reached and result.speedup < 1000


def test_the_search_ends_at_once_where_it_starts_right() -> None:
    model, batches = model_and_batches(("cross_modal", "global_head"))
    with model.at_threshold(1.0):
        there = measured_speedup(model, batches)
    assert calibrate(model, batches, there, tolerance=0.001, rounds=0).threshold == 1.0


@pytest.mark.parametrize(
    ("below", "above", "taken"), [(1.493, 1.512, 1.493), (1.3, 1.512, 1.512), (1.493, 1.506, 1.506)]
)
def test_a_jump_over_the_target_ends_on_a_side_that_is_good_enough(
    below: float, above: float, taken: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At or above the target where that is within the tolerance, else below it, else above."""
    jump = 0.37
    module = sys.modules[calibrate.__module__]
    monkeypatch.setattr(module, "_at", lambda model, batches, threshold: below if threshold < jump else above)
    model, batches = model_and_batches(("cross_modal", "global_head"))
    result = calibrate(model, batches[:1], 1.5)
    assert result.speedup == taken and (result.threshold < jump) == (taken == below)
    assert float(model.threshold) == pytest.approx(result.threshold)
    assert taken == 1.506 or result.threshold == pytest.approx(jump, abs=1e-3)  # 1.506 is good at once
    assert result.reached == (taken != 1.512)

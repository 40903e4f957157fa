"""Eq. 8: the noise has its distribution; hard forward, soft backward."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from smarttrim_cli.pruning.gumbel import (
    Sampling,
    gumbel_sigmoid,
    hard_mask,
    keep_mask,
    logistic_noise,
    straight_through,
)
from smarttrim_cli.pruning.objective import kept_fractions, sites_heads
from smarttrim_cli.pruning.sites import Site
from tests import tiny


def test_noise_is_logistic() -> None:
    torch.manual_seed(0)
    noise = logistic_noise(torch.empty(200_000))
    gumbel = -torch.log(-torch.log(torch.rand(2, 200_000)))
    difference = gumbel[0] - gumbel[1]
    assert noise.mean().abs() < 0.02
    assert noise.std().item() == pytest.approx(torch.pi / 3**0.5, rel=0.01)
    points = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    assert_close(noise.quantile(points), torch.logit(points), rtol=0.0, atol=0.05)
    assert_close(noise.quantile(points), difference.quantile(points), rtol=0.0, atol=0.06)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_noise_is_finite_and_of_the_same_kind(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    noise = logistic_noise(torch.empty(100, 1000, dtype=dtype))
    assert noise.shape == (100, 1000) and noise.dtype == dtype and torch.isfinite(noise).all()


def test_keeping_has_the_probability_of_the_sigmoid() -> None:
    torch.manual_seed(0)
    scores = torch.full((100_000,), 1.3)
    kept = gumbel_sigmoid(scores + logistic_noise(scores), 0.7) > 0.5
    assert kept.float().mean().item() == pytest.approx(torch.sigmoid(torch.tensor(1.3)).item(), abs=0.005)


def test_the_relaxation() -> None:
    found = gumbel_sigmoid(torch.tensor([2.0, -1.0]) + torch.tensor([-1.0, 0.25]), 0.5)
    assert_close(found, torch.sigmoid(torch.tensor([2.0, -1.5])))


def test_a_score_at_the_threshold_is_dropped() -> None:
    scores = torch.tensor([-0.1, 0.0, 0.1, 0.7])
    assert hard_mask(scores).tolist() == [False, False, True, True]
    assert hard_mask(scores, 0.5).tolist() == [False, False, False, True]


def test_straight_through_is_hard_forward_and_soft_backward() -> None:
    scores = torch.linspace(-3, 3, 1001, dtype=torch.float64).requires_grad_()
    out = straight_through(hard_mask(scores), gumbel_sigmoid(scores, 2.0))
    assert_close(out, (scores > 0).double())
    (gradient,) = torch.autograd.grad(out.sum(), scores)
    soft = torch.sigmoid(scores.detach() / 2)
    assert_close(gradient, soft * (1 - soft) / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_forward_mask_is_exactly_zero_or_one(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    scores = torch.randn(10_000).to(dtype).requires_grad_()
    found = straight_through(hard_mask(scores), gumbel_sigmoid(scores, 0.7))
    assert found.dtype == dtype and set(found.tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_training_decides_as_evaluation_does(dtype: torch.dtype) -> None:
    """Also of scores so near the threshold that their sigmoid is rounded to a half."""
    scores = (torch.linspace(-0.02, 0.02, 401) + 0.25).to(dtype).requires_grad_()
    trained = keep_mask(scores, "token", Sampling(noise=0.0), 0.25)
    assert torch.equal(trained, keep_mask(scores, "token", None, 0.25))
    assert 150 < int(trained.sum()) < 250


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_a_random_baseline_trains_at_the_share_it_is_evaluated_at(
    noise: float,
) -> None:
    model = tiny.attach(tiny.meter(), "random_token", "random_head", kept=0.8)
    heads = {name: sites_heads(model, Site.parse(name)) for name in model.sites if name.endswith("head")}
    inputs = model.backbone.example_inputs(20, batch=100)
    torch.manual_seed(0)
    with torch.no_grad():
        log = model(inputs, "masked", sampling=Sampling(1.0, noise)).decisions
    for group, kept_B in kept_fractions(log, model.groups, heads).items():
        assert kept_B.mean().item() == pytest.approx(0.8, abs=0.03), group

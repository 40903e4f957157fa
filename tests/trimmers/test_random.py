"""The random baselines: the share asked for, nested draws, different for every instance, the hash beneath."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from smarttrim_cli.pruning.stream import begin_masked
from smarttrim_cli.trimmers import random_head, random_token
from smarttrim_cli.trimmers._hashing import site_seed, uniform
from smarttrim_cli.trimmers._profile import kept_by_layer
from smarttrim_cli.trimmers.base import SiteInfo, TokenView

B, N, DEPTH = 400, 50, 6


def token_scores(
    layer: int, target: float, seed: int = 0, ids: Tensor | None = None, stream: str = "vision"
) -> Tensor:
    trimmer = random_token.build(
        random_token.Options(seed=seed), SiteInfo(f"{stream}.{layer}.token", layer, DEPTH, 4, 0)
    )
    trimmer.set_target(target)
    ids = torch.arange(B) if ids is None else ids
    state = begin_masked(torch.ones(len(ids), N, dtype=torch.bool))
    hidden = torch.zeros(len(ids), N, 4)
    return trimmer(TokenView(hidden, hidden[:, 0], None, state, state.spread_scalar(ids)))


def head_scores(target: float, name: str = "vision.0.self_head", seed: int = 0, heads: int = 12) -> Tensor:
    trimmer = random_head.build(random_head.Options(seed=seed), SiteInfo(name, 0, DEPTH, 4, 0, heads))
    trimmer.set_target(target)
    return trimmer(torch.zeros(B, 4), None, torch.arange(B))


@pytest.mark.parametrize("target", [0.2, 0.5, 0.8])
def test_tokens_are_kept_at_the_share_of_every_layer(target: float) -> None:
    shares = kept_by_layer(target, DEPTH)
    kept = [(token_scores(layer, target) > 0).float().mean().item() for layer in range(DEPTH)]
    assert kept == pytest.approx(shares, abs=0.015)  # four standard deviations
    assert sum(kept) / DEPTH == pytest.approx(target, abs=0.015)


def test_a_token_draws_once_so_that_masks_are_nested() -> None:
    before = torch.ones(B, N, dtype=torch.bool)
    for layer in range(DEPTH):
        kept = token_scores(layer, 0.5) > 0
        assert not (kept & ~before).any()
        before = kept


@pytest.mark.parametrize("target", [0.25, 0.5, 0.9])
def test_heads_are_kept_at_the_share_asked_for(target: float) -> None:
    assert (head_scores(target) > 0).float().mean().item() == pytest.approx(target, abs=0.03)


def test_a_target_of_one_keeps_everything() -> None:
    assert (token_scores(DEPTH - 1, 1.0) > 0).all()
    assert (head_scores(1.0) > 0).all()


def test_the_threshold_shifts_the_share() -> None:
    scores = token_scores(0, 0.5)
    kept = [(scores > threshold).float().mean().item() for threshold in (-2.0, 0.0, 2.0)]
    share = torch.logit(torch.tensor(kept_by_layer(0.5, DEPTH)[0]))
    expected = [torch.sigmoid(share - threshold).item() for threshold in (-2.0, 0.0, 2.0)]
    assert kept == pytest.approx(expected, abs=0.02)


def test_draws_differ_between_instances_streams_sites_and_seeds() -> None:
    kept = token_scores(2, 0.5) > 0
    assert len({tuple(row) for row in kept.tolist()}) == B
    for other in (token_scores(2, 0.5, seed=1), token_scores(2, 0.5, stream="text")):
        agreement = ((other > 0) == kept).float().mean().item()
        assert agreement == pytest.approx(_chance(kept), abs=0.03)
    heads = head_scores(0.5) > 0
    for other in (
        head_scores(0.5, seed=1),
        head_scores(0.5, "vision.1.self_head"),
        head_scores(0.5, "x.0.self_head"),
    ):
        assert ((other > 0) == heads).float().mean().item() == pytest.approx(0.5, abs=0.04)


def _chance(kept: Tensor) -> float:
    share = kept.float().mean().item()
    return share**2 + (1 - share) ** 2


def test_draws_are_reproducible_and_do_not_touch_the_generator() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert torch.equal(token_scores(1, 0.4), token_scores(1, 0.4))
    assert torch.equal(torch.get_rng_state(), before)
    permuted = torch.randperm(B)
    assert torch.equal(token_scores(1, 0.4)[permuted], token_scores(1, 0.4, ids=torch.arange(B)[permuted]))


def test_hashed_numbers_are_uniform() -> None:
    first, second = torch.meshgrid(torch.arange(2000), torch.arange(100), indexing="ij")
    for name in ("vision/0", "text.3.self_head/1"):
        numbers = uniform(site_seed(name), first, second)
        assert numbers.shape == (2000, 100) and numbers.dtype == torch.float32
        assert numbers.min() > 0 and numbers.max() < 1
        bins = torch.histc(numbers, 20, 0, 1) / numbers.numel()
        assert (bins - 0.05).abs().max() < 0.003
        neighbours = torch.stack((numbers[:, :-1].flatten(), numbers[:, 1:].flatten()))
        assert torch.corrcoef(neighbours)[0, 1].abs() < 0.02


def test_large_identities_do_not_overflow() -> None:
    ids = torch.tensor([2**31 - 1, 2**31 + 7, 2**40 + 3, 458752001])
    numbers = uniform(site_seed("vision/0"), ids, torch.zeros_like(ids))
    assert ((numbers > 0) & (numbers < 1)).all() and len(set(numbers.tolist())) == 4


def test_hashed_numbers_never_reach_one() -> None:
    """At 1 the logit is infinite, and a token is dropped whatever the target and the threshold."""
    rare = torch.tensor([16679364])
    assert uniform(site_seed("vision/0"), rare, torch.zeros_like(rare)) < 1


def test_numbers_of_one_instance_are_independent() -> None:
    """Otherwise the number of kept tokens per instance spreads wider than for independent draws."""
    first, second = torch.meshgrid(torch.arange(2000), torch.arange(200), indexing="ij")
    numbers = uniform(site_seed("vision/0"), first, second)
    spread = numbers.mean(1).std().item() * (12 * 200) ** 0.5
    assert spread == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("depth", [1, 2, 6, 18])
@pytest.mark.parametrize("mean", [0.05, 0.3, 0.5, 0.8, 1.0])
def test_the_profile_has_its_mean_and_falls(mean: float, depth: int) -> None:
    shares = kept_by_layer(mean, depth)
    assert len(shares) == depth
    assert sum(shares) / depth == pytest.approx(mean, abs=1e-6)
    assert shares == sorted(shares, reverse=True)
    assert all(0.02 <= share <= 1.0 for share in shares)


def test_the_profile_bends_at_its_floor() -> None:
    assert kept_by_layer(0.3, 6)[-1] == 0.02
    assert kept_by_layer(0.001, 6) == [0.02] * 6
    assert kept_by_layer(0.8, 4) == pytest.approx([1 - 0.08 * step for step in (1, 2, 3, 4)])

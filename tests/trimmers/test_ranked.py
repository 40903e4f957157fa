"""Rank scores, the layers that are chosen, the shares kept there, and rows of a view in both modes."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from smarttrim_cli.errors import UserError
from smarttrim_cli.pruning.stream import begin_masked, begin_packed, with_keep
from smarttrim_cli.trimmers._layers import chosen_layers
from smarttrim_cli.trimmers._per_instance import rows_of
from smarttrim_cli.trimmers._profile import kept_by_layer, kept_by_steps, ratio_at, step_ratio
from smarttrim_cli.trimmers._ranked import rank_scores, ranks, share_above
from smarttrim_cli.trimmers.base import TokenView


def test_scores_keep_the_share_at_every_threshold() -> None:
    torch.manual_seed(0)
    priority, removable = torch.randn(3, 21), torch.ones(3, 21, dtype=torch.bool)
    removable[:, 0] = False
    removable[1, 11:] = False
    removable[2, 2:] = False  # one token to rank
    scores = rank_scores(priority, removable, 0.6)
    for threshold in (-3.0, -1.0, 0.0, 0.7, 2.0):
        share = 1 / (1 + math.exp(threshold - math.log(0.6 / 0.4)))
        kept = (scores > threshold) & removable
        assert kept.sum(1).tolist() == [round(share * 20), round(share * 10), round(share)]
    order = priority[0, 1:].argsort(descending=True)
    assert torch.equal((scores[0, 1:] > 0).nonzero().squeeze(1), order[:12].sort().values)


def test_scores_of_a_spared_token_and_the_cls() -> None:
    priority, removable = torch.tensor([[0.0, 1.0, 3.0, 2.0, 0.0]]), torch.tensor([[0, 1, 1, 1, 1]]).bool()
    scores = rank_scores(priority, removable, 0.25, spared=1)
    assert (scores > 0).tolist() == [
        [True, False, True, True, False]
    ]  # a quarter of four, and the spared one
    assert (scores > 30).tolist() == [[True, False, True, False, False]]


def test_ranks() -> None:
    found = ranks(torch.tensor([[9.0, 1.0, 3.0, 2.0, 8.0]]), torch.tensor([[0, 1, 1, 1, 0]]).bool())
    assert found[0, 1:4].tolist() == [2, 0, 1]


def test_a_share_of_one_keeps_everything() -> None:
    removable = torch.tensor([[False] + [True] * 300])
    assert rank_scores(torch.randn(1, 301), removable, 1.0).min() > 10


def test_the_share_above_a_threshold() -> None:
    assert share_above(0.5, 0.0) == pytest.approx(0.5)
    assert share_above(0.8, math.log(4)) == pytest.approx(0.5)
    assert share_above(0.3, 1e9) == 0.0 and share_above(0.3, -1e9) == 1.0


@pytest.mark.parametrize(
    ("mean", "depth", "layers"), [(0.5, 12, (2, 6)), (0.7, 12, (5, 10)), (0.3, 18, (3, 9)), (0.9, 4, (0,))]
)
def test_the_step_ratio_meets_the_mean(mean: float, depth: int, layers: tuple[int, ...]) -> None:
    shares = kept_by_steps(step_ratio(mean, depth, layers), depth, layers)
    assert sum(shares) / depth == pytest.approx(mean, abs=1e-9)
    assert shares == sorted(shares, reverse=True)


def test_the_step_ratio_by_hand() -> None:
    assert kept_by_steps(0.5, 6, (1, 4)) == [1, 0.5, 0.5, 0.5, 0.25, 0.25]
    assert step_ratio(0.5, 6, (1, 4)) == pytest.approx(0.5)
    assert step_ratio(1.0, 6, (1, 4)) == 1.0
    assert step_ratio(0.01, 6, (3,)) == pytest.approx(0.02)  # cannot be met: the first three layers are whole


def test_ratios_multiply_to_the_profile() -> None:
    product = 1.0
    for layer, share in enumerate(kept_by_layer(0.4, 6)):
        product *= ratio_at(0.4, 6, layer)
        assert product == pytest.approx(share)


def test_chosen_layers() -> None:
    assert chosen_layers(None, 12, (1 / 6, 1 / 2)) == (2, 6)
    assert chosen_layers(None, 18, (1 / 6, 1 / 2)) == (3, 9)
    assert chosen_layers(None, 1, (1 / 6, 1 / 2)) == (0,)
    assert chosen_layers([10, 5, 5, 12], 12, ()) == (5, 10)
    with pytest.raises(UserError, match="none of"):
        chosen_layers([6, 7], 6, ())


def test_rows_are_the_same_in_both_modes_and_go_back() -> None:
    valid = torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0]], dtype=torch.bool)
    keep = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 0, 1, 1, 1, 1]])
    alive = valid & (keep.bool() | (torch.arange(6) == 0))
    tokens = torch.arange(12.0).view(2, 6, 1)
    ids = torch.zeros(1)
    masked = TokenView(tokens, tokens[:, 0], None, with_keep(begin_masked(valid), keep.float()), ids)
    stream, index_T = begin_packed(valid)
    packed, index_K = stream.select(alive.flatten()[index_T])
    packed = TokenView(tokens.flatten(0, 1)[index_T[index_K]][None], tokens[:, 0], None, packed, ids)
    for view in (masked, packed):
        rows = rows_of(view)
        assert rows.alive_RN.sum(1).tolist() == [4, 2]
        assert rows.removable_RN.sum(1).tolist() == [3, 1]
        laid = rows.lay(view.tokens)
        assert laid[0, :4, 0].tolist() == [0, 2, 3, 5] and laid[1, :2, 0].tolist() == [6, 8]
        assert_close(rows.back(laid), view.tokens)
        assert_close(rows.back(laid[..., 0]), view.tokens[..., 0])

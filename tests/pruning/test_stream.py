"""Streams: padding leaves at the start, order and positions stay, the CLS is never dropped; and their log."""

from __future__ import annotations

import math

import torch

from smarttrim_cli.pruning.decisions import Decisions, keep_grid, unpack
from smarttrim_cli.pruning.stream import begin_masked, begin_packed, with_keep

VALID = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)


def test_packing_leaves_the_padding_out() -> None:
    stream, index_T = begin_packed(VALID)
    assert stream.lengths == (3, 1, 4) and stream.size == 4
    assert index_T.tolist() == [0, 1, 2, 4, 8, 9, 10, 11]
    assert stream.starts_B.tolist() == [0, 3, 4]
    assert stream.segment_T.tolist() == [0, 0, 0, 1, 2, 2, 2, 2]
    assert stream.positions_T.tolist() == [0, 1, 2, 0, 0, 1, 2, 3]
    assert stream.counts_B().tolist() == [3, 1, 4]


def test_padding_may_lie_between_tokens() -> None:
    stream, index_T = begin_packed(torch.tensor([[1, 0, 1], [1, 1, 0]], dtype=torch.bool))
    assert index_T.tolist() == [0, 2, 3, 4]
    assert stream.positions_T.tolist() == [0, 2, 0, 1]


def test_selecting_keeps_order_and_original_positions() -> None:
    stream, _ = begin_packed(VALID)
    first, index = stream.select(torch.tensor([1, 0, 1, 1, 1, 0, 1, 1], dtype=torch.bool))
    assert index.tolist() == [0, 2, 3, 4, 6, 7]
    assert first.lengths == (2, 1, 3)
    assert first.positions_T.tolist() == [0, 2, 0, 0, 2, 3]
    second, index = first.select(torch.tensor([1, 1, 1, 1, 0, 1], dtype=torch.bool))
    assert second.positions_T.tolist() == [0, 2, 0, 0, 3]
    assert second.starts_B.tolist() == [0, 2, 3] and second.size == 4
    assert keep_grid(second).int().tolist() == [[1, 0, 1, 0], [1, 0, 0, 0], [1, 0, 0, 1]]


def test_rows_of_instances_reach_their_tokens_in_both_modes() -> None:
    rows = torch.tensor([[1.0], [2.0], [3.0]])
    packed, index_T = begin_packed(VALID)
    masked = begin_masked(VALID)
    assert packed.spread(rows).tolist() == [[[1.0]] * 3 + [[2.0]] + [[3.0]] * 4]
    assert masked.spread(rows).shape == (3, 1, 1)
    grid = masked.spread_scalar(rows[:, 0])
    assert grid.flatten()[index_T].tolist() == packed.spread_scalar(rows[:, 0])[0].tolist()
    assert masked.positions.flatten()[index_T].tolist() == packed.positions[0].tolist()


def test_cls_of_every_instance() -> None:
    hidden = torch.arange(24.0).view(3, 4, 2)
    packed, index_T = begin_packed(VALID)
    assert torch.equal(packed.cls_BD(hidden.flatten(0, 1)[index_T][None]), hidden[:, 0])
    assert torch.equal(begin_masked(VALID).cls_BD(hidden), hidden[:, 0])


def test_masks_multiply_and_the_cls_stays() -> None:
    stream = begin_masked(VALID)
    first = with_keep(stream, torch.tensor([[0.0, 1, 0, 1]] * 3))
    assert first.keep_BN.tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 0, 1]]
    second = with_keep(first, torch.tensor([[0.0, 0, 1, 1]] * 3))
    assert second.keep_BN.tolist() == [[1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 1]]
    assert second.counts_B().tolist() == [1, 1, 2]


def test_decisions_of_the_cls_and_of_padding_have_no_gradient() -> None:
    keep = torch.ones(3, 4, requires_grad=True)
    with_keep(begin_masked(VALID), keep).keep_BN.sum().backward()
    assert keep.grad is not None
    assert keep.grad.tolist() == [[0, 1, 1, 0], [0, 0, 0, 0], [0, 1, 1, 1]]


def test_values_return_to_their_original_positions() -> None:
    stream, _ = begin_packed(VALID)
    stream, index = stream.select(torch.tensor([1, 0, 1, 1, 1, 0, 0, 1], dtype=torch.bool))
    grid = unpack(stream, index.float(), float("nan"))
    found = [[None if math.isnan(value) else value for value in row] for row in grid.tolist()]
    assert found == [[0, None, 2, None], [3, None, None, None], [4, None, None, 7]]


def test_removable_tokens_and_single_instances() -> None:
    log = Decisions(
        keep={"text.0.token": VALID, "text.0.self_head": torch.eye(3, dtype=torch.bool)},
        valid={"text": VALID},
        counts={"text.0.token": VALID.sum(1)},
    )
    assert log.removable_B("text").tolist() == [2, 0, 3]
    one = log.instance(2)
    assert one.keep["text.0.self_head"].tolist() == [[False, False, True]]
    assert one.counts["text.0.token"].tolist() == [4] and one.valid["text"].shape == (1, 4)

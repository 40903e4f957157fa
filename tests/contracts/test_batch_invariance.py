"""Contract: an instance is decided and answered alike alone, in a batch, in any order, with any padding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from smarttrim_cli.pruning.model import Forward, TrimmedModel
from tests import tiny
from tests.tiny import Variant

EXACT = {"rtol": 0.0, "atol": 1e-5}
MODES = ("masked", "packed")


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def run(model: TrimmedModel, inputs: dict[str, Tensor], mode: str, ids: Tensor) -> Forward:
    return model(inputs, mode, instance_ids=ids, log_scores=True)


def assert_same(one: Forward, row: int, batch: Forward, index: int) -> bool:
    """Row of one forward equals row of another; False where a score lies too near the threshold to tell."""
    if min(tiny.margin_B(f.decisions, len(f.output))[i] for f, i in ((one, row), (batch, index))) < 1e-4:
        return False
    wanted = batch.decisions.instance(index).keep
    for name, keep in one.decisions.instance(row).keep.items():
        expected = wanted[name]
        length = min(keep.shape[1], expected.shape[1])
        assert torch.equal(keep[:, :length], expected[:, :length]), name
        assert not keep[:, length:].any() and not expected[:, length:].any()
    assert_close(one.output[row], batch.output[index], **EXACT)
    return True


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pair", tiny.pairs(), ids="+".join)
@pytest.mark.parametrize("variant", tiny.variants(), ids=str)
def test_alone_is_in_a_batch(variant: Variant, pair: tuple[str, str], mode: str) -> None:
    model = tiny.attach(variant.build(), *pair)
    inputs, ids = tiny.ragged_inputs(model.backbone), tiny.ids()
    batch = run(model, inputs, mode, ids)
    alone = [run(model, tiny.instance(inputs, i), mode, ids[i : i + 1]) for i in range(len(ids))]
    assert sum(assert_same(one, 0, batch, i) for i, one in enumerate(alone)) >= 4


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pair", tiny.pairs(), ids="+".join)
def test_any_order_and_any_batch_mates(pair: tuple[str, str], mode: str) -> None:
    for variant in tiny.one_per_form():
        model = tiny.attach(variant.build(), *pair)
        inputs, ids = tiny.ragged_inputs(model.backbone), tiny.ids()
        batch = run(model, inputs, mode, ids)
        for order in ([4, 2, 0, 3, 1], [3, 3, 1]):
            mixed = run(model, tiny.chosen(inputs, order), mode, ids[order])
            same = [assert_same(mixed, row, batch, i) for row, i in enumerate(order)]
            assert sum(same) >= len(order) - 1


@pytest.mark.parametrize("mode", (*MODES, "full"))
@pytest.mark.parametrize("variant", tiny.variants(), ids=str)
def test_more_padding_changes_nothing(variant: Variant, mode: str) -> None:
    model = tiny.attach(variant.build(), *tiny.pairs()[0])
    inputs, padded = (tiny.ragged_inputs(model.backbone, extra=extra) for extra in (0, 5))
    if "input_ids" not in inputs:
        pytest.skip("no text to pad")
    assert padded["input_ids"].shape[-1] == inputs["input_ids"].shape[-1] + 5
    few, many = run(model, inputs, mode, tiny.ids()), run(model, padded, mode, tiny.ids())
    if mode == "full":
        assert_close(many.output, few.output, **EXACT)
    else:
        assert sum(assert_same(few, i, many, i) for i in range(len(tiny.LENGTHS))) >= 4


@pytest.mark.parametrize("mode", MODES)
def test_what_stands_on_padding_does_not_matter(mode: str) -> None:
    for variant in tiny.one_per_form():
        model = tiny.attach(variant.build(), *tiny.pairs()[0])
        inputs = tiny.ragged_inputs(model.backbone)
        if "input_ids" not in inputs:
            continue
        other = {**inputs, "input_ids": inputs["input_ids"].clone()}
        other["input_ids"][inputs["attention_mask"] == 0] = 17
        first, second = (run(model, each, mode, tiny.ids()) for each in (inputs, other))
        assert_close(first.output, second.output, **EXACT)


def test_a_batch_has_instances_of_different_cost() -> None:
    """Otherwise the contracts above would hold by accident."""
    for variant in tiny.first_variants():
        model = tiny.attach(variant.build(), *tiny.pairs()[0])
        log = model(tiny.ragged_inputs(model.backbone), "packed").decisions
        counts = torch.stack([count for name, count in log.counts.items() if name.endswith("token")])
        assert all(len(set(column)) > 1 for column in counts.tolist())

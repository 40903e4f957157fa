"""Contracts: attaching leaves the host's names alone, can be repeated, and copies are independent."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.testing import assert_close

from smarttrim_cli.pruning.model import TrimmedModel
from tests import tiny
from tests.tiny import Variant


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("variant", tiny.variants(), ids=str)
def test_attaching_keeps_names_and_weights(variant: Variant) -> None:
    host = variant.build()
    before = {name: tensor.clone() for name, tensor in host.state_dict().items()}
    types = {name: type(module) for name, module in host.named_modules()}
    model = tiny.attach(host, *tiny.pairs()[0])
    after = host.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert [name for name, _ in host.named_modules()] == list(types)
    assert all(isinstance(module, types[name]) for name, module in host.named_modules())
    extra = [name for name in model.state_dict() if not name.startswith("backbone.")]
    assert all(name == "threshold" or name.startswith("trimmers.") for name in extra)


@pytest.mark.parametrize("variant", tiny.variants(), ids=str)
@pytest.mark.parametrize("mode", ["full", "masked", "packed"])
def test_a_deep_copy_is_equal_and_independent(variant: Variant, mode: str) -> None:
    model = tiny.attach(variant.build(), *tiny.pairs()[0])
    inputs = tiny.ragged_inputs(model.backbone)
    before = model(inputs, mode).output
    twin = copy.deepcopy(model)
    assert torch.equal(twin(inputs, mode).output, before)
    for tensor in model.parameters():
        tensor.fill_(0.01)
    assert torch.equal(twin(inputs, mode).output, before)
    assert not torch.allclose(model(inputs, mode).output, before)


@pytest.mark.parametrize("variant", tiny.first_variants(), ids=str)
def test_attaching_twice_is_harmless(variant: Variant) -> None:
    host = variant.build()
    first = tiny.attach(host, *tiny.pairs()[0], seed=1)
    inputs = tiny.ragged_inputs(host)
    full, packed = first(inputs, "full").output, first(inputs, "packed").output
    second = tiny.attach(host, *tiny.pairs()[0], seed=2)
    assert torch.equal(second(inputs, "full").output, full)
    assert torch.equal(first(inputs, "packed").output, packed)
    assert not torch.allclose(second(inputs, "packed").output, packed)
    bare = TrimmedModel(host, {})
    for mode in ("masked", "packed"):
        assert_close(bare(inputs, mode).output, full, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("variant", tiny.first_variants(), ids=str)
def test_a_failed_forward_leaves_no_context_behind(variant: Variant) -> None:
    model = tiny.attach(variant.build(), *tiny.pairs()[0])
    inputs = tiny.ragged_inputs(model.backbone)
    full = model(inputs, "full").output
    broken = {**inputs, "pixel_values": inputs["pixel_values"][..., :3]}
    for mode in ("masked", "packed"):
        with pytest.raises((AssertionError, RuntimeError)):
            model(broken, mode)
        assert torch.equal(model(inputs, "full").output, full)


@pytest.mark.parametrize("variant", tiny.first_variants(), ids=str)
def test_state_dict_round_trip(variant: Variant) -> None:
    model = tiny.attach(variant.build(0), *tiny.pairs()[0], seed=0)
    other = tiny.attach(variant.build(1), *tiny.pairs()[0], seed=1)
    model.threshold.fill_(0.25)
    inputs = tiny.ragged_inputs(model.backbone)
    other.load_state_dict(model.state_dict())
    for mode in ("full", "masked", "packed"):
        assert torch.equal(other(inputs, mode).output, model(inputs, mode).output)

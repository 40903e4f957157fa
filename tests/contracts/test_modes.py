"""Contracts: ``full`` is the host, keeping everything is ``full``, ``packed`` is ``masked``."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from smarttrim_cli import registry
from smarttrim_cli.pruning.model import Forward
from tests import tiny
from tests.tiny import Variant

PAIRS = tiny.pairs()
VARIANTS = tiny.variants()
EXACT = {"rtol": 0.0, "atol": 1e-5}

pytestmark = pytest.mark.filterwarnings("error::UserWarning")


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def test_every_backbone_has_a_tiny_configuration() -> None:
    missing = set(registry.names("backbones")) - set(tiny.BACKBONES)
    assert not missing, f"add a tiny configuration of {sorted(missing)} to tests/tiny.py"


def test_there_are_token_and_head_trimmers_to_test() -> None:
    assert {"cross_modal", "random_token"} <= set(tiny.trimmers("token"))
    assert {"global_head", "random_head"} <= set(tiny.trimmers("head"))
    assert set(registry.names("trimmers")) == {*tiny.trimmers("token"), *tiny.trimmers("head")}


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_full_is_the_host_bit_for_bit(variant: Variant) -> None:
    host = variant.build()
    inputs = tiny.ragged_inputs(host)
    before = copy.deepcopy(host)(**inputs)
    assert before.std() > 0.1  # lively weights, or this says nothing
    model = tiny.attach(host, *PAIRS[0])
    assert torch.equal(model(inputs, "full").output, before)
    model(inputs, "masked")
    model(inputs, "packed")
    assert torch.equal(model(inputs, "full").output, before)


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_keeping_everything_is_full(variant: Variant, pair: tuple[str, str]) -> None:
    model = tiny.attach(variant.build(), *pair)
    inputs = tiny.ragged_inputs(model.backbone)
    full = model(inputs, "full").output
    with model.at_threshold(-1e9):
        for mode in ("masked", "packed"):
            forward = model(inputs, mode, instance_ids=tiny.ids())
            assert_close(forward.output, full, **EXACT)
            for name, keep in forward.decisions.keep.items():
                valid = forward.decisions.valid.get(name.split(".")[0]) if name.endswith("token") else None
                assert torch.equal(keep, torch.ones_like(keep) if valid is None else valid)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_packed_is_masked_with_decisions_of_their_own(variant: Variant, pair: tuple[str, str]) -> None:
    model = tiny.attach(variant.build(), *pair)
    inputs = tiny.ragged_inputs(model.backbone)
    masked = model(inputs, "masked", instance_ids=tiny.ids(), log_scores=True)
    packed = model(inputs, "packed", instance_ids=tiny.ids(), log_scores=True)
    clear_B = tiny.margin_B(packed.decisions) > 1e-4
    assert clear_B.sum() >= 4
    for name, keep in masked.decisions.keep.items():
        for one, other in ((keep, packed.decisions.keep[name]), _counts(masked, packed, name)):
            rows = (tiny.per_instance(packed.decisions, name, values)[clear_B] for values in (one, other))
            assert_close(*rows, msg=name)
    assert_close(packed.output[clear_B], masked.output[clear_B], **EXACT)
    changed = (packed.output - model(inputs, "full").output).abs().flatten(1)
    assert changed.amax(1).min() > (1e-3 if pair[0] == "tome" else 1e-2)  # something was dropped, or merged


def _counts(masked: Forward, packed: Forward, name: str) -> tuple[Tensor, Tensor]:
    return masked.decisions.counts[name], packed.decisions.counts[name].float()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_packed_is_masked_with_replayed_decisions(variant: Variant, seed: int) -> None:
    model = tiny.attach(variant.build(seed), *PAIRS[0])
    inputs = tiny.ragged_inputs(model.backbone, seed)
    replay = tiny.random_decisions(model, inputs, seed)
    heads = [keep.sum(1) for name, keep in replay.keep.items() if name.endswith("head")]
    assert torch.cat(heads).amin() == 0  # somewhere all heads are dropped
    masked, packed = (model(inputs, mode, replay=replay) for mode in ("masked", "packed"))
    assert_close(packed.output, masked.output, **EXACT)
    for name, keep in masked.decisions.keep.items():
        assert torch.equal(keep, packed.decisions.keep[name]), name
    tokens = [count for name, count in packed.decisions.counts.items() if name.endswith("token")]
    assert torch.cat(tokens).amin() == 1  # somewhere only the CLS is left


@pytest.mark.parametrize("variant", tiny.one_per_form(), ids=str)
@pytest.mark.parametrize("drop", ["tokens", "heads", "everything"])
def test_packed_is_masked_at_the_extremes(variant: Variant, drop: str) -> None:
    model = tiny.attach(variant.build(), *PAIRS[0])
    inputs = tiny.ragged_inputs(model.backbone)
    replay = model(inputs, "masked").decisions
    for name, keep in replay.keep.items():
        dropped = drop == "everything" or name.endswith("token") == (drop == "tokens")
        replay.keep[name] = torch.full_like(keep, not dropped)
    masked, packed = (model(inputs, mode, replay=replay) for mode in ("masked", "packed"))
    assert_close(packed.output, masked.output, **EXACT)
    for forward in (masked, packed):
        for name, count in forward.decisions.counts.items():
            if name.endswith("token") and drop != "heads":
                assert count.tolist() == [1] * len(count)
            if name.endswith("head") and drop != "tokens":
                assert count.tolist() == [0] * len(count)


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_decisions_are_monotone_and_keep_the_cls_and_no_padding(pair: tuple[str, str], mode: str) -> None:
    model = tiny.attach(tiny.meter(), *pair)
    log = model(tiny.ragged_inputs(model.backbone), mode, instance_ids=tiny.ids()).decisions
    for stream, before in log.valid.items():
        for layer in range(model.architecture.depth(stream)):
            keep = log.keep[f"{stream}.{layer}.token"]
            assert keep[:, 0].all()
            assert not (keep & ~before).any()
            before = keep
        assert before.sum() < log.valid[stream].sum()


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_masked_and_packed_in_float64_agree_much_closer(variant: Variant) -> None:
    model = tiny.attach(variant.build(), *PAIRS[0]).double()
    inputs = tiny.ragged_inputs(model.backbone)
    inputs["pixel_values"] = inputs["pixel_values"].double()
    masked = model(inputs, "masked")
    packed = model(inputs, "packed", replay=masked.decisions)
    assert_close(packed.output, masked.output, rtol=0.0, atol=1e-12)

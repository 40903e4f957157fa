"""Trimmers that cost more than they save."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from smarttrim_cli.pruning.cost import double_counts, instance_macs, total_macs
from smarttrim_cli.pruning.economy import _costs_K, unprofitable
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.pruning.sites import TOKEN, Site
from tests import tiny

IDLE, BUSY = 1e5, -1e5
"""Shifts of scores: everything is kept, everything is dropped."""


def _model(form: str, **shifts: float) -> TrimmedModel:
    """A model whose trimmers drop nothing, but those named."""
    host = tiny.Variant("meter", "plain", tiny.BACKBONES["meter"]["plain"], form).build()
    model = tiny.attach(host, "cross_modal", "global_head")
    for name, trimmer in model.sites.items():
        trimmer.shift_scores(shifts.get(name.replace(".", "_"), IDLE))
    return model


def _batches(model: TrimmedModel) -> list[Any]:
    inputs = tiny.ragged_inputs(model.backbone)
    return [SimpleNamespace(inputs=inputs, instance_ids=tiny.ids())] * 2


@torch.no_grad()
def _macs(model: TrimmedModel) -> float:
    (batch, *_) = _batches(model)
    return float(instance_macs(model, model(batch.inputs, "masked").decisions)[0].sum())


@pytest.mark.parametrize("form", ["vqa", "nlvr2"])
def test_idle_ones_are_found_and_busy_ones_stay(form: str) -> None:
    model = _model(form, vision_1_token=BUSY, vision_0_head=BUSY)
    found = unprofitable(model, _batches(model))
    assert set(found) == set(model.sites) - {"vision.1.token", "vision.0.head"}
    assert len(found) == len(set(found))


def test_one_that_repeats_what_was_decided_before_it_goes_with_the_dearest_first() -> None:
    model = _model("vqa", vision_0_token=BUSY, vision_1_token=BUSY)
    found = unprofitable(model, _batches(model))
    assert "vision.1.token" in found and "vision.0.token" not in found
    first, last = (model.sites[name] for name in (found[0], found[-1]))
    assert first.token_macs() > 0 == last.token_macs()  # of tokens, then of heads


def test_what_is_reckoned_is_what_the_model_costs_without_them() -> None:
    model = _model("vqa", vision_0_token=BUSY)
    before, names = _macs(model), unprofitable(model, _batches(model))
    with_all = dict(model.sites)
    model.remove(names)
    assert set(model.sites) == set(with_all) - set(names)
    after = _macs(model)
    assert after < before
    assert unprofitable(model, _batches(model)) == []
    left = _batches(model)[0]
    with torch.no_grad():
        decisions = model(left.inputs, "packed").decisions
    assert float(instance_macs(model, decisions)[0].sum()) == after
    assert all(int(decisions.counts[name].max()) > 1 for name in ("text.0.token", "text.1.token"))


def test_the_dearer_a_call_the_fewer_pay() -> None:
    model = _model("vqa", vision_0_token=BUSY, vision_0_self_head=BUSY, text_0_token=BUSY)
    found = [unprofitable(model, _batches(model), call_macs) for call_macs in (0.0, 1e3, 1e12)]
    assert set(found[0]) <= set(found[1]) <= set(found[2]) == set(model.sites)
    assert len(found[0]) < len(found[2])


@pytest.mark.parametrize("form", ["vqa", "nlvr2"])
@torch.no_grad()
def test_all_ways_at_once_cost_what_each_costs_alone(form: str) -> None:
    """Against scores compared token by token, and the cost model asked once for every way."""
    host = tiny.Variant("meter", "plain", tiny.BACKBONES["meter"]["plain"], form).build()
    model = tiny.attach(host, "cross_modal", "global_head")
    model.threshold.fill_(0.3)
    log = model(tiny.ragged_inputs(host), "masked", log_scores=True).decisions
    found_K = _costs_K(model, log, model.sites, list(model.sites))
    for way, left_out in enumerate([*model.sites, None]):
        counts = {}
        alive = {stream: valid_RN.clone() for stream, valid_RN in log.valid.items()}
        for name in log.counts:
            site, above = Site.parse(name), log.scores[name] > 0.3
            if site.kind == TOKEN:
                if name != left_out:
                    alive[site.stream] &= above | (torch.arange(above.shape[1]) == 0)
                counts[name] = alive[site.stream].sum(1)
            else:
                counts[name] = (
                    torch.full_like(above.sum(1), above.shape[1]) if name == left_out else above.sum(1)
                )
        trimmers = {name: trimmer for name, trimmer in model.sites.items() if name != left_out}
        measured = double_counts(model.architecture, replace(log, counts=counts))
        expected = float(total_macs(model.architecture, measured, trimmers).sum())
        assert float(found_K[way]) == pytest.approx(expected, rel=1e-9), left_out


def test_trimmers_that_cost_nothing_or_rank_are_left_alone() -> None:
    host = tiny.meter()
    for pair in (("random_token", "random_head"), ("tome", "random_head")):
        model = tiny.attach(host, *pair)
        model.set_targets(dict.fromkeys(model.groups, 0.5))
        assert unprofitable(model, _batches(model)) == []

"""Costs computed for many instances at once are those of every instance by itself."""

from __future__ import annotations

import pytest
import torch

from smarttrim_cli.engine import costs
from smarttrim_cli.engine.costs import CostLog
from smarttrim_cli.engine.inference import Predictions, add_costs
from smarttrim_cli.pruning.cost import instance_macs
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.pruning.objective import kept_fractions, sites_heads
from smarttrim_cli.pruning.sites import TOKEN, Site
from tests.tiny import (
    Variant,
    as_ranking,
    attach,
    chosen,
    generates,
    one_per_form,
    paper_model,
    ragged_inputs,
)

SIZES = ([0, 1, 2], [3], [4, 0])
"""Batches of the ragged instances."""


def logged(model: TrimmedModel, batches: list, mode: str) -> tuple[Predictions, list]:
    result, forwards = Predictions(), []
    log = CostLog(model, result)
    for inputs in batches:
        forwards.append(model(inputs, mode))
        log.add(forwards[-1].context)
    assert result.macs == [] or costs.AT_ONCE < 8
    log.flush()
    log.flush()  # nothing is left
    return result, forwards


def batches_of(model: TrimmedModel) -> list:
    inputs = ragged_inputs(model.backbone)
    if generates(model.backbone) and "input_ids" in inputs:
        inputs = as_ranking(inputs)
    return [chosen(inputs, rows) for rows in SIZES]


def assert_same(result: Predictions, model: TrimmedModel, forwards: list) -> None:
    expected: dict = {"macs": [], "full": [], "published": []}
    by_batch = Predictions()
    heads = {site.name: sites_heads(model, site) for site in model.architecture.sites() if site.kind != TOKEN}
    kept: dict[str, list[float]] = {}
    for forward in forwards:
        add_costs(by_batch, model, forward.decisions)
        trimmed_B, full_B = instance_macs(model, forward.decisions)
        expected["macs"] += trimmed_B.tolist()
        expected["full"] += full_B.tolist()
        if forward.decisions.work:
            pair = (x.tolist() for x in instance_macs(model, forward.decisions, as_published=True))
            expected["published"] += list(zip(*pair, strict=True))
        for group, values_B in kept_fractions(forward.decisions, model.groups, heads).items():
            kept.setdefault(group, []).extend(values_B.tolist())
    for found in (result, by_batch):
        assert found.macs == expected["macs"]
        assert found.full_macs == expected["full"]
        assert found.published == expected["published"]
        assert sum(found.parts.values()) == pytest.approx(sum(found.macs), rel=1e-12)
        assert sum(found.full_parts.values()) == pytest.approx(sum(found.full_macs), rel=1e-12)
        assert found.kept.keys() == kept.keys()
        for group, values in kept.items():
            assert found.kept[group] == pytest.approx(values, abs=1e-6)
    for name in ("parts", "full_parts"):
        assert getattr(result, name) == pytest.approx(getattr(by_batch, name), rel=1e-12)


@pytest.mark.parametrize("mode", ["packed", "masked"])
@pytest.mark.parametrize("variant", one_per_form(), ids=str)
@torch.no_grad()
def test_every_backbone_and_form(variant: Variant, mode: str) -> None:
    model = attach(variant.build(), "cross_modal", "global_head")
    result, forwards = logged(model, batches_of(model), mode)
    assert_same(result, model, forwards)


@torch.no_grad()
def test_sites_without_a_trimmer_keep_all() -> None:
    whole = paper_model()
    few = {name: trimmer for name, trimmer in whole.sites.items() if name.startswith("vision.1.")}
    assert {Site.parse(name).kind for name in few} == {TOKEN, "self_head"}
    model = TrimmedModel(whole.backbone, few).eval()
    result, forwards = logged(model, batches_of(model), "packed")
    assert_same(result, model, forwards)


@torch.no_grad()
def test_any_number_of_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "AT_ONCE", 3)
    model = paper_model()
    result, forwards = logged(model, batches_of(model), "packed")
    assert len(result.macs) == 6
    assert_same(result, model, forwards)

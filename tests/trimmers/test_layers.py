"""Trimmers at every few layers: where they stand, what is planned for them, and that plans come true."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from smarttrim_cli import registry
from smarttrim_cli.engine.build import attach
from smarttrim_cli.engine.plan import backbone_without_data
from smarttrim_cli.engine.simulate import simulated_trimmers
from smarttrim_cli.pruning.cost import planned_counts
from smarttrim_cli.pruning.model import TrimmedModel, site_info
from smarttrim_cli.pruning.plan import make_plan
from smarttrim_cli.pruning.sites import Site
from smarttrim_cli.recipe import load_recipe
from smarttrim_cli.trimmers._layers import EveryFewLayers
from smarttrim_cli.trimmers._profile import kept_by_layer
from smarttrim_cli.trimmers._simulated import SimulatedTrimmer
from smarttrim_cli.trimmers.base import SiteInfo
from tests import tiny

SOME = ("cross_modal", "local", "random_token")
"""The shipped trimmers that take ``every``."""


@pytest.mark.parametrize(
    ("every", "depth", "layers"),
    [(1, 4, (0, 1, 2, 3)), (2, 6, (1, 3, 5)), (2, 5, (1, 3)), (3, 8, (2, 5)), (5, 2, (1,)), (7, 1, (0,))],
)
def test_the_last_of_every_few_layers_has_one(every: int, depth: int, layers: tuple[int, ...]) -> None:
    assert EveryFewLayers(every=every).layers(depth) == layers


@pytest.mark.parametrize("name", SOME)
def test_other_layers_have_none(name: str) -> None:
    plugin = registry.load("trimmers", name)
    sites = [SiteInfo(f"vision.{layer}.token", layer, 6, 8, 4) for layer in range(6)]
    built = [plugin.build(plugin.Options(every=3), site) for site in sites]
    assert [trimmer is not None for trimmer in built] == [False, False, True, False, False, True]
    assert all(plugin.build(plugin.Options(), site) is not None for site in sites)


@pytest.mark.parametrize("mean", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("layers", [(1, 3, 5), (2, 5), (0, 4)])
def test_the_planned_staircase_has_the_mean_asked_for(mean: float, layers: tuple[int, ...]) -> None:
    shares = kept_by_layer(mean, 6, layers)
    assert sum(shares) / 6 == pytest.approx(max(mean, sum(kept_by_layer(0.001, 6, layers)) / 6), abs=1e-6)
    falls = [layer for layer in range(6) if shares[layer] < (shares[layer - 1] if layer else 1.0)]
    assert set(falls) <= set(layers)
    assert kept_by_layer(mean, 6, range(6)) == kept_by_layer(mean, 6)


def recipe(*overrides: str) -> Any:
    return load_recipe("recipes/quickstart.yaml", overrides)


@torch.no_grad()
def test_random_decisions_at_every_second_layer_keep_what_is_planned() -> None:
    """``profile --random-weights``: as many tokens, layer by layer, as the plan says."""
    chosen = recipe(
        "pruning.token_trimmer={name: cross_modal, every: 2}",
        "pruning.target_sparsity={token: {vision: 0.5}}",
        "pruning.target_speedup=null",
    )
    backbone = backbone_without_data(chosen).eval()
    model = TrimmedModel(backbone, simulated_trimmers(backbone, chosen)).eval()
    depth = model.architecture.depth("vision")
    assert [name for name in model.sites if "token" in name] == [
        f"vision.{layer}.token" for layer in EveryFewLayers(every=2).layers(depth)
    ]
    tokens = backbone.token_counts(10)
    asked = chosen.pruning.target_sparsity.groups()
    plan = make_plan(model.architecture, model.sites, model.groups, tokens, asked, None)
    model.set_targets(plan.kept)
    inputs = backbone.example_inputs(10, batch=64)
    counts = model(inputs, "packed", instance_ids=torch.arange(64)).decisions.counts
    planned = planned_counts(model.architecture, tokens, plan.kept, model.sites)
    for layer in range(depth):
        name = f"vision.{layer}.token"
        assert float(counts[name].float().mean()) == pytest.approx(float(planned[name]), abs=0.6), name
    mean = sum(float(planned[f"vision.{layer}.token"]) - 1 for layer in range(depth)) / depth
    assert mean == pytest.approx(0.5 * (tokens["vision"] - 1))


@pytest.mark.parametrize(
    ("every", "option"), [(1, ""), (1, ", every: 1"), (2, ", every: 2"), (3, ", every: 3")]
)
def test_random_decisions_are_planned_for_the_layers_of_the_trimmers(every: int, option: str) -> None:
    chosen = recipe(f"pruning.token_trimmer={{name: local{option}}}")
    backbone = backbone_without_data(chosen)
    depth = backbone.architecture().depth("vision")
    layers = EveryFewLayers(every=every).layers(depth)
    found = {n: t for n, t in simulated_trimmers(backbone, chosen).items() if n.startswith("vision")}
    assert list(found) == [f"vision.{layer}.token" for layer in layers]
    for trimmer in found.values():
        assert isinstance(trimmer, SimulatedTrimmer) and trimmer.random.layers == layers


@torch.no_grad()
def test_what_is_dropped_stays_dropped_at_the_layers_between() -> None:
    chosen = recipe(
        "pruning.token_trimmer={name: cross_modal, every: 2}", "strategy.stable_init.enabled=false"
    )
    torch.manual_seed(0)
    model = attach(chosen, backbone_without_data(chosen).eval()).eval()
    inputs = model.backbone.example_inputs(10, batch=3)
    packed, masked = model(inputs, "packed"), model(inputs, "masked")
    torch.testing.assert_close(packed.output, masked.output, rtol=1e-4, atol=1e-4)
    counts = packed.decisions.counts
    assert int(counts["vision.1.token"].min()) < int(counts["vision.0.token"].min())
    assert torch.equal(counts["vision.1.token"], counts["vision.2.token"])


@torch.no_grad()
@pytest.mark.parametrize("variant", tiny.variants(), ids=str)
def test_packed_is_masked_on_every_backbone(variant: tiny.Variant) -> None:
    whole = tiny.attach(variant.build(), "cross_modal", "global_head")
    plugin = registry.load("trimmers", "cross_modal")
    for name, trimmer in whole.sites.items():
        info = site_info(whole.architecture, Site.parse(name))
        if name.endswith(".token") and plugin.build(plugin.Options(every=2), info) is None:
            whole.remove([name])
        elif name.endswith(".token"):
            trimmer.shift_scores(-0.3)
    inputs = tiny.ragged_inputs(whole.backbone)
    masked = whole(inputs, "masked", instance_ids=tiny.ids(), log_scores=True)
    packed = whole(inputs, "packed", instance_ids=tiny.ids())
    clear_B = tiny.margin_B(masked.decisions) > 1e-4
    assert clear_B.any()
    torch.testing.assert_close(packed.output[clear_B], masked.output[clear_B], rtol=0.0, atol=1e-5)
    left = [name for name in whole.sites if name.endswith(".token")]
    assert left and all(Site.parse(name).layer % 2 == 1 for name in left)

"""The threshold at which a pass would have met its budget."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from smarttrim_cli.pruning.budget import head_levels, solved_threshold
from smarttrim_cli.pruning.cost import instance_macs
from smarttrim_cli.pruning.decisions import Decisions
from smarttrim_cli.pruning.gumbel import Sampling
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.pruning.sites import SELF_HEAD, TOKEN, Site
from tests import tiny

BATCH = 16


def _drawn(form: str = "vqa") -> tuple[TrimmedModel, dict[str, Any], Tensor, Decisions]:
    """A model whose scores are drawn, so that no decision changes any of them; a pass with its log."""
    host = tiny.Variant("meter", "plain", tiny.BACKBONES["meter"]["plain"], form).build()
    model = tiny.attach(host, "random_token", "random_head")
    inputs, ids = host.example_inputs(tiny.TEXT_TOKENS, batch=BATCH), torch.arange(BATCH)
    with torch.no_grad():
        log = model(inputs, "masked", instance_ids=ids, log_scores=True).decisions
    return model, inputs, ids, log


def _decided(model: TrimmedModel, inputs: dict[str, Any], ids: Tensor) -> Decisions:
    with torch.no_grad():
        return model(inputs, "masked", instance_ids=ids).decisions


@pytest.mark.parametrize("target", [0.4, 0.6, 0.8])
@pytest.mark.parametrize("form", ["vqa", "nlvr2"])
def test_scores_that_decisions_do_not_change_meet_the_target_at_once(form: str, target: float) -> None:
    model, inputs, ids, log = _drawn(form)
    model.threshold.copy_(solved_threshold(model, log, target))
    trimmed_B, full_B = instance_macs(model, _decided(model, inputs, ids))
    found = float(trimmed_B.sum() / full_B.sum())
    assert found <= target and found == pytest.approx(target, abs=0.02)


def test_where_everything_or_nothing_is_to_stay() -> None:
    model, inputs, ids, log = _drawn()
    model.threshold.copy_(solved_threshold(model, log, 2.0))
    kept = _decided(model, inputs, ids)
    for name in model.sites:
        site = Site.parse(name)
        assert kept.keep[name].equal(log.valid[site.stream]) if site.kind == TOKEN else kept.keep[name].all()
    model.threshold.copy_(solved_threshold(model, log, 0.0))
    left = _decided(model, inputs, ids)
    for name in model.sites:
        assert bool((left.counts[name] == (Site.parse(name).kind == TOKEN)).all())


def test_noise_is_part_of_what_the_threshold_is_solved_for() -> None:
    model = tiny.attach(tiny.meter(), "cross_modal", "global_head")
    inputs = model.backbone.example_inputs(tiny.TEXT_TOKENS, batch=4)
    forward = model(inputs, "masked", sampling=Sampling(1.0, noise=1.0), log_scores=True)
    first = min(model.sites)
    assert Site.parse(first).kind != TOKEN
    kept_BH, scores_BH = forward.decisions.keep[first], forward.decisions.scores[first]
    assert kept_BH.equal(scores_BH > model.threshold)
    assert not kept_BH.equal(model(inputs, "masked", log_scores=True).decisions.scores[first] > 0)


@pytest.mark.parametrize(("noisy", "tokens_too"), [("all", True), ("heads", False)])
def test_noise_may_be_for_heads_alone(noisy: str, tokens_too: bool) -> None:
    model = tiny.attach(tiny.meter(), "cross_modal", "global_head")
    inputs = model.backbone.example_inputs(tiny.TEXT_TOKENS, batch=4)
    quiet = model(inputs, "masked", log_scores=True).decisions.scores
    noised = model(inputs, "masked", sampling=Sampling(noisy=noisy), log_scores=True).decisions.scores
    token, head = "text.0.token", "text.0.self_head"  # nothing has been decided before them
    assert not noised[head].equal(quiet[head])
    assert noised[token].equal(quiet[token]) != tokens_too


def test_without_straight_through_no_gradient_reaches_the_scores() -> None:
    model = tiny.attach(tiny.meter(), "cross_modal", "global_head").train()
    inputs = model.backbone.example_inputs(tiny.TEXT_TOKENS, batch=4)
    gradients = []
    for straight in (True, False):
        model.zero_grad()
        model(inputs, "masked", sampling=Sampling(1.0, 0.0, straight)).output.sum().backward()
        own = [parameter.grad for parameter in model.trimmers.parameters()]
        gradients.append(sum(float(grad.abs().sum()) for grad in own if grad is not None))
    assert gradients[0] > 0 and gradients[1] == 0


def test_heads_alone_may_learn_by_what_was_decided() -> None:
    model = tiny.attach(tiny.meter(), "cross_modal", "global_head").train()
    inputs = model.backbone.example_inputs(tiny.TEXT_TOKENS, batch=4)
    model(inputs, "masked", sampling=Sampling(1.0, 0.0, "heads")).output.sum().backward()
    learn = {True: 0, False: 0}
    for name, trimmer in model.sites.items():
        for parameter in trimmer.parameters():
            if parameter.grad is not None and bool(parameter.grad.any()):
                learn[Site.parse(name).kind == TOKEN] += 1
    assert learn[False] > 0 and learn[True] == 0


def test_heads_meet_their_own_target_at_their_level() -> None:
    _, _, _, log = _drawn()
    kept = {"token.vision": 0.4, "head.vision": 0.5, "cross_head.text": 0.25, "head.decoder": 0.5}
    levels = head_levels(log, kept)
    assert sorted(levels) == ["cross_head.text", "head.vision"]
    for group, level in levels.items():
        own = [log.scores[name] for name in log.scores if Site.parse(name).group == group]
        above = torch.cat([scores.flatten() for scores in own]) > level
        assert float(above.float().mean()) == pytest.approx(kept[group], abs=0.01)


@pytest.mark.parametrize(
    ("scores", "kept", "expected"),
    [
        ([1.0, 2.0, 3.0, 4.0], 1.0, 4),
        ([2.0, 2.0, 2.0, 2.0], 1.0, 4),
        ([2.0, 2.0, 2.0, 2.0], 0.5, 4),  # nothing tells them apart
        ([1.0, 2.0, 2.0, 2.0, 3.0], 0.5, 4),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 0.5, 3),
        ([1.0, 2.0, 3.0, 4.0], 0.5, 2),
    ],
)
def test_heads_with_equal_scores_stay_together(scores: list[float], kept: float, expected: int) -> None:
    _, _, _, log = _drawn()
    log = replace(log, scores={Site("vision", 0, SELF_HEAD).name: torch.tensor([scores])})
    level = head_levels(log, {"head.vision": kept})["head.vision"]
    assert int((torch.tensor(scores) > level).sum()) == expected


@pytest.mark.parametrize("variant", tiny.one_per_form(), ids=str)
def test_every_form_has_one(variant: tiny.Variant) -> None:
    model = tiny.attach(variant.build(), "cross_modal", "global_head")
    inputs = tiny.ragged_inputs(model.backbone)
    with torch.no_grad():
        log = model(inputs, "masked", log_scores=True).decisions
    trimmed_B, full_B = instance_macs(model, log)
    now = float(trimmed_B.sum() / full_B.sum())
    found = [float(solved_threshold(model, log, now + by)) for by in (-0.05, 0.0, 0.05)]
    assert all(math.isfinite(value) for value in found)
    assert found[0] > found[2]  # less may stay above a higher one
    assert found[0] >= 0.0 >= found[2]  # on either side of the threshold that gave the present share

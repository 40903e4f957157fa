"""Heads that go for every instance: the part of the weights that is left, when it is made and used."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from smarttrim_cli.engine.flops import flop_counter_macs
from smarttrim_cli.pruning import packed_attention
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.pruning.prepared import PreparedLinear, prepare
from smarttrim_cli.pruning.static_heads import Part, StaticHeads
from tests import tiny

FORMS = [variant for variant in tiny.one_per_form() if variant.form != "captioning"]


def rows(linear: nn.Linear, index: Tensor) -> Part:
    """Every head has one row."""
    return linear.weight[index], None if linear.bias is None else linear.bias[index]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("laid_out", [True, False])
def test_through_a_part_of_a_layer(bias: bool, laid_out: bool) -> None:
    model = nn.Sequential(nn.Linear(256, 256, bias=bias))
    if laid_out:
        prepare(model)
    (linear,) = model
    heads, x = StaticHeads((1, 3, 4, *range(8, 200)), torch.device("cpu")), torch.randn(1, 7, 256)
    with torch.no_grad():
        assert_close(heads.through(x, (linear,), rows), linear(x)[..., heads.index_h], atol=1e-5, rtol=1e-5)


def test_a_part_is_made_once_and_again_when_the_weights_change() -> None:
    linear, x, cuts = nn.Linear(8, 6), torch.randn(2, 8), []
    heads = StaticHeads((0, 5), torch.device("cpu"))

    def counted(layer: nn.Linear, index: Tensor) -> Part:
        cuts.append(layer)
        return rows(layer, index)

    with torch.no_grad():
        first = heads.through(x, (linear,), counted)
        assert torch.equal(heads.through(x, (linear,), counted), first) and len(cuts) == 1
        linear.weight.mul_(2.0)
        assert not torch.equal(heads.through(x, (linear,), counted), first) and len(cuts) == 2
        linear.bias.add_(1.0)
        assert_close(heads.through(x, (linear,), counted), linear(x)[:, [0, 5]])
        assert len(cuts) == 3
        linear.__class__ = PreparedLinear  # type: ignore[assignment]
        linear.__dict__["_layout"] = None
        heads.through(x, (linear,), counted)
        assert len(cuts) == 4


def test_what_is_made_while_a_forward_is_traced_is_not_kept() -> None:
    linear, x, cuts = nn.Linear(8, 6).requires_grad_(False), torch.randn(2, 8), []
    heads = StaticHeads((0, 5), torch.device("cpu"))

    def counted(layer: nn.Linear, index: Tensor) -> Part:
        cuts.append(torch.jit.is_tracing())
        return rows(layer, index)

    with torch.no_grad():
        traced = torch.jit.trace(lambda y: heads.through(y, (linear,), counted), (x,), check_trace=False)
        assert_close(heads.through(x, (linear,), counted), traced(x))
    assert cuts == [True, False]


def test_gradients_reach_the_weights() -> None:
    linear, heads = nn.Linear(8, 6), StaticHeads((0, 5), torch.device("cpu"))
    heads.through(torch.randn(2, 8), (linear,), rows).sum().backward()
    assert linear.weight.grad is not None
    assert linear.weight.grad.abs().sum(1).nonzero().flatten().tolist() == [0, 5]


def ranked(variant: tiny.Variant, share: float) -> TrimmedModel:
    """A model that keeps a share of its heads, in every module another number."""
    return tiny.rank_heads(tiny.attach(variant.build(), "cross_modal", "saliency_head"), share)


@pytest.mark.parametrize("variant", FORMS, ids=str)
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_whole_models_use_them_and_say_what_masks_say(
    variant: tiny.Variant, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ranked(variant, share)
    inputs = tiny.ragged_inputs(model.backbone)
    seen: list[Any] = []
    attend = packed_attention.packed_attention

    def noted(*args: Any) -> Tensor:
        seen.append(args[-1])
        return attend(*args)

    monkeypatch.setattr("smarttrim_cli.pruning.attention.packed_attention", noted)
    with torch.no_grad():
        masked, packed = (model(inputs, mode).output for mode in ("masked", "packed"))
        assert any(static is not None for static in seen)
        if isinstance(masked, Tensor):
            assert_close(packed, masked, atol=1e-5, rtol=1e-5)
            other = copy.deepcopy(model).prepare()
            assert_close(other(inputs, "packed").output, masked, atol=1e-5, rtol=1e-5)


def test_they_follow_the_threshold() -> None:
    model = ranked(tiny.METER, 0.5)
    inputs = tiny.ragged_inputs(model.backbone)
    with torch.no_grad():
        for threshold in (0.0, 0.7, -0.7):
            model.threshold.fill_(threshold)
            masked, packed = (model(inputs, mode).output for mode in ("masked", "packed"))
            assert_close(packed, masked, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("head", ["saliency_head", "random_head"])
def test_attentions_without_heads_are_counted(head: str) -> None:
    model = tiny.attach(tiny.meter(), "cross_modal", head, kept=0.0)
    inputs = tiny.instance(tiny.ragged_inputs(model.backbone), 0)
    fewer = flop_counter_macs(model, inputs, "packed", tiny.ids()[:1])
    assert 0 < fewer < flop_counter_macs(model, inputs, "full")


def test_decisions_that_differ_are_repeated_one_by_one() -> None:
    model = ranked(tiny.METER, 0.5)
    inputs = tiny.ragged_inputs(model.backbone)
    with torch.no_grad():
        log = tiny.random_decisions(model, inputs)
        masked, packed = (model(inputs, mode, replay=log).output for mode in ("masked", "packed"))
    assert_close(packed, masked, atol=1e-5, rtol=1e-5)


def test_decisions_are_taken_once_and_again_when_trimmer_or_threshold_change() -> None:
    model = ranked(tiny.METER, 0.5)
    inputs = tiny.ragged_inputs(model.backbone)
    name, trimmer = next((name, t) for name, t in model.sites.items() if t.static)
    asked: list[int] = []
    trimmer.register_forward_hook(lambda *args: asked.append(1))

    def kept() -> Tensor:
        with torch.no_grad():
            return model(inputs, "packed").decisions.keep[name]

    first = kept()
    assert torch.equal(kept(), first) and len(asked) == 1
    assert len(first) == len(inputs["pixel_values"])
    assert not kept_differs(first)
    model.threshold.fill_(100.0)
    assert not kept().any() and len(asked) == 2
    model.threshold.fill_(0.0)
    trimmer.set_target(1.0)
    assert kept().all() and len(asked) == 3
    trimmer.load_state_dict(trimmer.state_dict() | {"keep_fraction": torch.tensor(0.0)}, assign=True)
    assert not kept().any() and len(asked) == 4
    with torch.no_grad():  # what is looked at, repeated or sampled is not remembered
        model(inputs, "packed", log_scores=True)
        model(inputs, "masked")
    assert len(asked) == 6


class _Inside(nn.Module):
    """A static trimmer whose state lies in a module of its own."""

    static, draws, rewrites, relative, one_target, by_importance = True, True, False, False, False, False

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.scores_H = nn.Parameter(torch.arange(heads) - 0.5)

    def forward(self, own_cls_BD: Tensor, guide_cls_BD: Tensor | None, ids_B: Tensor) -> Tensor:
        return self.inner.scores_H.expand(len(own_cls_BD), -1)

    def cls_mlp(self) -> None:
        return None


def test_decisions_follow_what_lies_deeper_in_a_trimmer() -> None:
    host = tiny.meter()
    name = next(site.name for site in host.architecture().sites() if site.kind == "self_head")
    heads = TrimmedModel(host, {}).heads([name])[name]
    model = TrimmedModel(host, {name: _Inside(heads)}).eval()
    inputs = tiny.ragged_inputs(host)
    with torch.no_grad():
        for sign in (1.0, -1.0):
            model.sites[name].inner.scores_H.mul_(sign)
            packed, masked = (model(inputs, mode).decisions.keep[name] for mode in ("packed", "masked"))
            assert torch.equal(packed, masked)


def kept_differs(keep_BH: Tensor) -> bool:
    """Whether instances differ."""
    return bool((keep_BH != keep_BH[:1]).any())


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("variant", FORMS, ids=str)
def test_what_is_made_in_inference_mode_serves_where_gradients_are_taken(
    variant: tiny.Variant, frozen: bool
) -> None:
    model = ranked(variant, 0.5)
    inputs = tiny.ragged_inputs(model.backbone)
    for name, parameter in model.backbone.named_parameters():
        parameter.requires_grad_(not frozen or "embed" in name)
    with torch.inference_mode():
        model(inputs, "packed")
    output = model(inputs, "packed").output
    (output if isinstance(output, Tensor) else output[0]).float().sum().backward()
    assert any(parameter.grad is not None for parameter in model.backbone.parameters())

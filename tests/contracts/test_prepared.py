"""Prepared weights change nothing but the speed: they are checked in every mode and every form."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.testing import assert_close

from smarttrim_cli.pruning import prepared, stream
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.pruning.prepared import LaidOutLinear, PreparedLinear, joined_linear, part_of_linear
from smarttrim_cli.trimmers._per_instance import rows_of
from smarttrim_cli.trimmers.base import TokenView, Trimmer
from tests import tiny
from tests.tiny import Variant

CLOSE = {"rtol": 0.0, "atol": 1e-5}


@pytest.fixture(autouse=True)
def _small_layers_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prepared, "MIN_WEIGHTS", 1)
    monkeypatch.setattr(prepared, "MIN_JOINT", 1)
    monkeypatch.setattr(stream, "rounded_up", tiny.to_multiples_of_4)
    with torch.no_grad():
        yield


def _outputs(model, inputs, mode, **options):
    return model(inputs, mode, instance_ids=tiny.ids(), **options)


@pytest.mark.parametrize("token_trimmer", ["cross_modal", "local"])
@pytest.mark.parametrize("variant", tiny.variants(), ids=str)
def test_outputs_and_decisions_are_those_of_the_host_kernels(variant: Variant, token_trimmer: str) -> None:
    model = tiny.attach(variant.build(), token_trimmer, "global_head")
    inputs = tiny.ragged_inputs(model.backbone)
    full, packed = _outputs(model, inputs, "full").output, _outputs(model, inputs, "packed", log_scores=True)
    clear_B = tiny.margin_B(packed.decisions) > 1e-4
    model.prepare()
    assert any(isinstance(module, PreparedLinear) for module in model.modules())
    assert_close(_outputs(model, inputs, "full").output, full, **CLOSE)
    again = _outputs(model, inputs, "packed")
    assert_close(again.output[clear_B], packed.output[clear_B], **CLOSE)
    for name, keep in packed.decisions.keep.items():
        rows = (
            tiny.per_instance(packed.decisions, name, x)[clear_B] for x in (keep, again.decisions.keep[name])
        )
        assert torch.equal(*rows), name


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("variant", tiny.variants(), ids=str)
def test_packed_is_masked_with_replayed_decisions(variant: Variant, seed: int) -> None:
    model = tiny.attach(variant.build(seed), "cross_modal", "global_head")
    inputs = tiny.ragged_inputs(model.backbone, seed)
    replay = tiny.random_decisions(model, inputs, seed)
    masked = model(inputs, "masked", replay=replay)
    packed = model.prepare()(inputs, "packed", replay=replay)
    assert_close(packed.output, masked.output, **CLOSE)
    for name, keep in masked.decisions.keep.items():
        assert torch.equal(keep, packed.decisions.keep[name]), name
        assert torch.equal(masked.decisions.counts[name].long(), packed.decisions.counts[name].long()), name


@pytest.mark.parametrize("pair", tiny.pairs(), ids="+".join)
def test_every_trimmer_meets_rounded_streams(pair: tuple[str, str]) -> None:
    model = tiny.attach(tiny.one_per_form()[0].build(), *pair)
    inputs = tiny.ragged_inputs(model.backbone)
    before = _outputs(model, inputs, "packed", log_scores=True)
    clear_B = tiny.margin_B(before.decisions) > 1e-4
    after = _outputs(model.prepare(), inputs, "packed", log_scores=True)
    assert_close(after.output[clear_B], before.output[clear_B], **CLOSE)


class _Gathers(Trimmer):
    """Scores of their own for all tokens; the CLS takes over what is dropped."""

    rewrites = True

    def forward(self, view: TokenView) -> torch.Tensor:
        return view.tokens[..., 0]

    def rewrite(self, view: TokenView, keep: torch.Tensor) -> torch.Tensor:
        rows = rows_of(view)
        tokens_RND = rows.lay(view.tokens).clone()
        dropped_RN1 = (rows.removable_RN & ~rows.lay(keep)).unsqueeze(-1)
        tokens_RND[:, 0] += (tokens_RND * dropped_RN1).sum(1)
        return rows.back(tokens_RND)


def test_a_trimmer_that_rewrites_sees_no_tail() -> None:
    """Whether its scores depend on other tokens or not: what repeats a CLS would be taken for dropped."""
    host = tiny.one_per_form()[0].build()
    model = TrimmedModel(host, {f"vision.{layer}.token": _Gathers() for layer in range(2)}).eval()
    inputs = tiny.ragged_inputs(host)
    for batch in (inputs, tiny.instance(inputs, 0)):
        masked, packed = (model(batch, mode).output for mode in ("masked", "packed"))
        assert_close(packed, masked, **CLOSE)
        assert_close(model.prepare()(batch, "packed").output, packed, **CLOSE)
        model.restore()


def test_layouts_follow_the_weights_and_can_be_undone() -> None:
    model = tiny.attach(tiny.one_per_form()[0].build(), "cross_modal", "global_head")
    inputs = tiny.ragged_inputs(model.backbone)
    host = _outputs(model, inputs, "full").output
    names = list(model.state_dict())
    _outputs(model.prepare(), inputs, "full")
    twin = copy.deepcopy(model)
    assert list(model.state_dict()) == names
    for parameter in model.parameters():
        parameter.mul_(0.5)
    changed = _outputs(model, inputs, "full").output
    assert not torch.allclose(changed, host)
    assert_close(_outputs(twin, inputs, "full").output, host, **CLOSE)
    model.restore()
    assert not any(isinstance(module, PreparedLinear) for module in model.modules())
    assert_close(_outputs(model, inputs, "full").output, changed, **CLOSE)


def test_gradients_flow_through_a_prepared_model() -> None:
    model = tiny.attach(tiny.one_per_form()[0].build(), "cross_modal", "global_head").prepare()
    inputs = tiny.ragged_inputs(model.backbone)
    with torch.enable_grad():
        model(inputs, "masked").output.sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.backbone.parameters())


def test_layers_run_in_half_precision_under_autocast() -> None:
    """Laid out before, too: the kernels know no autocast and would go on in float32."""
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(8, 6), torch.randn(3, 8)
    laid_out = LaidOutLinear(linear.weight, linear.bias)
    host = torch.nn.Linear(8, 6)
    host.load_state_dict(linear.state_dict())
    prepared.prepare(linear)
    ways = {
        "layer": lambda: linear(x),
        "laid out": lambda: laid_out(x),
        "part": lambda: part_of_linear(linear, x, linear.weight, linear.bias),
    }
    for name, way in ways.items():
        way()
        with torch.autocast("cpu", torch.bfloat16):
            found, expected = way(), host(x)
        assert found.dtype == torch.bfloat16 and torch.equal(found, expected), name


@pytest.mark.parametrize("mode", ["full", "packed"])
@pytest.mark.parametrize("variant", tiny.first_variants(), ids=str)
def test_a_prepared_model_is_the_host_under_autocast(variant: Variant, mode: str) -> None:
    model = tiny.attach(variant.build(), "cross_modal", "global_head")
    inputs = tiny.ragged_inputs(model.backbone)
    replay = model(inputs, "masked").decisions if mode == "packed" else None
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(inputs, mode, replay=replay).output
        found = model.prepare()(inputs, mode, replay=replay).output
    assert torch.equal(found, expected)


def joined(bias: bool = True) -> torch.nn.ModuleList:
    torch.manual_seed(0)
    linears = torch.nn.ModuleList(torch.nn.Linear(8, width, bias=bias) for width in (6, 4, 6))
    prepared.prepare(linears)
    return linears


@pytest.mark.parametrize("bias", [True, False])
def test_layers_of_one_input_are_one_call(bias: bool) -> None:
    linears, x = joined(bias), torch.randn(2, 3, 8)

    def check() -> None:
        found = joined_linear(tuple(linears), x)
        assert found is not None
        assert_close(found, torch.cat([linear(x) for linear in linears], -1), **CLOSE)

    check()
    layout = linears[0]._layout
    made = layout.with_others(tuple(linears))
    assert layout.with_others(tuple(linears)) is made
    linears[1].weight.mul_(2.0)
    check()
    if bias:
        linears[2].bias.add_(1.0)
        check()
    linears[0].weight = torch.nn.Parameter(torch.randn(6, 8))
    check()
    assert not copy.deepcopy(linears)[0]._layout.joined
    prepared.forget(linears)
    assert not layout.joined


def test_layers_are_joined_where_prepared_ones_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    linears, x = joined(), torch.randn(3, 8)
    with torch.enable_grad():
        assert joined_linear(tuple(linears), x) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert joined_linear(tuple(linears), x) is None
    assert joined_linear((linears[0], torch.nn.Linear(8, 6)), x) is None
    prepared.restore(linears)
    assert joined_linear(tuple(linears), x) is None
    for name in ("MIN_WEIGHTS", "MIN_MACS"):
        monkeypatch.setattr(prepared, name, 8 * 16 + 1 if name == "MIN_WEIGHTS" else 3 * 8 * 16 + 1)
    prepared.prepare(linears)
    assert joined_linear(tuple(linears), x) is None
    assert joined_linear(tuple(linears), torch.randn(4, 8)) is not None


def test_what_is_joined_follows_a_fused_optimizer() -> None:
    """Which torch does not count as a change; of the layers the first may be one that does not learn."""
    linears, x = joined(), torch.randn(3, 8)
    linears[0].requires_grad_(False)
    joined_linear(tuple(linears), x)
    optimizer = torch.optim.AdamW([p for p in linears.parameters() if p.requires_grad], lr=0.1, fused=True)
    with torch.enable_grad():
        assert joined_linear(tuple(linears), x) is None
        torch.cat([linear(x) for linear in linears], -1).square().sum().backward()
    optimizer.step()
    assert_close(joined_linear(tuple(linears), x), torch.cat([linear(x) for linear in linears], -1), **CLOSE)


def test_what_is_joined_in_inference_mode_serves_elsewhere() -> None:
    linears, x = joined(), torch.randn(3, 8)
    with torch.inference_mode():
        expected = joined_linear(tuple(linears), x.clone())
    assert_close(joined_linear(tuple(linears), x), expected)

"""What is made of weights for inference follows them, however they change."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from smarttrim_cli.errors import UserError
from smarttrim_cli.pruning import joint_mlps, prepared
from smarttrim_cli.pruning.gumbel import Sampling
from smarttrim_cli.pruning.model import TrimmedModel
from tests import tiny


@pytest.fixture(autouse=True)
def _everything_is_laid_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MIN_WEIGHTS", "MIN_MACS", "MIN_JOINT"):
        monkeypatch.setattr(prepared, name, 1)
    assert joint_mlps.LaidOutLinear is prepared.LaidOutLinear


def models() -> dict[str, Callable[[], TrimmedModel]]:
    def static() -> TrimmedModel:
        return tiny.rank_heads(tiny.attach(tiny.meter(), "cross_modal", "saliency_head"), 0.5)

    return {
        "static heads": static,
        "static heads, prepared": lambda: static().prepare(),
        "prepared": lambda: tiny.paper_model().prepare(),
    }


def packed(model: TrimmedModel) -> Tensor:
    with torch.no_grad():
        return model(tiny.ragged_inputs(model.backbone), "packed").output


def fresh(model: TrimmedModel) -> Tensor:
    """What a copy that has laid out nothing yet says."""
    other = copy.deepcopy(model)
    other.restore()
    return packed(other)


def fused_step(model: TrimmedModel) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    forward = model(tiny.ragged_inputs(model.backbone), "masked", sampling=Sampling())
    forward.output.square().mean().backward()
    optimizer.step()


def assigned(model: TrimmedModel) -> None:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.9)
    model.load_state_dict(other.state_dict(), assign=True)


def replaced(model: TrimmedModel) -> None:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.trimmers.parameters():
            parameter.mul_(-0.9)
    for key in list(model.trimmers):
        model.trimmers[key] = other.trimmers[key]


def written_behind(model: TrimmedModel) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(0.8)
    model.forget()


def rounded(model: TrimmedModel) -> None:
    model.bfloat16().float()


@pytest.mark.parametrize("change", [fused_step, assigned, replaced, written_behind, rounded])
@pytest.mark.parametrize("kind", models())
def test_packed_answers_are_those_of_the_weights(kind: str, change: Callable[[Any], None]) -> None:
    model = models()[kind]()
    before = packed(model)
    change(model)
    after = packed(model)
    assert_close(after, fresh(model), atol=1e-5, rtol=1e-5)
    if change is not rounded and (change is not replaced or "static" not in kind):
        assert not torch.allclose(after, before, atol=1e-3)


def targeted(model: TrimmedModel) -> None:
    model.set_targets(dict.fromkeys(model.groups, 0.2))


def loaded(model: TrimmedModel) -> None:
    model.load_state_dict(
        {name: x * 0.8 if x.dim() > 1 else x.clone() for name, x in model.state_dict().items()}
    )


@torch.inference_mode()
@pytest.mark.parametrize("change", [loaded, replaced, targeted])
@pytest.mark.parametrize("kind", models())
def test_so_they_are_of_models_made_in_inference_mode(kind: str, change: Callable[[Any], None]) -> None:
    """Torch does not count what is written to such tensors."""
    model = models()[kind]()
    before = packed(model)
    change(model)
    after = packed(model)
    assert_close(after, fresh(model), atol=1e-5, rtol=1e-5)
    if (change is replaced) != ("static" in kind) and (change is not targeted or "static" in kind):
        assert not torch.allclose(after, before, atol=1e-3)


def test_training_by_a_fused_optimizer_alone_needs_no_module_around() -> None:
    linear = nn.Sequential(nn.Linear(16, 16))
    prepared.prepare(linear)
    x = torch.randn(3, 16)
    with torch.no_grad():
        linear(x)
    linear(x).square().mean().backward()
    torch.optim.SGD(linear.parameters(), lr=1.0, fused=True).step()
    with torch.no_grad():
        assert_close(linear(x), nn.functional.linear(x, linear[0].weight, linear[0].bias))


def test_decisions_keep_their_precision() -> None:
    model = models()["static heads"]()
    model.threshold.fill_(0.123456)
    places = {name: trimmer.place_H.clone() for name, trimmer in model.sites.items() if trimmer.static}
    model.bfloat16().float()
    assert float(model.threshold) == pytest.approx(0.123456, abs=1e-8)
    assert all(torch.equal(model.sites[name].place_H, place) for name, place in places.items())
    assert all(p.dtype is torch.bfloat16 for p in model.bfloat16().parameters())


@pytest.mark.parametrize("kind", models())
def test_models_can_be_pickled(kind: str) -> None:
    model = models()[kind]()
    wanted = packed(model)
    other = pickle.loads(pickle.dumps(model))
    assert_close(packed(other), wanted, atol=1e-5, rtol=1e-5)
    assert {type(m) for m in other.modules()} == {type(m) for m in model.modules()}


def test_layers_that_would_be_run_again_are_refused() -> None:
    model = tiny.paper_model().train()
    model.backbone.text_transformer.gradient_checkpointing_enable()
    with pytest.raises(UserError, match="wrong gradients"):
        model(tiny.ragged_inputs(model.backbone), "masked", sampling=Sampling())
    with torch.no_grad():
        packed(model.eval())

"""Contract: MACs that torchprofile counts on the packed forward are those of the analytic cost model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchprofile import profile_macs

from smarttrim_cli.pruning.cost import instance_macs
from smarttrim_cli.pruning.decisions import Decisions
from smarttrim_cli.pruning.model import TrimmedModel
from tests import tiny
from tests.tiny import Variant

pytestmark = pytest.mark.filterwarnings("ignore")  # the tracer warns about every shape


class Traced(nn.Module):
    """One packed forward with everything that was computed among its outputs: the tracer drops the rest."""

    def __init__(
        self, model: TrimmedModel, names: tuple[str, ...], mode: str, replay: Decisions | None
    ) -> None:
        super().__init__()
        self.model, self.names, self.mode, self.replay = model, names, mode, replay

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        inputs = dict(zip(self.names, tensors, strict=True))
        forward = self.model(inputs, self.mode, replay=self.replay, log_scores=True)
        if forward.context is None:
            return [forward.output]
        heads = [mask for mask in forward.context.log.heads.values() if isinstance(mask, Tensor)]
        scores = [scores for _, scores in forward.context.log.scores.values()]
        return [forward.output, *heads, *scores, *forward.context.cls.values()]


def measured(model: TrimmedModel, one: dict[str, Tensor], mode: str, replay: Decisions | None = None) -> int:
    return profile_macs(Traced(model, tuple(one), mode, replay), tuple(one.values()))


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("variant", tiny.variants(), ids=str)
def test_full_model(variant: Variant) -> None:
    model = tiny.attach(variant.build(), *tiny.pairs()[0])
    for index in (0, 3):
        one = tiny.instance(tiny.ragged_inputs(model.backbone), index)
        _, full_B = instance_macs(model, model(one, "packed").decisions)
        assert measured(model, one, "full") == pytest.approx(full_B.item(), rel=0.005)


@pytest.mark.parametrize("threshold", [-1e9, -1.0, 0.0, 1.0, 1e9])
@pytest.mark.parametrize("variant", tiny.variants(), ids=str)
def test_trimmed_model_with_its_trimmers(variant: Variant, threshold: float) -> None:
    model = tiny.attach(variant.build(), "cross_modal", "global_head")
    one = tiny.instance(tiny.ragged_inputs(model.backbone), 0)
    with model.at_threshold(threshold):
        trimmed_B, full_B = instance_macs(model, model(one, "packed").decisions)
        assert measured(model, one, "packed") == pytest.approx(trimmed_B.item(), rel=0.005)
    if threshold == 1e9:
        assert trimmed_B < full_B


@pytest.mark.parametrize("pair", tiny.pairs(), ids="+".join)
def test_every_trimmer(pair: tuple[str, str]) -> None:
    """On one of three instances, another one in the next form: counting by tracing is slow."""
    for number, variant in enumerate(some_forms(pair), tiny.pairs().index(pair)):
        assert_counts_agree(variant, pair, number % 3)


@pytest.mark.slow
@pytest.mark.parametrize("pair", tiny.pairs(), ids="+".join)
def test_every_trimmer_on_every_instance(pair: tuple[str, str]) -> None:
    for variant in tiny.one_per_form():
        for index in range(3):
            assert_counts_agree(variant, pair, index)


def some_forms(pair: tuple[str, str]) -> list[Variant]:
    """A third of the forms, others for the next pair; slow tests take all of them."""
    return tiny.one_per_form()[tiny.pairs().index(pair) % 3 :: 3]


def assert_counts_agree(variant: Variant, pair: tuple[str, str], index: int) -> None:
    model = tiny.attach(variant.build(), *pair)
    one = tiny.instance(tiny.ragged_inputs(model.backbone), index)
    trimmed_B, _ = instance_macs(model, model(one, "packed").decisions)
    assert measured(model, one, "packed") == pytest.approx(trimmed_B.item(), rel=0.005)


@pytest.mark.parametrize("seed", range(4))
def test_decisions_of_any_kind_without_trimmers_cost(seed: int) -> None:
    """Replayed decisions run no trimmer: the host's share is seen alone, and all-dropped modules occur."""
    for variant in tiny.one_per_form():
        model = tiny.attach(variant.build(), *tiny.pairs()[0])
        inputs = tiny.ragged_inputs(model.backbone)
        replay = model(
            inputs, "packed", replay=tiny.random_decisions(model, inputs, seed)
        ).decisions.instance(0)
        trimmed_B, _ = instance_macs(model, replay)
        trimmers = sum(_trimmer_macs(model, replay))
        host = measured(model, tiny.instance(inputs, 0), "packed", replay)
        assert host == pytest.approx(trimmed_B.item() - trimmers, rel=0.005)


def _trimmer_macs(model: TrimmedModel, log: Decisions) -> list[float]:
    out = []
    for name, trimmer in model.sites.items():
        stream, layer, kind = name.split(".")
        rows = log.copies.get(stream, 1)
        out.append(float(trimmer.fixed_macs() * rows))
        if kind == "token":
            seen = (
                log.valid[stream].sum(1) if layer == "0" else log.counts[f"{stream}.{int(layer) - 1}.token"]
            )
            out[-1] += float(seen.sum()) * trimmer.token_macs() + float((seen**2).sum()) * trimmer.pair_macs()
    return out


@pytest.mark.parametrize("pair", tiny.pairs(), ids="+".join)
def test_macs_fall_as_the_threshold_rises(pair: tuple[str, str]) -> None:
    assert_macs_fall(pair, some_forms(pair))


@pytest.mark.slow
@pytest.mark.parametrize("pair", tiny.pairs(), ids="+".join)
def test_macs_fall_as_the_threshold_rises_in_every_form(pair: tuple[str, str]) -> None:
    assert_macs_fall(pair, tiny.one_per_form())


def assert_macs_fall(pair: tuple[str, str], variants: list[Variant]) -> None:
    """Strictly so for random draws; learned scores change a little with what was dropped before."""
    slack = 1.0 if all(name.startswith("random") for name in pair) else 1.02
    for variant in variants:
        models = [tiny.attach(variant.build(), *pair, seed=seed) for seed in range(3)]
        inputs, means = tiny.ragged_inputs(models[0].backbone), []
        for threshold in (-1e9, -4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0, 1e9):
            spent = 0.0
            for model in models:  # the mean over several draws of the trimmers' weights
                with model.at_threshold(threshold):
                    log = model(inputs, "packed", instance_ids=tiny.ids()).decisions
                spent += instance_macs(model, log)[0].mean().item()
            means.append(spent)
        assert all(after <= before * slack for before, after in zip(means, means[1:], strict=False)), means
        assert means[-1] < 0.7 * means[0]


@pytest.mark.parametrize("pair", tiny.pairs(), ids="+".join)
def test_macs_are_the_same_counted_in_either_mode(pair: tuple[str, str]) -> None:
    for variant in tiny.one_per_form():
        model = tiny.attach(variant.build(), *pair)
        inputs = tiny.ragged_inputs(model.backbone)
        masked = model(inputs, "masked", instance_ids=tiny.ids()).decisions
        packed = model(inputs, "packed", replay=masked).decisions
        for one, other in zip(instance_macs(model, masked), instance_macs(model, packed), strict=True):
            assert one.tolist() == other.tolist()

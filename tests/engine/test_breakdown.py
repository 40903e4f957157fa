"""The stopwatch charges all time to the right part and layer, and leaves the model as it was."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from smarttrim_cli.engine import breakdown as module
from smarttrim_cli.engine.breakdown import (
    PARTS,
    Stopwatch,
    breakdown,
    by_part,
    by_place,
    layer_modules,
    watched,
)
from smarttrim_cli.pruning import attention, prepared, projections
from smarttrim_cli.pruning.context import ForwardContext
from smarttrim_cli.pruning.decoder import Decoder
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.pruning.static_heads import StaticHeads
from smarttrim_cli.tasks.base import Batch
from tests.tiny import (
    BACKBONES,
    Variant,
    as_ranking,
    as_writing,
    attach,
    generates,
    ids,
    one_per_form,
    paper_model,
    ragged_inputs,
    rank_heads,
)

GUIDED = Variant("blip", "guided_by_text_encoder", BACKBONES["blip"]["guided_by_text_encoder"])
CPU = torch.device("cpu")


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by one second whenever it is read: times are numbers of readings."""
    readings: Iterator[int] = iter(range(10**9))
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(readings)))


def inputs_of(model: TrimmedModel) -> dict[str, torch.Tensor]:
    inputs = ragged_inputs(model.backbone)
    if not generates(model.backbone):
        return inputs
    return as_ranking(inputs) if "input_ids" in inputs else as_writing(model.backbone, inputs)


def test_the_stopwatch_charges_the_innermost_part(ticking: None) -> None:
    watch = Stopwatch(lambda: None)

    def run() -> None:
        watch.enter("gathers")  # rest: 1
        watch.at(("text", 0))  # gathers outside of layers: 1
        watch.enter("trimmers")  # gathers in text.0: 1
        watch.leave()  # trimmers: 1
        watch.at(("text", 0))  # the same: not read
        watch.leave()  # gathers in text.0: 2

    place = ("text", 0)
    assert watch.time(run) == {
        ("rest", None): 1,
        ("gathers", None): 1,
        ("gathers", place): 2,
        ("trimmers", place): 1,
        ("rest", place): 1,
    }
    assert watch.time(lambda: None) == {("rest", None): 1}


@pytest.mark.parametrize("variant", [*one_per_form(), GUIDED], ids=str)
@torch.no_grad()
def test_every_part_and_layer_is_found(variant: Variant) -> None:
    model = attach(variant.build(), "cross_modal", "global_head")
    data = [Batch(inputs_of(model), ids(), {})]
    before = {mode: _tensors(model(data[0].inputs, mode).output) for mode in ("full", "packed")}
    times = breakdown(model, data, ("full", "packed"), CPU)
    full, trimmed = by_part(times["full"]), by_part(times["packed"])
    assert tuple(full) == tuple(trimmed) == PARTS
    assert full["trimmers"] == 0 and min(trimmed.values()) > 0
    assert all(full[part] > 0 for part in ("attention", "projections", "mlps", "rest"))
    for mode, parts in (("full", full), ("packed", trimmed)):
        assert sum(parts.values()) == pytest.approx(1e3 * sum(times[mode].values()))
        overhead = () if mode == "packed" else model.architecture.overhead
        layers = {(spec.stream, spec.index) for spec in model.architecture.layers}
        assert by_place(times[mode]).keys() == {place for place in layers if place[0] not in overhead}
    for mode, outputs in before.items():
        for one, other in zip(outputs, _tensors(model(data[0].inputs, mode).output), strict=True):
            assert torch.equal(one, other)


@torch.no_grad()
def test_trimmers_of_a_prepared_model_are_found() -> None:
    """Their layers run together, not as the modules that they are."""
    model = attach(one_per_form()[0].build(), "cross_modal", "global_head").eval()
    model.prepare()
    data = [Batch(inputs_of(model), ids(), {})]
    assert by_part(breakdown(model, data, ("packed",), CPU)["packed"])["trimmers"] > 0


def _tensors(output: Any) -> list[torch.Tensor]:
    values = [output] if isinstance(output, torch.Tensor) else list(vars(output).values())
    return [value for value in values if isinstance(value, torch.Tensor)]


def entered_by(model: TrimmedModel, mode: str) -> list[tuple[str, Any]]:
    """Parts and places that a pass over one instance enters, in order."""
    inputs = {name: tensor[:1] for name, tensor in ragged_inputs(model.backbone).items()}
    entered: list[tuple[str, Any]] = []
    watch = Stopwatch(lambda: None)
    watch.enter = lambda part: entered.append((part, watch.place))  # type: ignore[method-assign]
    watch.leave = lambda: None  # type: ignore[method-assign]
    with watched(model, watch):
        model(inputs, mode, instance_ids=ids()[:1])
    return entered


@torch.no_grad()
def test_as_many_projections_and_mlps_as_the_host_has() -> None:
    """Two encoders of two layers and two co-attention layers per side, on one instance."""
    model = paper_model()
    entered = entered_by(model, "full")
    parts = [part for part, _ in entered]
    assert parts.count("projections") == 2 * 2 + 2 * 4 + 2 * 2 * 8  # timm: qkv, proj; BERT: four
    assert parts.count("mlps") == 2 * 1 + (2 + 2 * 2) * 2  # timm: mlp; BERT: intermediate, output
    assert parts.count("attention") == 2 + 2 + 2 * 2 * 2
    assert [part for part, place in entered if place == ("vision", 0)] == [
        *("rest", "projections", "attention", "projections"),
        *("rest", "mlps"),
    ]


@pytest.mark.parametrize("head_trimmer", ["global_head", "saliency_head"])
@torch.no_grad()
def test_projections_that_are_joined_are_found(head_trimmer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries, keys and values of a prepared model, and what static heads leave of weights."""
    monkeypatch.setattr(prepared, "MIN_WEIGHTS", 1)
    model = rank_heads(attach(paper_model().backbone, "cross_modal", head_trimmer), 0.5).prepare()
    entered = entered_by(model, "packed")
    for place, calls in ((("vision", 0), 2), (("text", 2), 5)):  # cross: qkv, out; q, kv, out
        assert entered.count(("projections", place)) == calls


@torch.no_grad()
def test_nothing_stays_behind() -> None:
    model = attach(paper_model().backbone, "tome", "global_head")
    assert any(trimmer.rewrites for trimmer in model.sites.values())
    functions = [
        *((F, "scaled_dot_product_attention"), (attention, "packed_attention")),
        *((projections, "part_of_linear"), (projections, "joined_linear"), (StaticHeads, "through")),
        *((ForwardContext, "trim"), (Decoder, "cross_attention")),
    ]
    before = [getattr(owner, name) for owner, name in functions]
    with pytest.raises(RuntimeError, match="broken"), watched(model, Stopwatch(lambda: None)):
        assert [getattr(owner, name) for owner, name in functions] != before
        raise RuntimeError("broken")
    assert [getattr(owner, name) for owner, name in functions] == before
    for part in model.modules():
        assert not part._forward_hooks and not part._forward_pre_hooks and "rewrite" not in vars(part)


def test_modules_of_layers() -> None:
    """BLIP's text encoder also reads the question for guidance; mode ``full`` does not, so it comes last."""
    found = layer_modules(GUIDED.build().architecture())
    assert found["text_encoder.encoder.layer.1"] == [("text", 1), ("guidance", 1)]
    assert found["vision_model.encoder.layers.0"] == [("vision", 0)]
    assert found["text_decoder.bert.encoder.layer.0"] == [("decoder", 0)]

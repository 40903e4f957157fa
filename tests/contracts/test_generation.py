"""Contracts for backbones that write or rank text: the same text and ranks in every mode and batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torchprofile import profile_macs

from smarttrim_cli.pruning import host
from smarttrim_cli.pruning.cost import instance_macs
from smarttrim_cli.pruning.model import TrimmedModel
from tests import tiny
from tests.contracts.test_macs import Traced
from tests.tiny import Variant

EXACT = {"rtol": 0.0, "atol": 1e-5}
GENERATING = [variant for variant in tiny.variants() if tiny.generates(variant.build())]
CAPTIONING = [variant for variant in GENERATING if variant.form == "captioning"]
RANKING = [variant for variant in GENERATING if variant.form == "vqa"]
MODES = ("masked", "packed")

pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


HEADS = ("global_head", "saliency_head")
"""Heads that differ between instances, and heads that do not."""


def model_of(
    variant: Variant, beams: int = 3, candidates: int = 3, head: str = "global_head"
) -> TrimmedModel:
    model = tiny.attach(variant.build(), "cross_modal", head)
    if head == "saliency_head":
        tiny.rank_heads(model, 0.5)
    form = model.backbone.form
    decoding = replace(form.decoding, num_beams=beams, num_candidates=candidates)
    model.backbone.form = replace(form, decoding=decoding)
    return model


def writing(model: TrimmedModel) -> dict[str, Tensor]:
    return tiny.as_writing(model.backbone, tiny.ragged_inputs(model.backbone))


def test_there_are_such_backbones() -> None:
    assert {(variant.backbone, variant.form) for variant in GENERATING} >= {
        ("blip", "vqa"),
        ("blip", "captioning"),
    }


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("variant", GENERATING, ids=str)
def test_the_same_text_and_ranks_where_asking_the_device_costs(
    variant: Variant, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: which heads are kept is not fetched, and instances do not run one by one."""
    model = model_of(variant, head=head)
    batches = [writing(model)]
    batches += [tiny.as_ranking(tiny.ragged_inputs(model.backbone))] if variant.form == "vqa" else []
    for inputs in batches:
        near = model(inputs, "packed", instance_ids=tiny.ids())
        with monkeypatch.context() as patch:
            patch.setattr(host, "asking_costs", lambda device: True)
            far = model(inputs, "packed", instance_ids=tiny.ids())
        assert_close(far.output, near.output, **EXACT)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("variant", GENERATING, ids=str)
def test_the_same_text_in_both_modes_and_alone(variant: Variant, head: str, beams: int) -> None:
    model = model_of(variant, beams, head=head)
    inputs, ids = writing(model), tiny.ids()
    packed = model(inputs, "packed", instance_ids=ids, log_scores=True)
    masked = model(inputs, "masked", instance_ids=ids)
    clear = (tiny.margin_B(packed.decisions) > 1e-4).nonzero().flatten().tolist()
    assert len(clear) >= 4
    assert packed.output.dtype == torch.long and len(packed.output) == len(ids)
    heads = [keep for name, keep in packed.decisions.keep.items() if name.startswith("decoder")]
    assert 0 < sum(float(keep.float().mean()) for keep in heads) < len(heads)  # some go, not all
    for index in clear:
        alone = model(tiny.instance(inputs, index), "packed", instance_ids=ids[index : index + 1])
        texts = [output[row].tolist() for output, row in ((packed.output, index), (masked.output, index))]
        assert texts[0] == texts[1] == alone.output[0].tolist()


@pytest.mark.parametrize("variant", GENERATING, ids=str)
def test_keeping_everything_writes_what_the_full_model_writes(variant: Variant) -> None:
    model = model_of(variant)
    inputs = writing(model)
    full = model(inputs, "full").output
    assert len({tuple(text) for text in full.tolist()}) > 1  # texts differ, or this says nothing
    with model.at_threshold(-1e9):
        for mode in MODES:
            assert model(inputs, mode, instance_ids=tiny.ids()).output.tolist() == full.tolist()


@pytest.mark.parametrize("mode", ["full", *MODES])
@pytest.mark.parametrize("variant", GENERATING, ids=str)
def test_batch_mates_and_padding_change_no_text(variant: Variant, mode: str) -> None:
    model = model_of(variant)
    inputs, ids = writing(model), tiny.ids()
    expected = model(inputs, mode, instance_ids=ids).output
    order = [4, 2, 0, 3, 1]
    mixed = model(tiny.chosen(inputs, order), mode, instance_ids=ids[order]).output
    same = [mixed[row].tolist() == expected[index].tolist() for row, index in enumerate(order)]
    alone = [
        model(tiny.instance(inputs, i), mode, instance_ids=ids[i : i + 1]).output[0].tolist() == text
        for i, text in enumerate(expected.tolist())
    ]
    assert sum(same) >= 4 and sum(alone) >= 4


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("variant", CAPTIONING, ids=str)
def test_macs_of_a_text_depend_on_no_longer_text_beside_it(variant: Variant, beams: int) -> None:
    """Texts end where they may: in a batch the search goes on for those that have not."""
    model = model_of(variant, beams)
    form, config = model.backbone.form, model.backbone.options.text.config
    model.backbone.form = replace(form, decoding=replace(form.decoding, min_length=4, max_length=12))
    model.backbone.text_decoder.cls.predictions.bias[config.sep_token_id] += 2.5  # else few end in time
    inputs, ids = writing(model), tiny.ids()
    packed = model(inputs, "packed", instance_ids=ids, log_scores=True)
    clear = (tiny.margin_B(packed.decisions) > 1e-4).nonzero().flatten().tolist()
    lengths, macs = set(), instance_macs(model, packed.decisions)
    for index in clear:
        alone = model(tiny.instance(inputs, index), "packed", instance_ids=ids[index : index + 1])
        lengths.add(alone.output.shape[1])
        for found_B, expected_B in zip(macs, instance_macs(model, alone.decisions), strict=True):
            assert float(found_B[index]) == float(expected_B)
    assert len(lengths) > 2


@pytest.mark.parametrize("candidates", [1, 3, tiny.NUM_LABELS])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("variant", RANKING, ids=str)
def test_the_same_ranks_in_every_mode_and_alone(variant: Variant, head: str, candidates: int) -> None:
    model = model_of(variant, candidates=candidates, head=head)
    inputs = tiny.as_ranking(tiny.ragged_inputs(model.backbone))
    packed, masked = (model(inputs, mode) for mode in ("packed", "masked"))
    assert packed.output.shape == (len(tiny.LENGTHS), tiny.NUM_LABELS)
    assert packed.output.isfinite().sum(1).tolist() == [candidates] * len(tiny.LENGTHS)
    assert_close(packed.output, masked.output, **EXACT)
    for index in range(len(tiny.LENGTHS)):
        alone = model(tiny.instance(inputs, index), "packed").output
        assert_close(alone[0], packed.output[index], **EXACT)
    with model.at_threshold(-1e9):
        assert_close(model(inputs, "packed").output, model(inputs, "full").output, **EXACT)


@pytest.mark.parametrize("mode", ["full", "packed"])
@pytest.mark.parametrize("way", ["writing", "ranking"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("variant", GENERATING, ids=str)
def test_macs_of_decoding(variant: Variant, head: str, way: str, mode: str) -> None:
    model = model_of(variant, head=head)
    if way == "ranking" and variant not in RANKING:
        pytest.skip("it does not rank")
    inputs = tiny.ragged_inputs(model.backbone)
    inputs = writing(model) if way == "writing" else tiny.as_ranking(inputs)
    one = tiny.instance(inputs, 0)
    trimmed_B, full_B = instance_macs(model, model(one, "packed").decisions)
    expected = full_B if mode == "full" else trimmed_B
    found = profile_macs(Traced(model, tuple(one), mode, None), tuple(one.values()))
    assert found == pytest.approx(expected.item(), rel=0.005)
    published = instance_macs(model, model(one, "packed").decisions, as_published=True)[1]
    assert published > full_B

"""The cost model against MACs multiplied out by hand."""

from __future__ import annotations

import pytest
import torch

from smarttrim_cli.pruning.cost import (
    attention_macs,
    full_counts,
    instance_macs,
    layer_macs,
    macs_by_part,
    measured_counts,
    planned_counts,
    saved_by_a_token,
    tokens_after,
    total_macs,
)
from smarttrim_cli.pruning.sites import TOKEN, Architecture, AttentionSpec, FixedCost, LayerSpec, TokenCost
from smarttrim_cli.trimmers.base import Trimmer
from tests import tiny

SELF = AttentionSpec("a", "bert", heads=4, head_dim=5)
CROSS = AttentionSpec("c", "bert", 4, 5, memory_stream="text", memory_layer=0, memory_width=12)
VISION = LayerSpec("vision", 0, "vision_encoder", 20, 80, SELF, CROSS, extra_macs=60)
TEXT = LayerSpec("text", 0, "text_encoder", 12, 30, AttentionSpec("t", "bert", 3, 4))
SMALL = Architecture(
    (TEXT, VISION),
    (FixedCost("head", 1000),),
    (TokenCost("text_encoder", "text", -1, 7), TokenCost("vision_encoder", "vision", 0, 11)),
)
COUNTS = {
    "text.in": 6,
    "text.0.token": 5,
    "text.0.self_head": 2,
    "vision.in": 10,
    "vision.0.token": 8,
    "vision.0.self_head": 3,
    "vision.0.cross_head": 1,
}
TEXT_LAYER = 3 * 5 * 12 * 8 + 2 * 5 * 5 * 8 + 5 * 8 * 12 + 2 * 5 * 12 * 30
SELF_PART = 3 * 8 * 20 * 15 + 2 * 8 * 8 * 15 + 8 * 15 * 20
CROSS_PART = 8 * 20 * 5 + 2 * 5 * 12 * 5 + 2 * 8 * 5 * 5 + 8 * 5 * 20
VISION_LAYER = SELF_PART + CROSS_PART + 8 * (2 * 20 * 80 + 60)


class Costly(Trimmer):
    def fixed_macs(self) -> int:
        return 100

    def token_macs(self) -> int:
        return 3


def test_what_one_token_less_saves() -> None:
    start = {"text": 6, "vision": 10}
    own = 4 * 20 * 20 + 2 * 20 * (10 * 10 - 9 * 9) + 2 * 20 * 80 + 60 + 11
    as_query = 2 * 20 * 20 + 2 * 6 * 20
    assert saved_by_a_token(SMALL, start, "vision.0.token") == own + as_query
    own = 4 * 12 * 12 + 2 * 12 * (6 * 6 - 5 * 5) + 2 * 12 * 30  # embedding it is paid for before
    as_key = 2 * 12 * 20 + 2 * 10 * 20
    assert saved_by_a_token(SMALL, start, "text.0.token") == own + as_key


@pytest.mark.parametrize("variant", tiny.variants(), ids=str)
def test_one_token_less_saves_more_the_earlier_it_goes(variant: tiny.Variant) -> None:
    host = variant.build()
    architecture, start = host.architecture(), host.token_counts(7.0)
    saved: dict[str, list[float]] = {}
    for site in architecture.sites():
        if site.kind == TOKEN:
            saved.setdefault(site.stream, []).append(saved_by_a_token(architecture, start, site.name))
    assert saved
    for amounts in saved.values():
        assert amounts == sorted(amounts, reverse=True) and min(amounts) > 0


def test_attention() -> None:
    assert attention_macs(SELF, 20, 8, 8, 3, 20) == SELF_PART
    assert attention_macs(CROSS, 20, 8, 5, 1, 12) == CROSS_PART
    assert attention_macs(SELF, 20, 8, 8, 0, 20) == 0


def test_layers() -> None:
    assert layer_macs(TEXT, COUNTS) == TEXT_LAYER
    assert layer_macs(VISION, COUNTS) == VISION_LAYER


def test_parts_and_total() -> None:
    trimmers = {"text.0.token": Costly(), "vision.0.token": Costly()}
    parts = macs_by_part(SMALL, COUNTS, trimmers)
    assert parts == {
        "text_encoder": TEXT_LAYER + 6 * 7,
        "vision_encoder": VISION_LAYER + 8 * 11,
        "head": 1000,
        "trimmers": 2 * 100 + (6 + 10) * 3,  # a trimmer sees the tokens before it decides
    }
    assert total_macs(SMALL, COUNTS, trimmers) == sum(parts.values())
    assert "trimmers" not in macs_by_part(SMALL, COUNTS)


def test_tokens_after_a_layer() -> None:
    assert tokens_after(COUNTS, "vision", -1) == 10
    assert tokens_after(COUNTS, "vision", 0) == 8


def test_everything_kept() -> None:
    counts = full_counts(SMALL, {"text": 6, "vision": 10})
    assert counts == {
        "text.in": 6,
        "vision.in": 10,
        "text.0.token": 6,
        "text.0.self_head": 3,
        "vision.0.token": 10,
        "vision.0.self_head": 4,
        "vision.0.cross_head": 4,
    }


def test_planned_counts_spare_the_cls_and_leave_other_groups_alone() -> None:
    counts = planned_counts(
        SMALL, {"text": 6, "vision": 10}, {"token.vision": 0.5, "cross_head.vision": 0.25}
    )
    assert counts["vision.0.token"] == pytest.approx(1 + 9 * 0.5)
    assert counts["vision.0.cross_head"] == pytest.approx(1.0)
    assert counts["text.0.token"] == 6 and counts["vision.0.self_head"] == 4


def test_planned_counts_fall_with_depth_and_have_the_mean_asked_for() -> None:
    architecture = tiny.paper_model().architecture
    counts = planned_counts(architecture, {"text": 9, "vision": 17}, {"token.vision": 0.6})
    shares = [(counts[f"vision.{layer}.token"] - 1) / 16 for layer in range(4)]
    assert sum(shares) / 4 == pytest.approx(0.6)
    assert shares == sorted(shares, reverse=True) and shares[0] < 1


def test_the_same_functions_take_tensors_with_gradients() -> None:
    counts = {name: torch.tensor([float(value)] * 2, requires_grad=True) for name, value in COUNTS.items()}
    total = total_macs(SMALL, counts)
    assert total.tolist() == [total_macs(SMALL, COUNTS)] * 2
    total.sum().backward()
    assert counts["vision.0.cross_head"].grad is not None
    assert counts["vision.0.cross_head"].grad[0].item() == CROSS_PART  # one head of width 5


def test_instances_cost_what_they_cost_alone() -> None:
    model = tiny.paper_model()
    inputs = tiny.ragged_inputs(model.backbone)
    with torch.no_grad():
        log = model(inputs, "packed").decisions
    assert measured_counts(log)["text.in"].tolist() == list(tiny.LENGTHS)
    trimmed_B, full_B = instance_macs(model, log)
    assert trimmed_B.dtype == torch.float64 and (trimmed_B < full_B).all()
    for index in range(len(tiny.LENGTHS)):
        one_trimmed, one_full = instance_macs(model, log.instance(index))
        assert one_trimmed.item() == trimmed_B[index] and one_full.item() == full_B[index]
    counts = full_counts(model.architecture, model.backbone.token_counts(tiny.LENGTHS[1]))
    assert full_B[1].item() == total_macs(model.architecture, counts)


def test_a_longer_text_costs_more() -> None:
    model = tiny.paper_model()
    with torch.no_grad():
        _, full_B = instance_macs(model, model(tiny.ragged_inputs(model.backbone), "packed").decisions)
    order = sorted(range(len(tiny.LENGTHS)), key=tiny.LENGTHS.__getitem__)
    assert full_B[order].tolist() == sorted(full_B.tolist())


DECODER = Architecture(
    (
        LayerSpec(
            "decoder",
            0,
            "decoder",
            20,
            80,
            SELF,
            AttentionSpec("c", "hosted", 4, 5, memory_stream="vision", memory_layer=0, memory_width=20),
            kinds=("self_head", "cross_head"),
        ),
        LayerSpec("vision", 0, "vision_encoder", 20, 80, AttentionSpec("v", "bert", 4, 5)),
    ),
    (FixedCost("vision_encoder", 10, "vision"),),
    (TokenCost("head", "decoder", 0, 1000),),
)
# three beams, four steps from one token: 12 tokens, 3 * (1 + 2 + 3 + 4) = 30 pairs, 12 rows over all steps
START = {"vision": 10, "decoder": 12, "decoder.pairs": 30, "decoder.row_calls": 12}


def test_a_decoder_projects_its_memory_once_or_for_every_row_call() -> None:
    parts = macs_by_part(DECODER, full_counts(DECODER, START))
    own = 4 * 12 * 20 * 20 + 2 * 30 * 20
    cross = 2 * 12 * 20 * 20 + 2 * 12 * 10 * 20
    keys_values = 2 * 10 * 20 * 20
    assert parts["decoder"] == own + cross + keys_values + 12 * 2 * 20 * 80
    assert parts["head"] == 12 * 1000
    published = macs_by_part(DECODER, full_counts(DECODER, START), as_published=True)
    assert published["decoder"] - parts["decoder"] == 11 * keys_values
    assert published["vision_encoder"] == parts["vision_encoder"]


def test_only_a_decoders_heads_are_sites() -> None:
    assert [site.name for site in DECODER.sites() if site.stream == "decoder"] == [
        "decoder.0.self_head",
        "decoder.0.cross_head",
    ]
    counts = planned_counts(DECODER, START, {"head.decoder": 0.5, "cross_head.decoder": 0.25})
    assert counts["decoder.0.self_head"] == 2 and counts["decoder.0.cross_head"] == 1
    assert counts["decoder.0.token"] == 12


def test_rows_of_an_instance_are_summed() -> None:
    """Two images per instance: plain numbers stand for each of them, tensors have a column each."""
    two = Architecture(SMALL.layers, SMALL.fixed, SMALL.per_token, {"text": 2, "vision": 2})
    start = {"text": 6, "vision": 10}
    once, twice = (macs_by_part(each, full_counts(each, start)) for each in (SMALL, two))
    assert twice["vision_encoder"] == 2 * once["vision_encoder"] and twice["head"] == once["head"]
    columns = {name: torch.tensor([[float(value), float(value)]]) for name, value in start.items()}
    measured = macs_by_part(two, full_counts(two, columns))
    assert measured["text_encoder"].tolist() == [2 * once["text_encoder"]]
    per_row = macs_by_part(DECODER, full_counts(DECODER, {**START, "vision.rows": 3}))
    assert (
        per_row["vision_encoder"] == 3 * macs_by_part(DECODER, full_counts(DECODER, START))["vision_encoder"]
    )


def test_what_only_trimming_needs_costs_the_full_model_nothing() -> None:
    extra = Architecture(
        (*SMALL.layers, LayerSpec("guidance", 0, "trimmers", 12, 30, SELF)), (), (), {}, ("guidance",)
    )
    start = {"text": 6, "vision": 10, "guidance": 6}
    assert macs_by_part(extra, full_counts(extra, start))["trimmers"] == 0
    assert macs_by_part(extra, full_counts(extra, start, trimming=True))["trimmers"] > 0


def test_an_images_rows_as_memory() -> None:
    """A second row of the vision stream is what a second cross-attention attends to."""
    second = AttentionSpec("c", "hosted", 4, 5, "vision", 0, 20, memory_copy=1)
    first = AttentionSpec("c", "hosted", 4, 5, "vision", 0, 20, memory_copy=0)
    layer = LayerSpec("text", 0, "text_encoder", 20, 80, SELF, first, second_cross_attention=second)
    counts = {
        "text.0.token": torch.tensor([5.0]),
        "vision.0.token": torch.tensor([[7.0, 3.0]]),
        "text.0.self_head": 4,
        "text.0.cross_head": 4,
        "text.0.cross_head1": 2,
    }
    expected = attention_macs(SELF, 20, 5, 5, 4, 20) + 5 * 2 * 20 * 80
    expected += attention_macs(first, 20, 5, 7, 4, 20) + attention_macs(second, 20, 5, 3, 2, 20)
    assert layer_macs(layer, counts).tolist() == [expected]

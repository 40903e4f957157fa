"""METER with a Swin Transformer: the official one's features, tokens trimmed in the co-attention layers."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close
from torchprofile import profile_macs

from smarttrim_cli.backbones import _meter_checkpoint as checkpoint
from smarttrim_cli.backbones import meter
from smarttrim_cli.errors import UserError
from smarttrim_cli.forms import Form
from smarttrim_cli.pruning.cost import instance_macs
from smarttrim_cli.pruning.model import TrimmedModel
from tests import tiny
from tests.backbones import meter_golden as golden
from tests.contracts.test_macs import measured
from tests.contracts.test_removal import Gathered, bert_attention

SMALL = {"embed_dim": 8, "depths": [2, 2, 2], "num_heads": [1, 2, 2]}
"""That of the reference data: 32 wide, 4 x 4 tokens at image size 64."""
EXACT = {"rtol": 0.0, "atol": 1e-5}


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def build(form: str = "vqa", size: int = 64, **vision: Any) -> meter.Meter:
    section = {**tiny.BACKBONES["meter"]["plain"], "image_size": size}
    section["vision"] = {"model": "swin_tiny_patch4_window7_224", "args": SMALL, **vision}
    torch.manual_seed(0)
    return tiny.enliven(meter.build(meter.Options.model_validate(section), tiny.FORMS[form])).eval()


def trimmed(form: str = "vqa") -> TrimmedModel:
    return tiny.attach(build(form), "cross_modal", "global_head")


# --- as published ---


@pytest.mark.parametrize(("size", "suffix"), [(64, ""), (96, "_96")])
def test_the_features_are_the_official_ones(size: int, suffix: str) -> None:
    """Also at another resolution: windows of image size / 32, tables of relative positions resized."""
    model, state = build(size=size), load_file(golden.GOLDEN / "meter_swin_tiny.safetensors")
    mapped = checkpoint.from_official(state, model)
    assert set(mapped) == {name for name in model.state_dict() if name.startswith("vit_model.")}
    model.load_state_dict(mapped, strict=False)
    data = golden.arrays("meter_swin_tiny.npz")
    assert_close(model.encode_image(data[f"in_image{suffix}"]), data[f"out_features{suffix}"], **EXACT)


def test_every_name_and_shape_of_swin_base() -> None:
    official = json.loads((golden.GOLDEN / "meter_swin_base384_shapes.json").read_text())
    with torch.device("meta"):
        section = {"image_size": 384, "vision": {"model": "swin_base_patch4_window12_384"}}
        model = meter.build(meter.Options.model_validate(section), Form("vqa", 3129))
    names = checkpoint.official_names(model)
    own = {
        names[name]: list(value.shape)
        for name, value in model.vit_model.state_dict(prefix="vit_model.").items()
    }
    assert own == {name: shape for name, shape in official.items() if not checkpoint.UNUSED.fullmatch(name)}
    assert model.cross_modal_image_transform.in_features == 1024 and model.token_counts(9)["vision"] == 144


def test_there_and_back() -> None:
    model = build()
    official = checkpoint.to_official(model)
    assert "vit_model.layers.0.downsample.reduction.weight" in official
    assert "vit_model.layers.2.downsample.reduction.weight" not in official
    back = checkpoint.from_official(official, model)
    assert all(torch.equal(back[name], value) for name, value in model.state_dict().items())


def test_the_image_is_the_average_of_its_tokens() -> None:
    model = build()
    inputs = tiny.ragged_inputs(model)
    text, image = model.encode(**inputs)
    pooled = torch.cat(
        (
            torch.tanh(model.cross_modal_text_pooler.dense(text[:, 0])),
            torch.tanh(model.cross_modal_image_pooler.dense(image.mean(1))),
        ),
        -1,
    )
    assert image.shape[1] == 16
    assert_close(model(**inputs), model.vqa_classifier(pooled), **EXACT)


# --- trimmed ---


def test_its_own_layers_have_no_sites() -> None:
    architecture = build().architecture()
    layers = [layer for layer in architecture.layers if layer.stream == "vision"]
    assert [(layer.index, layer.part) for layer in layers] == [(0, "cross_modal"), (1, "cross_modal")]
    assert [layer.cross_attention.memory_layer for layer in layers] == [2, 3]
    texts = [layer for layer in architecture.layers if layer.stream == "text" and layer.cross_attention]
    assert [layer.cross_attention.memory_layer for layer in texts] == [0, 1]


@pytest.mark.parametrize("form", ["vqa", "nlvr2"])
def test_the_modes_agree(form: str) -> None:
    model = trimmed(form)
    inputs = tiny.ragged_inputs(model.backbone)
    full = model(inputs, "full").output
    for seed in range(3):
        replay = tiny.random_decisions(model, inputs, seed)
        masked, packed = (model(inputs, mode, replay=replay) for mode in ("masked", "packed"))
        assert_close(packed.output, masked.output, **EXACT)
    masked, packed = (model(inputs, mode) for mode in ("masked", "packed"))
    assert_close(packed.output, masked.output, **EXACT)
    assert (packed.output - full).abs().amax() > 1e-2
    for mode in ("masked", "packed"):
        with model.at_threshold(-1e9):
            assert_close(model(inputs, mode).output, full, **EXACT)
        with model.at_threshold(1e9):
            keep = model(inputs, mode).decisions.keep["vision.1.token"]
        assert keep.sum(1).tolist() == [1] * len(keep) and keep[:, 0].all()  # never empty


@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_an_instance_is_the_same_alone(mode: str) -> None:
    model = trimmed()
    inputs = tiny.ragged_inputs(model.backbone)
    batch = model(inputs, mode)
    for index in range(len(tiny.LENGTHS)):
        one = model(tiny.instance(inputs, index), mode)
        assert_close(one.output[0], batch.output[index], **EXACT)
        for name, keep in one.decisions.keep.items():
            expected = batch.decisions.keep[name][index]
            assert torch.equal(keep[0], expected[: keep.shape[1]]), name


@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_dropped_tokens_are_gone_by_hand(mode: str) -> None:
    """Plain layers on gathered tokens; the average runs over the kept ones. Heads are all kept."""
    model, host, left = trimmed(), build(), set()
    inputs = tiny.instance(tiny.ragged_inputs(model.backbone), 0)
    for seed in range(6):
        replay = tiny.random_decisions(model, inputs, seed)
        for name, keep in replay.keep.items():
            if name.endswith("head"):
                replay.keep[name] = torch.ones_like(keep)
        forward = model(inputs, mode, replay=replay)
        left.add(int(forward.decisions.keep["vision.1.token"].sum()))
        assert_close(forward.output, _by_hand(host, inputs, forward.decisions.keep), **EXACT)
    assert len(left) >= 3


def _by_hand(host: meter.Meter, inputs: dict[str, Tensor], keep: dict[str, Tensor]) -> Tensor:
    text = Gathered(host.text_transformer.embeddings(input_ids=inputs["input_ids"])[0])
    for index, layer in enumerate(host.text_transformer.encoder.layer):
        text.gather(keep[f"text.{index}.token"][0])
        text.hidden = layer(text.hidden[None])[0]
    image = Gathered(host.vit_model.forward_features(inputs["pixel_values"]).reshape(-1, 32))
    types, heads = host.token_type_embeddings.weight, torch.ones(4)
    text.hidden = host.cross_modal_text_transform(text.hidden) + types[0]
    image.hidden = host.cross_modal_image_transform(image.hidden) + types[1]
    for number in range(2):
        text.gather(keep[f"text.{2 + number}.token"][0])
        image.gather(keep[f"vision.{number}.token"][0])
        new = []
        for own, other, side in ((text, image, "text"), (image, text, "image")):
            layer = getattr(host, f"cross_modal_{side}_layers")[number]
            hidden = bert_attention(layer.attention, own.hidden, own.hidden, heads)
            hidden = bert_attention(layer.crossattention, hidden, other.hidden, heads)
            new.append(layer.output(layer.intermediate(hidden), hidden))
        text.hidden, image.hidden = new
    pooled = (
        torch.tanh(host.cross_modal_text_pooler.dense(text.hidden[0])),
        torch.tanh(host.cross_modal_image_pooler.dense(image.hidden.mean(0))),
    )
    return host.vqa_classifier(torch.cat(pooled)[None])


# --- costs ---


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", [64, 72])
def test_macs_are_those_that_are_measured(size: int) -> None:
    """At 72 pixels grids are padded to whole windows."""
    model = tiny.attach(build(size=size), "cross_modal", "global_head")
    one = tiny.instance(tiny.ragged_inputs(model.backbone), 0)
    for threshold in (-1e9, 0.0, 1e9):
        with model.at_threshold(threshold):
            trimmed_B, full_B = instance_macs(model, model(one, "packed").decisions)
            assert measured(model, one, "packed") == pytest.approx(trimmed_B.item(), rel=0.005)
    assert measured(model, one, "full") == pytest.approx(full_B.item(), rel=0.0005)


@pytest.mark.filterwarnings("ignore")
def test_macs_of_windows_exactly() -> None:
    model = build()
    fixed = model.architecture().fixed[0]
    assert (fixed.part, fixed.per_row_of) == ("vision_encoder", "vision")
    average = 32  # of timm's own head
    assert profile_macs(model.vit_model, torch.randn(1, 3, 64, 64)) - average == fixed.macs


# --- what cannot be built ---


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"model": "swinv2_tiny_window8_256", "args": {"window_size": 8}}, "Swin Transformer"),
        ({"sincos_pos_embed": True}, "no position embeddings"),
        ({"args": {"depth": 11}}, "timm cannot build"),
    ],
)
def test_what_cannot_be_built_is_a_users_mistake(vision: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build(**vision)
    assert (error.value.where or "").startswith("backbone.vision")


def test_images_are_normalised_as_published() -> None:
    assert meter.normalisation(meter.Options()) == {}
    swin = meter.Options.model_validate({"vision": {"model": "swin_base_patch4_window12_384"}})
    assert meter.normalisation(swin) == {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    assert swin.vision.args == {} and meter.Options().vision.args == {"depth": 11}

"""Contracts for backbones that contrast: features, images encoded once, and training with hard negatives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torchprofile import profile_macs

from smarttrim_cli import registry
from smarttrim_cli.engine.retrieval import merged, of_streams
from smarttrim_cli.forms import CONTRASTS
from smarttrim_cli.pruning.cost import double_counts, full_counts, instance_macs, total_macs
from smarttrim_cli.pruning.gumbel import Sampling
from smarttrim_cli.pruning.model import TrimmedModel, build_trimmers
from tests import tiny
from tests.tiny import Variant

EXACT = {"rtol": 0.0, "atol": 1e-5}
CONTRASTING = [
    variant
    for variant in tiny.variants()
    if registry.load("backbones", variant.backbone).FORMS[variant.form] == CONTRASTS
]
MODES = ("full", "masked", "packed")
TEXTS = 4
pytestmark = [
    pytest.mark.parametrize("variant", CONTRASTING, ids=str),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(autouse=True)
def _no_grad(request: pytest.FixtureRequest):
    with torch.set_grad_enabled("gradient" in request.node.name):
        yield


def model_of(variant: Variant) -> TrimmedModel:
    model = tiny.attach(variant.build(), "cross_modal", "global_head")
    model.backbone.temp.data.fill_(0.2)
    return model


def training(model: TrimmedModel, images: tuple[int, ...] = (0, 1, 2, 1, 4)) -> dict[str, Tensor]:
    """A batch whose second and fourth pair are of the same image, with its negatives chosen."""
    inputs = tiny.ragged_inputs(model.backbone)
    inputs["pixel_values"] = inputs["pixel_values"][list(images)]
    return {
        **inputs,
        "image_ids": torch.tensor(images),
        "negative_images": torch.tensor([3, 0, 4, 2, 1]),
        "negative_texts": torch.tensor([1, 4, 0, 2, 3]),
    }


def many_texts(model: TrimmedModel) -> dict[str, Tensor]:
    """Five images with four texts each."""
    inputs = tiny.ragged_inputs(model.backbone)
    for name in ("input_ids", "attention_mask"):
        inputs[name] = torch.stack([inputs[name][:, 0].roll(shift, 0) for shift in range(TEXTS)], 1)
    return inputs


# --- training ---


@pytest.mark.parametrize("mode", MODES)
def test_logits_are_those_of_matching_the_same_pairs(variant: Variant, mode: str) -> None:
    """A pair is trimmed under the guidance of its own image, whichever instance it is listed with."""
    model = model_of(variant)
    inputs = training(model)
    output = model(inputs, mode).output
    own = torch.arange(5)
    pairs = ((own, own), (own, inputs["negative_texts"]), (inputs["negative_images"], own))
    for place, (image, text) in enumerate(pairs):
        chosen = {name: inputs[name][text] for name in ("input_ids", "attention_mask")}
        alone = model({"pixel_values": inputs["pixel_values"][image], **chosen}, mode).output
        assert_close(output.matching[:, place, 1], alone[:, 0], **EXACT)
    assert output.matching.std() > 0.1


def test_packed_is_masked_and_keeping_everything_is_full(variant: Variant) -> None:
    model = model_of(variant)
    inputs = training(model)
    masked, packed, full = (model(inputs, mode) for mode in ("masked", "packed", "full"))
    for one, other in zip(packed.output, masked.output, strict=True):
        assert_close(one, other, **EXACT)
    assert (packed.output.matching - full.output.matching).abs().max() > 1e-2
    assert (packed.output.image_features - full.output.image_features).abs().max() > 1e-2
    for one, other in zip(*(instance_macs(model, f.decisions)[0] for f in (masked, packed)), strict=True):
        assert float(one) == pytest.approx(float(other))
    assert packed.decisions.copies["text"] == 3 and packed.decisions.copies["vision"] == 1
    with model.at_threshold(-1e9):
        for mode in ("masked", "packed"):
            for one, other in zip(model(inputs, mode).output, full.output, strict=True):
                assert_close(one, other, **EXACT)


def test_negatives_are_of_other_images_and_can_be_repeated(variant: Variant) -> None:
    model = model_of(variant)
    inputs = training(model)
    drawing = {name: value for name, value in inputs.items() if not name.startswith("negative")}
    ids, seen = inputs["image_ids"], set()
    for seed in range(20):
        torch.manual_seed(seed)
        output = model(drawing, "full").output
        assert (ids[output.negative_images] != ids).all() and (ids[output.negative_texts] != ids).all()
        seen.add(tuple(output.negative_texts.tolist()))
    assert len(seen) > 1
    again = model(
        {
            **drawing,
            "negative_images": output.negative_images,
            "negative_texts": output.negative_texts,
        },
        "full",
    ).output
    assert torch.equal(again.matching, output.matching)


def test_the_likeliest_are_drawn_at_a_low_temperature(variant: Variant) -> None:
    model = model_of(variant)
    inputs = {name: value for name, value in training(model).items() if not name.startswith("negative")}
    same = inputs["image_ids"][:, None] == inputs["image_ids"]
    model.backbone.temp.data.fill_(1e-9)  # held at 0.001
    output = model(inputs, "masked").output
    similarity = output.image_features @ output.text_features.T
    assert torch.equal(output.negative_texts, similarity.masked_fill(same, -9).argmax(1))
    assert torch.equal(output.negative_images, similarity.T.masked_fill(same, -9).argmax(1))
    assert float(output.temperature) == pytest.approx(0.001)


def test_one_image_alone_gives_true_pairs(variant: Variant) -> None:
    model = model_of(variant)
    inputs = training(model, (2, 2, 2, 2, 2))
    inputs = {name: value for name, value in inputs.items() if not name.startswith("negative")}
    output = model(inputs, "masked").output
    assert output.matching.isfinite().all()


def test_gradients_reach_both_encoders_and_the_trimmers(variant: Variant) -> None:
    """The name of this test says that it needs a gradient."""
    model = model_of(variant)
    model.threshold.fill_(-1.5)
    model.backbone.temp.data.fill_(0.9)  # too high: it is put back into its range
    output = model(training(model), "masked", sampling=Sampling(1.0, 0.0)).output
    assert float(output.temperature) == 0.5
    weights = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    similarity = output.image_features @ output.text_features.T / output.temperature
    (output.matching.square().mean() + (similarity * weights).mean()).backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not missing
    assert model.backbone.temp.grad != 0


def test_token_trimmers_alone(variant: Variant) -> None:
    """Sites without trimmers keep all heads of all images, not of all pairs."""
    host = variant.build()
    plugin, options = (
        registry.load("trimmers", "cross_modal"),
        registry.options("trimmers", {"name": "cross_modal"}),
    )
    groups = ["token.vision", "token.text"]
    trimmers = build_trimmers(host.architecture(), groups, lambda site: plugin.build(options, site), None)
    model = TrimmedModel(host, trimmers).eval()
    for inputs in (training(model), many_texts(model)):
        for mode in ("masked", "packed"):
            trimmed_B, full_B = instance_macs(model, model(inputs, mode).decisions)
            assert trimmed_B.shape == full_B.shape == (5,)


# --- features, and images that are encoded once ---


@pytest.mark.parametrize("mode", MODES)
def test_features_are_the_same_alone_and_in_a_batch(variant: Variant, mode: str) -> None:
    model = model_of(variant)
    pixels = tiny.ragged_inputs(model.backbone)["pixel_values"]
    batch = model({"pixel_values": pixels}, mode).output.features
    assert_close(batch.norm(dim=-1), torch.ones(5))
    for index in range(5):
        alone = model({"pixel_values": pixels[index : index + 1]}, mode).output.features
        assert_close(alone[0], batch[index], **EXACT)
    whole = model.backbone.contrastive_features(pixel_values=pixels)
    assert torch.allclose(batch, whole, atol=1e-4) == (mode == "full")
    if mode != "full":
        with model.at_threshold(-1e9):
            assert_close(model({"pixel_values": pixels}, mode).output.features, whole, **EXACT)


def test_features_of_texts_depend_on_no_padding(variant: Variant) -> None:
    model = model_of(variant)
    inputs = tiny.ragged_inputs(model.backbone, extra=3)
    ids, mask = inputs["input_ids"][:, 0], inputs["attention_mask"][:, 0]
    batch = model.backbone.contrastive_features(input_ids=ids, attention_mask=mask)
    for index, length in enumerate(mask.sum(1)):
        own = slice(index, index + 1)
        alone = model.backbone.contrastive_features(
            input_ids=ids[own, :length], attention_mask=mask[own, :length]
        )
        assert_close(alone[0], batch[index], **EXACT)


@pytest.mark.parametrize("mode", MODES)
def test_an_encoded_image_is_matched_as_in_one_pass(variant: Variant, mode: str) -> None:
    model = model_of(variant)
    inputs = many_texts(model)
    whole = model(inputs, mode)
    for image in range(5):
        encoded = model({"pixel_values": inputs["pixel_values"][image : image + 1]}, mode)
        kept = encoded.output.to("cpu")
        passes = [
            model(
                {
                    "images": kept,
                    "input_ids": inputs["input_ids"][image : image + 1, block],
                    "attention_mask": inputs["attention_mask"][image : image + 1, block],
                },
                mode,
            )
            for block in (slice(0, 3), slice(3, None))
        ]
        scores = torch.cat([one.output[0] for one in passes])
        assert_close(scores, whole.output[image], **EXACT)
        if mode == "full":
            continue
        found = merged(encoded.decisions, [one.decisions for one in passes])
        expected = whole.decisions.instance(image)
        assert found.copies == expected.copies
        for name, keep in expected.keep.items():
            assert torch.equal(found.keep[name], keep), name
        for one, other in zip(instance_macs(model, found), instance_macs(model, expected), strict=True):
            assert one.tolist() == other.tolist()


class Features(nn.Module):
    """One image to its feature, with everything else that was computed: the tracer drops what is not used."""

    def __init__(self, model: TrimmedModel, mode: str) -> None:
        super().__init__()
        self.model, self.mode = model, mode

    def forward(self, pixels: Tensor) -> list[Tensor]:
        forward = self.model({"pixel_values": pixels}, self.mode)
        if forward.context is None:
            return [forward.output.features, forward.output.hidden]
        heads = [mask for mask in forward.context.log.heads.values() if isinstance(mask, Tensor)]
        return [forward.output.features, forward.output.hidden, *heads]


class TextFeatures(nn.Module):
    def __init__(self, model: TrimmedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.model.backbone.contrastive_features(input_ids=ids, attention_mask=mask)


@pytest.mark.parametrize("mode", ["full", "packed"])
def test_macs_of_features(variant: Variant, mode: str) -> None:
    model = model_of(variant)
    inputs = tiny.ragged_inputs(model.backbone)
    vision = of_streams(model.architecture, ("vision",))
    sites = {name: site for name, site in model.sites.items() if name.startswith("vision")}
    for index in (0, 3):
        pixels = inputs["pixel_values"][index : index + 1]
        length = tiny.LENGTHS[index]
        image_macs, text_macs = model.backbone.feature_macs(length)
        if mode == "full":
            start = model.backbone.token_counts(length)
            encoding = total_macs(vision, full_counts(vision, {"vision": start["vision"]}))
        else:
            decisions = model({"pixel_values": pixels}, mode).decisions
            encoding = total_macs(vision, double_counts(vision, decisions), sites)
        found = profile_macs(Features(model, mode).eval(), (pixels,))
        assert found == pytest.approx(float(encoding) + image_macs, rel=0.005)
        one = tuple(inputs[name][index : index + 1, 0, :length] for name in ("input_ids", "attention_mask"))
        assert profile_macs(TextFeatures(model).eval(), one) == pytest.approx(text_macs, rel=0.005)
        several = model.backbone.feature_macs(torch.tensor([length, 4]))[1]
        assert several.tolist() == [text_macs, model.backbone.feature_macs(4)[1]]


def test_macs_of_many_texts(variant: Variant) -> None:
    model = model_of(variant)
    inputs = {name: value[:1] for name, value in many_texts(model).items()}
    lengths = inputs["attention_mask"].sum(-1).double()
    start = {**model.backbone.token_counts(lengths), "text.rows": TEXTS}
    full = total_macs(model.architecture, full_counts(model.architecture, start))
    _, expected_B = instance_macs(model, model(inputs, "packed").decisions)
    assert float(full) == pytest.approx(float(expected_B))

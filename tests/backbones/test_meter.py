"""METER: its encoders are the host libraries' own, and what they cannot be trimmed as is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from smarttrim_cli import registry
from smarttrim_cli.backbones import meter
from smarttrim_cli.backbones._coattention import CoAttentionLayer
from smarttrim_cli.errors import UserError
from smarttrim_cli.forms import Form
from smarttrim_cli.pruning.cost import instance_macs
from smarttrim_cli.pruning.model import TrimmedModel
from tests import tiny
from tests.tiny import BACKBONES, Variant

VARIANTS = [
    Variant("meter", name, options)
    for name, options in BACKBONES["meter"].items()
    if not options["vision"]["model"].startswith("swin")
]


def options_of(**changes: Any) -> meter.Options:
    return meter.Options(**{**BACKBONES["meter"]["plain"], **changes})


def vision(**changes: Any) -> dict[str, Any]:
    plain = BACKBONES["meter"]["plain"]["vision"]
    return {"model": changes.pop("model", plain["model"]), "args": {**plain["args"], **changes}}


def text(model_type: str, **changes: Any) -> dict[str, Any]:
    return {"model_type": model_type, "config": {**BACKBONES["meter"]["plain"]["text"]["config"], **changes}}


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_the_vision_encoder_is_timms(variant: Variant) -> None:
    host = variant.build()
    pixels = tiny.ragged_inputs(host)["pixel_values"]
    assert torch.equal(host.encode_image(pixels), host.vit_model.forward_features(pixels))


@torch.no_grad()
@pytest.mark.parametrize("extra", [0, 6])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_the_text_encoder_is_hugging_faces(variant: Variant, extra: int) -> None:
    host = variant.build()
    inputs = tiny.ragged_inputs(host, extra=extra)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    expected = host.text_transformer(input_ids=ids, attention_mask=mask).last_hidden_state
    found = host.encode_text(ids, mask, mask.bool()[:, None, None, :])
    real = mask.bool()
    assert_close(found[real], expected[real], rtol=0.0, atol=1e-6)
    alone = tiny.instance(inputs, 3)
    unpadded = host.text_transformer(input_ids=alone["input_ids"]).last_hidden_state[0]
    assert_close(found[3, : tiny.LENGTHS[3]], unpadded, rtol=0.0, atol=1e-5)


@torch.no_grad()
def test_a_co_attention_layer_is_written_in_torchs_own_modules() -> None:
    """nn.MultiheadAttention with the same weights, residual and LayerNorm behind, exact GELU."""
    torch.manual_seed(0)
    layer = tiny.enliven(CoAttentionLayer(12, 3, 20, 0.0)).eval()
    hidden, memory = torch.randn(2, 5, 12), torch.randn(2, 7, 12)
    seen = torch.ones(2, 7, dtype=torch.bool)
    seen[1, 4:] = False

    def reference(module: nn.Module, x: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        torchs = nn.MultiheadAttention(12, 3, batch_first=True)
        inner = module.self
        torchs.in_proj_weight.data = torch.cat((inner.query.weight, inner.key.weight, inner.value.weight))
        torchs.in_proj_bias.data = torch.cat((inner.query.bias, inner.key.bias, inner.value.bias))
        torchs.out_proj.load_state_dict(module.output.dense.state_dict())
        out = torchs(x, y, y, key_padding_mask=None if mask is None else ~mask)[0]
        return module.output.LayerNorm(out + x)

    attended = reference(layer.attention, hidden, hidden, None)
    attended = reference(layer.crossattention, attended, memory, seen)
    inner = nn.functional.gelu(layer.intermediate.dense(attended))
    expected = layer.output.LayerNorm(layer.output.dense(inner) + attended)
    assert_close(layer(hidden, memory, None, seen[:, None, None, :]), expected, rtol=0.0, atol=1e-5)
    assert layer.output.LayerNorm.eps == 1e-12


def test_names_are_the_official_ones() -> None:
    names = set(VARIANTS[0].build().state_dict())
    expected = {
        "text_transformer.embeddings.word_embeddings.weight",
        "text_transformer.encoder.layer.1.attention.self.query.weight",
        "text_transformer.encoder.layer.1.attention.output.LayerNorm.bias",
        "vit_model.blocks.0.attn.qkv.weight",
        "cross_modal_text_transform.weight",
        "cross_modal_image_transform.bias",
        "token_type_embeddings.weight",
        "cross_modal_text_layers.1.attention.self.value.bias",
        "cross_modal_image_layers.0.crossattention.output.dense.weight",
        "cross_modal_image_layers.1.intermediate.dense.weight",
        "cross_modal_text_layers.0.output.LayerNorm.weight",
        "cross_modal_image_pooler.dense.weight",
        "cross_modal_text_pooler.dense.bias",
        "vqa_classifier.0.weight",
        "vqa_classifier.1.weight",
        "vqa_classifier.3.bias",
    }
    assert expected <= names


def test_initial_weights_outside_the_encoders() -> None:
    torch.manual_seed(0)
    host = meter.build(options_of(hidden_size=64), Form("vqa", 50))
    weight = host.vqa_classifier[0].weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert host.cross_modal_text_layers[0].attention.self.query.bias.abs().max() == 0
    assert host.vqa_classifier[1].weight.min() == 1


def test_the_architecture_describes_the_modules() -> None:
    for variant in VARIANTS:
        host = variant.build()
        architecture = host.architecture()
        assert architecture.streams == ("text", "vision")
        assert {layer.part for layer in architecture.layers} == {
            "text_encoder",
            "vision_encoder",
            "cross_modal",
        }
        for layer in architecture.layers:
            for spec in filter(None, (layer.self_attention, layer.cross_attention)):
                assert isinstance(host.get_submodule(spec.path), nn.Module)
                assert spec.heads * spec.head_dim == layer.width
        assert [(s.index, s.guide) for s in architecture.layers if s.stream == "text"] == [
            (0, None), (1, None), (2, "vision"), (3, "vision")
        ]  # fmt: skip
        assert [s.index for s in architecture.layers if s.stream == "vision"] == [0, 1, 2, 3]


def test_parameters_belong_to_parts() -> None:
    host = VARIANTS[0].build()
    parts = {name: host.part_of(name) for name in host.state_dict()}
    assert set(parts.values()) == {"vision_encoder", "text_encoder", "cross_modal", "head"}
    assert parts["vit_model.cls_token"] == "vision_encoder"
    assert parts["text_transformer.embeddings.LayerNorm.bias"] == "text_encoder"
    assert parts["vqa_classifier.3.bias"] == "head"
    assert (
        parts["cross_modal_text_pooler.dense.weight"]
        == parts["token_type_embeddings.weight"]
        == "cross_modal"
    )


def test_example_inputs_fit() -> None:
    for variant in VARIANTS:
        host = variant.build()
        inputs = host.example_inputs(7, batch=3, seed=1)
        assert {name: tuple(t.shape) for name, t in inputs.items()} == {
            "pixel_values": (3, 3, 32, 32), "input_ids": (3, 7), "attention_mask": (3, 7)
        }  # fmt: skip
        assert host(**inputs).shape == (3, tiny.NUM_LABELS)
        assert host.token_counts(7) == {"text": 7, "vision": 17}
        again, other = (host.example_inputs(7, 3, seed)["pixel_values"] for seed in (1, 2))
        assert torch.equal(again, inputs["pixel_values"]) and not torch.equal(other, again)


def test_sine_cosine_positions_are_of_rows_and_columns() -> None:
    host = meter.build(options_of(vision={**vision(), "sincos_pos_embed": True}), Form("vqa", 3))
    grid = host.vit_model.pos_embed[0, 1:].reshape(4, 4, 32)
    assert_close(grid[2, 1, :16], grid[2, 3, :16])  # the row
    assert_close(grid[0, 3, 16:], grid[2, 3, 16:])  # the column
    assert len(torch.unique(grid.reshape(16, 32), dim=0)) == 16
    assert grid[0, 0, :8].abs().max() == 0 and grid.abs().max() <= 0.5


@pytest.mark.parametrize(
    ("changes", "where", "message"),
    [
        ({"vision": vision(model="vit_no_such_model")}, "backbone.vision", "timm cannot build"),
        ({"vision": vision(no_such_argument=1)}, "backbone.vision", "timm cannot build"),
        ({"vision": vision(reg_tokens=4)}, "backbone.vision.model", "a CLS as only prefix token"),
        (
            {"vision": {"model": "vit_base_r50_s16_224", "args": {"depth": 1}}},
            "backbone.vision.model",
            "patches",
        ),
        ({"vision": {"model": "vit_base_mci_224", "args": {"depth": 1}}}, "backbone.vision.model", "patches"),
        ({"vision": {"model": "resnet18"}}, "backbone.vision", "resnet18"),
        ({"hidden_size": 41}, "backbone", "not a multiple"),
        ({"text": text("no_such_type")}, "backbone.text", "no_such_type"),
        ({"text": text("gpt2")}, "backbone.text", "gpt2"),
        ({"text": text("albert")}, "backbone.text", "albert"),
        (
            {"text": text("roberta", num_hidden_layer=2)},
            "backbone.text.config",
            "mean num_hidden_layers",
        ),
        ({"text": text("roberta", layer_norm_eps="x")}, "backbone.text", "cannot build"),
        ({"text": text("roberta", num_attention_heads=5)}, "backbone.text", "cannot build"),
        ({"text": text("roberta", hidden_act="foo")}, "backbone.text", "cannot build"),
        ({"vision": vision(num_heads=5)}, "backbone.vision", "timm cannot build"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_built_is_a_users_mistake(changes: dict[str, Any], where: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        meter.build(options_of(**changes), Form("vqa", 3))
    assert (error.value.where or "").startswith(where)


@pytest.mark.parametrize(
    "changes",
    [
        {"vision": vision(scale_attn_norm=True)},
        pytest.param({"vision": vision(attn_layer="diff")}),
        pytest.param({"vision": vision(model="vit_small_patch16_18x2_224")}),
        pytest.param({"vision": vision(class_token=False, reg_tokens=1, global_pool="avg")}),
        pytest.param({"text": text("roberta-prelayernorm")}),
        pytest.param({"text": text("xmod")}),
    ],
    ids=["scale_norm", "diff_attention", "parallel", "register_only", "prelayernorm", "xmod"],
)
def test_what_cannot_be_trimmed_is_refused_when_trimmers_are_attached(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        TrimmedModel(meter.build(options_of(**changes), Form("vqa", 3)), {})


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        {"vision": vision(qkv_bias=False, proj_bias=False)},
        {"vision": vision(pre_norm=True, final_norm=False)},
        {"vision": vision(no_embed_class=True, init_values=0.1, model="vit_small_patch14_dinov2")},
        {"text": text("xlm-roberta")},
        {"text": text("camembert"), "num_cross_layers": 1},
        {"hidden_size": 16, "num_attention_heads": 2},
    ],
    ids=["no_biases", "pre_norm", "dinov2", "xlm_roberta", "camembert", "narrow"],
)
def test_other_encoders_work_unchanged(changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = tiny.attach(
        tiny.enliven(meter.build(options_of(**changes), Form("vqa", 3))), "cross_modal", "global_head"
    )
    inputs = tiny.ragged_inputs(model.backbone)
    full, masked = model(inputs, "full").output, model(inputs, "masked")
    packed = model(inputs, "packed", replay=masked.decisions)
    assert_close(packed.output, masked.output, rtol=0.0, atol=1e-5)
    assert not torch.allclose(packed.output, full, atol=1e-3)
    with model.at_threshold(-1e9):
        assert_close(model(inputs, "packed").output, full, rtol=0.0, atol=1e-5)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
def test_macs_of_a_gated_feed_forward_block() -> None:
    from tests.contracts.test_macs import measured

    model = TrimmedModel(
        meter.build(options_of(vision=vision(model="vit_giant_patch14_dinov2")), Form("vqa", 3)).eval(), {}
    )
    one = model.backbone.example_inputs(9)
    _, full_B = instance_macs(model, model(one, "packed").decisions)
    assert measured(model, one, "full") == pytest.approx(full_B.item(), rel=0.005)


def test_defaults_are_meter_base() -> None:
    options = registry.options("backbones", {"name": "meter"})
    assert (options.hidden_size, options.num_attention_heads, options.num_cross_layers) == (768, 12, 6)
    assert options.image_size == 288 and options.max_text_length == 50
    with torch.device("meta"):
        host = meter.build(options, Form("vqa", 3129))
    assert len(host.vit_model.blocks) == 11 and host.vit_model.patch_embed.num_patches == 324
    assert len(host.text_transformer.encoder.layer) == 12
    assert host.text_transformer.config.vocab_size == 50265

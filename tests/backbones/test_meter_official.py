"""METER as published: outputs, names, shapes and resizing equal those of the official code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from smarttrim_cli.backbones import _meter_checkpoint as checkpoint
from smarttrim_cli.backbones import meter
from smarttrim_cli.errors import UserError
from smarttrim_cli.forms import Form
from tests.backbones import meter_golden as golden

CLOSE = {"rtol": 0.0, "atol": 5e-5}
OUT = golden.arrays("meter_tiny.npz")


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def outputs_of(modules: dict[str, nn.Module], run: Any) -> dict[str, Tensor]:
    """What modules return while ``run`` runs."""
    found: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda _, __, out, name=name: found.update({name: out}))
        for name, module in modules.items()
    ]
    run()
    for handle in handles:
        handle.remove()
    return found


def false_texts() -> tuple[Tensor, Tensor]:
    """True text and two false ones of every image, (B, 3, L)."""
    names = ("text", "false_text_0", "false_text_1")
    ids, masks = (torch.stack([OUT[f"in_{name}_{what}"] for name in names], 1) for what in ("ids", "masks"))
    return ids, masks


# --- outputs ---


def test_the_encoders() -> None:
    model, given = golden.loaded(), golden.inputs()
    real = given["attention_mask"].bool()
    embedded = model.text_transformer.embeddings(input_ids=given["input_ids"])
    assert_close(embedded[real], OUT["out_text_embeddings"][real], **CLOSE)
    mask = model.host_mask(given["attention_mask"])
    text = model.encode_text(given["input_ids"], given["attention_mask"], mask)
    assert_close(text[real], OUT["out_text_encoder_out"][real], **CLOSE)
    assert_close(model.encode_image(given["pixel_values"]), OUT["out_vit_out"], **CLOSE)


def test_every_co_attention_layer() -> None:
    model, given = golden.loaded(), golden.inputs()
    layers = {
        f"cross_{side}_layer{index}": getattr(model, f"cross_modal_{side}_layers")[index]
        for side in ("text", "image")
        for index in range(2)
    }
    found = outputs_of(layers, lambda: model(**given))
    real = given["attention_mask"].bool()
    for name, value in found.items():
        kept = real if "text" in name else slice(None)
        assert_close(value[kept], OUT[f"out_{name}"][kept], **CLOSE)
    text, image = model.encode(**given)
    assert_close(text[real], OUT["out_text_feats"][real], **CLOSE)
    assert_close(image, OUT["out_image_feats"], **CLOSE)
    assert_close(model.features(**given), OUT["out_cls_feats"], **CLOSE)


@pytest.mark.parametrize(
    ("form", "output"), [("vqa", "vqa_logits"), ("snli_ve", "snli_logits"), ("pretraining", "itm_logits")]
)
def test_heads_on_one_image_and_text(form: str, output: str) -> None:
    assert_close(golden.loaded(form)(**golden.inputs()), OUT[f"out_{output}"], **CLOSE)


def test_two_images() -> None:
    model, given = golden.loaded("nlvr2"), golden.inputs()
    given["pixel_values"] = torch.stack((OUT["in_image"], OUT["in_image_1"]), 1)
    first, second = model.features(**given).unflatten(0, (3, 2)).unbind(1)
    assert_close(first, OUT["out_cls_feats"], **CLOSE)
    assert_close(second, OUT["out_cls_feats_nlvr2_second"], **CLOSE)
    logits = model(**given)
    assert_close(logits, OUT["out_nlvr2_logits"], **CLOSE)
    assert_close(F.cross_entropy(logits, OUT["in_nlvr2_answers"]), OUT["out_nlvr2_loss"], **CLOSE)


def test_several_texts_per_image() -> None:
    """The false texts are padded with id 0, which must not matter."""
    model = golden.loaded("retrieval")
    ids, masks = false_texts()
    scores = model(OUT["in_image"], ids, masks)
    assert_close(scores, OUT["out_irtr_scores"], **CLOSE)
    assert_close(scores[:, 0], OUT["out_rank_score"], **CLOSE)
    assert_close(F.cross_entropy(scores, torch.zeros(3).long()), OUT["out_irtr_loss"], **CLOSE)
    assert_close(model(**golden.inputs()), OUT["out_rank_score"][:, None], **CLOSE)
    assert_close(model.itm_logits(**golden.inputs()), OUT["out_itm_logits"], **CLOSE)


def test_masked_words() -> None:
    model = golden.loaded("pretraining")
    logits = model.mlm_logits(OUT["in_image"], OUT["in_text_ids_mlm"], OUT["in_text_masks"])
    real = OUT["in_text_masks"].bool()
    assert_close(logits[real], OUT["out_mlm_logits"][real], **CLOSE)
    loss = F.cross_entropy(logits.flatten(0, 1), OUT["in_text_labels_mlm"].flatten(), ignore_index=-100)
    assert_close(loss, OUT["out_mlm_loss"], **CLOSE)


def test_a_text_without_padding() -> None:
    model, given = golden.loaded(), golden.inputs()
    alone = {name: tensor[1:2] for name, tensor in given.items()}
    alone |= {name: alone[name][:, :6] for name in ("input_ids", "attention_mask")}
    text, image = model.encode(**alone)
    assert_close(text, OUT["out_row1_unpadded_text_feats"], **CLOSE)
    assert_close(image, OUT["out_row1_unpadded_image_feats"], **CLOSE)
    assert_close(model(**alone), OUT["out_row1_unpadded_vqa_logits"], **CLOSE)


# --- names and shapes ---


def shapes_of(form: str) -> dict[str, list[int]]:
    """Names and shapes of the official METER-base for a form."""
    base = json.loads((golden.GOLDEN / "meter_base288_vqa_shapes.json").read_text())
    other = json.loads((golden.GOLDEN / "meter_base288_other_heads.json").read_text()).get(form)
    if other is None:
        return base
    return {name: shape for name, shape in base.items() if name not in other["absent"]} | other["changed"]


@pytest.mark.parametrize("form", list(golden.FORMS))
def test_every_name_and_shape_of_meter_base(form: str) -> None:
    with torch.device("meta"):
        wanted = Form(form, {"vqa": 3129, "snli_ve": 3}.get(form, 2), images=2 if form == "nlvr2" else 1)
        model = meter.build(meter.Options(), wanted)
    official = shapes_of(form)
    state = {name: torch.empty(shape, device="meta") for name, shape in official.items()}
    own = model.state_dict()
    mapped = checkpoint.from_official(state, model)
    assert {name: tensor.shape for name, tensor in mapped.items()} == {n: t.shape for n, t in own.items()}
    used = set(checkpoint.official_names(model).values())
    unused = {name for name in official if name not in used}
    assert unused == {
        "vit_model.positional_embedding",
        "vit_model.ln_final.weight",
        "vit_model.ln_final.bias",
        "text_transformer.embeddings.position_ids",
        "text_transformer.pooler.dense.weight",
        "text_transformer.pooler.dense.bias",
    }
    assert all(checkpoint.UNUSED.fullmatch(name) for name in unused)
    assert used <= set(official)


@pytest.mark.parametrize("form", list(golden.FORMS))
def test_there_and_back_is_the_same_bit_for_bit(form: str) -> None:
    official = load_file(golden.TINY)
    back = checkpoint.to_official(golden.loaded(form))
    heads = {"vqa_classifier", "nlvr2_classifier", "snli_classifier", "itm_score", "mlm_score", "rank_output"}
    not_heads = {name for name in official if name.split(".")[0] not in heads}
    assert {n for n in not_heads if not checkpoint.UNUSED.fullmatch(n)} <= set(back)
    for name, tensor in back.items():
        expected = official[name]
        if name == "token_type_embeddings.weight" and form != "nlvr2":
            expected = expected[:2]  # the file is also of two images
        assert torch.equal(tensor, expected), name


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_a_saved_checkpoint_is_an_official_one(tmp_path: Path, suffix: str) -> None:
    model, path = golden.loaded("nlvr2"), tmp_path / f"model.{suffix}"
    meter.save_official(model, path)
    content = load_file(path) if suffix == "safetensors" else torch.load(path)["state_dict"]
    assert content["vit_model.visual.class_embedding"].shape == (128,)
    other = golden.fresh("nlvr2")
    report = meter.load_official(other, path, log=lambda text: None)
    assert not (report.unused or report.fresh or report.resized)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_a_model_with_other_parts_has_no_official_layout(tmp_path: Path) -> None:
    vit = {**golden.options().vision.args, "init_values": 0.1}
    model = golden.fresh(vision={"model": "vit_tiny_patch16_224", "args": vit})
    with pytest.raises(UserError, match=r"has no vit_model\.patch_embed\.proj\.bias, .*ls1"):
        meter.save_official(model, tmp_path / "model.ckpt")


# --- resizing, and heads that are not in the file ---


@pytest.mark.parametrize("grids", ["14to18", "18to24", "18to14", "3to5"])
def test_position_embeddings_are_resized_as_published(grids: str) -> None:
    data = golden.arrays("meter_positions.npz")
    expected = data[f"meter_out_{grids}"]
    found = checkpoint.resized_positions(data[f"meter_in_{grids}"], len(expected) - 1)
    assert_close(found, expected, rtol=0.0, atol=1e-6)


def test_another_resolution_is_said_and_nothing_else_changes() -> None:
    lines: list[str] = []
    model = golden.fresh(image_size=80)
    report = meter.load_official(model, golden.TINY, lines.append)
    assert report.resized[0] == "vit_model.pos_embed: (10, 128) to (1, 26, 128)"
    assert lines[0] == f"resized {report.resized[0]}"
    official = load_file(golden.TINY)
    assert torch.equal(model.vit_model.pos_embed[0, 0], official["vit_model.visual.positional_embedding"][0])
    assert torch.equal(model.vit_model.norm.weight, official["vit_model.visual.ln_post.weight"])


def without(*parts: str) -> dict[str, Tensor]:
    """The official weights without some heads, and with two token types."""
    state = {name: value for name, value in load_file(golden.TINY).items() if name.split(".")[0] not in parts}
    return {**state, "token_type_embeddings.weight": state["token_type_embeddings.weight"][:2].clone()}


def saved(folder: Path, state: dict[str, Tensor]) -> Path:
    path = folder / "official.safetensors"
    save_file(state, path)
    return path


def test_a_second_image_starts_with_the_token_type_of_the_first(tmp_path: Path) -> None:
    path = saved(tmp_path, without("nlvr2_classifier"))
    model, lines = golden.fresh("nlvr2"), []
    before = model.nlvr2_classifier[0].weight.clone()
    report = meter.load_official(model, path, lines.append)
    types = model.token_type_embeddings.weight
    assert torch.equal(types[2], types[1]) and not torch.equal(types[1], types[0])
    assert torch.equal(types[:2], load_file(path)["token_type_embeddings.weight"])
    assert set(report.fresh) == {n for n in model.state_dict() if n.startswith("nlvr2_classifier")}
    assert torch.equal(model.nlvr2_classifier[0].weight, before)
    assert any("starting afresh: nlvr2_classifier.*.weight (3)" in line for line in lines)
    assert any("vqa_classifier" in line and "not used" in line for line in lines)


def test_ranking_starts_as_matching(tmp_path: Path) -> None:
    model = golden.fresh("retrieval")
    assert torch.equal(model.rank_output.weight, model.itm_score.fc.weight[1:])
    report = meter.load_official(model, saved(tmp_path, without("rank_output")), log=lambda text: None)
    assert report.fresh == []
    expected = load_file(golden.TINY)
    assert torch.equal(model.rank_output.weight, expected["itm_score.fc.weight"][1:])
    assert torch.equal(model.rank_output.bias, expected["itm_score.fc.bias"][1:])
    assert_close(model(**golden.inputs()), OUT["out_itm_logits"][:, 1:], **CLOSE)


def test_a_head_with_other_classes_starts_afresh() -> None:
    model = meter.build(golden.options(), Form("vqa", 7))
    lines: list[str] = []
    report = meter.load_official(model, golden.TINY, lines.append)
    assert report.fresh == ["vqa_classifier.3.weight", "vqa_classifier.3.bias"]
    assert any("its shape is (11, 128) in" in line and "(7, 128) in the model" in line for line in lines)


# --- what is wrong with a file ---


def refused(model: meter.Meter, path: Path) -> str:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as error:
        meter.load_official(model, path, log=lambda text: None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert error.value.where == str(path)
    return str(error.value)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    state = without()
    del state["cross_modal_text_transform.bias"], state["vit_model.visual.ln_post.weight"]
    message = refused(golden.fresh(), saved(tmp_path, state))
    assert (
        "missing: cross_modal_text_transform.bias" in message and "missing: vit_model.norm.weight" in message
    )


def test_other_sizes_are_named() -> None:
    message = refused(golden.fresh(hidden_size=32), golden.TINY)
    assert (
        "shape of cross_modal_text_transform.weight: (64, 96) in the file, (32, 96) in the model" in message
    )
    assert "more" in message and "recipe section" in message


def test_a_grid_that_is_not_square_is_not_resized(tmp_path: Path) -> None:
    state = without()
    state["vit_model.visual.positional_embedding"] = torch.zeros(9, 128)
    assert "shape of vit_model.pos_embed: (1, 9, 128) in the file" in refused(
        golden.fresh(), saved(tmp_path, state)
    )


@pytest.mark.parametrize(
    ("official", "ours", "shape"),
    [
        ("vit_model.visual.positional_embedding", "vit_model.pos_embed", (1, 128)),
        ("token_type_embeddings.weight", "token_type_embeddings.weight", ()),
    ],
)
def test_odd_shapes_are_named(official: str, ours: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    message = refused(golden.fresh(), saved(tmp_path, {**without(), official: torch.zeros(shape)}))
    assert f"shape of {ours}: " in message


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    message = refused(golden.fresh(), saved(tmp_path, {"encoder.weight": torch.zeros(2)}))
    assert "not a checkpoint of this backbone" in message and "encoder.weight" in message

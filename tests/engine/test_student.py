"""Smaller models: some layers of a checkpoint's (``backbone.keep_layers``), or a lower resolution."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from smarttrim_cli import registry
from smarttrim_cli.engine.artifact import Bundle, load_model, save_model
from smarttrim_cli.engine.build import build, completed
from smarttrim_cli.engine.plan import plan
from smarttrim_cli.errors import UserError
from smarttrim_cli.recipe import Recipe
from tests import tiny
from tests.engine.tiny_run import tiny_recipe

pytestmark = pytest.mark.usefixtures("settings")
_SIZES = "hidden_size: 16, intermediate_size: 32, num_attention_heads: 2"
BLIP = (
    "name: blip, tokenizer: train, max_text_length: 20, image_size: 32, merge_layer_from: 2, "
    f"vision: {{config: {{patch_size: 8, num_hidden_layers: 3, {_SIZES}}}}}, "
    f"text: {{config: {{max_position_embeddings: 30, num_hidden_layers: 4, {_SIZES}}}}}"
)
METER = (
    "backbone.vision.model=vit_base_patch16_clip_quickgelu_224",
    "backbone.vision.args.depth=4",
    "backbone.text.config.num_hidden_layers=3",
    "backbone.num_cross_layers=3",
)
FULL = {"meter": (*METER, "pruning=null"), "blip": (f"backbone={{{BLIP}}}", "pruning=null")}
KEEP = {
    "meter": "{vision: [0, 2], text: [1], cross: [0, 2]}",
    "blip": "{vision: [1, 2], text: [0, 2, 3]}",
}
DATA = "data: {name: scenes, image_size: 32, grid: 2, cell_size: 16, object_sizes: [9, 13], max_objects: 4, "
DATA += "num_images: {train: 16, calibration: 8, val: 8, test: 8}}"
NUMBERED = re.compile(
    r"(vit_model\.blocks|text_transformer\.encoder\.layer|cross_modal_(?:text|image)_layers|vision_model\.encoder"
    r"\.layers|text_(?:encoder|decoder\.bert)\.encoder\.layer)\.(\d+)(\..*)"
)


def quiet(text: str) -> None:
    """Takes messages and drops them."""


def full_model(folder: Path, backbone: str, *overrides: str) -> Bundle:
    """A lively model with its weights in ``folder/full``."""
    bundle = build(tiny_recipe(folder, *FULL[backbone], *overrides), quiet)
    tiny.enliven(bundle.model.backbone)
    (folder / "full").mkdir()
    save_model(folder / "full", bundle)
    return bundle


def recipe_of(folder: Path, backbone: str, keep: str, *overrides: str, start: str | None = None) -> Recipe:
    """A recipe for a smaller one."""
    checkpoint = start or str(folder / "full")
    section = f"name: {backbone}, checkpoint: '{checkpoint}', keep_layers: {keep}"
    return tiny_recipe(folder, f"backbone={{{section}}}", "pruning=null", *overrides)


def assert_layers(student: Bundle, full: Bundle, kept: dict[str, list[int]]) -> None:
    """Every weight is that of the layer kept, by names written here; all else is as it was."""
    own, its = (bundle.model.backbone.state_dict() for bundle in (student, full))
    seen: dict[str, set[int]] = {}
    for name, value in own.items():
        found = NUMBERED.fullmatch(name)
        source = name
        if found is not None:
            seen.setdefault(found[1], set()).add(int(found[2]))
            source = f"{found[1]}.{kept[found[1]][int(found[2])]}{found[3]}"
        assert torch.equal(value, its[source]), name
    assert {path: len(numbers) for path, numbers in seen.items()} == {p: len(n) for p, n in kept.items()}
    assert {name for name in its if not NUMBERED.fullmatch(name)} == {
        name for name in own if not NUMBERED.fullmatch(name)
    }


OF_METER = {
    "vit_model.blocks": [0, 2],
    "text_transformer.encoder.layer": [1],
    "cross_modal_text_layers": [0, 2],
    "cross_modal_image_layers": [0, 2],
}
OF_BLIP = {
    "vision_model.encoder.layers": [1, 2],
    "text_encoder.encoder.layer": [0, 2, 3],
    "text_decoder.bert.encoder.layer": [0, 2, 3],
}


@pytest.mark.parametrize(("backbone", "kept"), [("meter", OF_METER), ("blip", OF_BLIP)])
def test_every_layer_is_the_one_that_was_kept(
    backbone: str, kept: dict[str, list[int]], tmp_path: Path
) -> None:
    full = full_model(tmp_path, backbone)
    recipe = recipe_of(tmp_path, backbone, KEEP[backbone])
    student = build(recipe, quiet)
    assert_layers(student, full, kept)
    depth = student.model.architecture.depth("vision")
    assert depth == (4 if backbone == "meter" else 2)
    official = tmp_path / "official.pth"
    registry.load("backbones", backbone).save_official(full.model.backbone, official)
    section = {**full.config["backbone"], "tokenizer": "train", "checkpoint": str(official)}
    section["keep_layers"] = recipe.backbone.options_dict()["keep_layers"]
    again = build(tiny_recipe(tmp_path, f"backbone={section}", "pruning=null"), quiet)
    assert_layers(again, full, kept)


@pytest.mark.parametrize("backbone", ["meter", "blip"])
def test_all_layers_are_the_model_itself(backbone: str, tmp_path: Path) -> None:
    full = full_model(tmp_path, backbone)
    every = {"meter": "{vision: [0, 1, 2, 3], cross: [0, 1, 2]}", "blip": "{vision: [0, 1, 2]}"}[backbone]
    student = build(recipe_of(tmp_path, backbone, every), quiet)
    inputs = tiny.ragged_inputs(full.model.backbone)
    with torch.no_grad():
        one, two = (bundle.model.eval()(inputs, "full").output for bundle in (full, student))
    assert torch.equal(one, two)


@pytest.mark.parametrize("backbone", ["meter", "blip"])
def test_a_saved_student_needs_no_checkpoint(backbone: str, tmp_path: Path) -> None:
    full_model(tmp_path, backbone)
    recipe = recipe_of(tmp_path, backbone, KEEP[backbone])
    student = build(recipe, quiet)
    stored = completed(recipe, student)
    assert_layers(build(stored, quiet), full_model_of(tmp_path), OF_METER if backbone == "meter" else OF_BLIP)
    predicted = plan(recipe)["full_gmacs"]
    folder = tmp_path / "student"
    folder.mkdir()
    save_model(folder, student)
    shutil.rmtree(tmp_path / "full")
    loaded = load_model(folder, log=quiet)
    assert loaded.config["backbone"].get("keep_layers") is None
    own, its = (bundle.model.backbone.state_dict() for bundle in (student, loaded))
    assert own.keys() == its.keys() and all(torch.equal(own[name], its[name]) for name in own)
    section = f"name: {backbone}, checkpoint: '{folder}'"
    plain = plan(tiny_recipe(tmp_path, f"backbone={{{section}}}", "pruning=null"))
    assert plain["full_gmacs"] == predicted


def full_model_of(folder: Path) -> Bundle:
    """The model saved before."""
    return load_model(folder / "full", log=quiet)


def test_layers_that_merge_two_images_go_on_merging(tmp_path: Path) -> None:
    full = full_model(tmp_path, "blip", f"task={{name: nlvr2, {DATA}}}")
    student = build(recipe_of(tmp_path, "blip", "{text: [1, 3]}", f"task={{name: nlvr2, {DATA}}}"), quiet)
    assert student.config["backbone"]["merge_layer_from"] == 1
    kept = {"vision_model.encoder.layers": [0, 1, 2], "text_encoder.encoder.layer": [1, 3]}
    assert_layers(student, full, kept)


def test_captioning_has_a_decoder_alone(tmp_path: Path) -> None:
    task = f"task={{name: captioning, max_length: 8, min_length: 2, {DATA}}}"
    full = full_model(tmp_path, "blip", task)
    student = build(recipe_of(tmp_path, "blip", "{text: [1, 3]}", task), quiet)
    kept = {"vision_model.encoder.layers": [0, 1, 2], "text_decoder.bert.encoder.layer": [1, 3]}
    assert_layers(student, full, kept)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ("{vision: [0, 4]}", "no layer 4: the checkpoint's model has 4"),
        ("{cross: [3]}", "no layer 3: the checkpoint's model has 3"),
        ("{vision: [2, 0]}", r"in their order, each once: \[0, 2\]"),
        ("{vision: [1, 1]}", "each once"),
        ("{text: []}", "text"),
        ("{decoder: [0]}", "decoder"),
    ],
)
def test_layers_that_are_not_there(keep: str, message: str, tmp_path: Path) -> None:
    full_model(tmp_path, "meter")
    with pytest.raises(UserError, match=message) as caught:
        build(recipe_of(tmp_path, "meter", keep), quiet)
    assert "keep_layers" in str(caught.value)


def test_layers_of_no_checkpoint(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, "backbone.keep_layers={vision: [0]}", "pruning=null")
    for use in (lambda: build(recipe, quiet), lambda: plan(recipe)):
        with pytest.raises(UserError, match="but none is named"):
            use()


def test_a_backbone_without_layers_of_a_kind(tmp_path: Path) -> None:
    swin = "{model: swin_tiny_patch4_window7_224, args: {embed_dim: 16, depths: [1, 1], num_heads: [2, 2], "
    swin = f"backbone.vision={swin}window_size: 4}}}}"
    bundle = build(tiny_recipe(tmp_path, swin, "pruning=null"), quiet)
    (tmp_path / "full").mkdir()
    save_model(tmp_path / "full", bundle)
    with pytest.raises(UserError, match="no layers of this kind"):
        build(recipe_of(tmp_path, "meter", "{vision: [0]}"), quiet)


@pytest.mark.parametrize("backbone", ["meter", "blip"])
def test_a_lower_resolution(backbone: str, tmp_path: Path) -> None:
    full = full_model(tmp_path, backbone)
    section = f"name: {backbone}, checkpoint: '{tmp_path / 'full'}', image_size: 24"
    said: list[str] = []
    recipe = tiny_recipe(tmp_path, f"backbone={{{section}}}", "pruning=null")
    small = build(recipe, said.append)
    name = {"meter": "vit_model.pos_embed", "blip": "vision_model.embeddings.position_embedding"}[backbone]
    before, after = (bundle.model.backbone.state_dict()[name] for bundle in (full, small))
    image = before[0, 1:].T.reshape(1, -1, 4, 4)
    expected = F.interpolate(image, size=(3, 3), mode="bicubic", align_corners=False)[0].flatten(1).T
    assert torch.equal(after[0, :1], before[0, :1])
    torch.testing.assert_close(after[0, 1:], expected)
    assert any(name in line for line in said)
    assert small.processor.preprocess.size == 24 and small.model.backbone.token_counts(5)["vision"] == 10
    assert plan(recipe)["full_gmacs"] < plan(recipe_of(tmp_path, backbone, "null"))["full_gmacs"]
    folder = tmp_path / "small"
    folder.mkdir()
    save_model(folder, small)
    assert load_model(folder, log=quiet).processor.preprocess.size == 24
    stored: Any = completed(recipe, small)
    assert build(stored, quiet).processor.preprocess.size == 24

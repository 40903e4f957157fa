"""Where a run starts, through the whole chain: official files, Hugging Face folders, another task's model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BlipConfig, BlipForQuestionAnswering

from smarttrim_cli import registry
from smarttrim_cli.engine.artifact import load_model, save_model
from smarttrim_cli.engine.build import build
from smarttrim_cli.engine.starting import carried_over, start_named
from smarttrim_cli.errors import UserError
from tests import tiny
from tests.engine.tiny_run import tiny_recipe

pytestmark = pytest.mark.usefixtures("settings")
_SIZES = "hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 2"
BLIP = (
    "name: blip, tokenizer: train, max_text_length: 20, image_size: 32, "
    f"vision: {{config: {{patch_size: 8, {_SIZES}}}}}, "
    f"text: {{config: {{max_position_embeddings: 30, {_SIZES}}}}}"
)
SMALL = (
    "image_size: 32, grid: 3, cell_size: 10, object_sizes: [7, 9], max_objects: 6, "
    "num_images: {train: 16, calibration: 8, val: 8, test: 8}"
)


def quiet(text: str) -> None:
    """Takes messages and drops them."""


def weights(bundle: Any) -> dict[str, torch.Tensor]:
    return bundle.model.backbone.state_dict()


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("backbone", ["meter", "blip"])
def test_an_official_file(backbone: str, tmp_path: Path) -> None:
    clip = "backbone.vision.model=vit_base_patch16_clip_quickgelu_224"
    section = [clip] if backbone == "meter" else [f"backbone={{{BLIP}}}"]
    first = build(tiny_recipe(tmp_path, *section, "seed=1"), quiet)
    tiny.enliven(first.model.backbone)
    file = tmp_path / "official.pth"
    registry.load("backbones", backbone).save_official(first.model.backbone, file)
    second = build(tiny_recipe(tmp_path, *section, "seed=2", f"backbone.checkpoint={file}"), quiet)
    assert_equal(weights(first), weights(second))


def test_a_hugging_face_folder(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 80, "bos_token_id": 78, "sep_token_id": 2, "pad_token_id": 1}
    config = BlipConfig(
        text_config={**text, "max_position_embeddings": 30, "encoder_hidden_size": 16},
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
    )
    torch.manual_seed(0)
    host = BlipForQuestionAnswering(config)
    host.save_pretrained(tmp_path / "hf")
    start = f"backbone={{name: blip, tokenizer: train, max_text_length: 20, checkpoint: '{tmp_path / 'hf'}'}}"
    found = weights(build(tiny_recipe(tmp_path, start), quiet))
    own = host.state_dict()
    shared = [name for name in found if name in own]
    assert len(shared) > 60
    assert all(torch.equal(found[name], own[name]) for name in shared)
    with pytest.raises(UserError, match="image_text_hidden_size is 7 in the recipe"):
        build(tiny_recipe(tmp_path, start, "backbone.image_text_hidden_size=7"), quiet)


def test_length_of_texts_is_the_recipes(tmp_path: Path) -> None:
    folder = tmp_path / "first"
    folder.mkdir()
    save_model(folder, build(tiny_recipe(tmp_path), quiet))
    for asked, length in (("", 20), (", max_text_length: 6", 6)):
        second = build(
            tiny_recipe(tmp_path, f"backbone={{name: meter, checkpoint: '{folder}'{asked}}}"), quiet
        )
        assert second.processor.max_text_length == second.config["backbone"]["max_text_length"] == length


@pytest.mark.parametrize("backbone", ["meter", "blip"])
def test_another_tasks_model_brings_all_but_its_head(backbone: str, tmp_path: Path) -> None:
    section = [] if backbone == "meter" else [f"backbone={{{BLIP}}}"]
    first = build(tiny_recipe(tmp_path, *section), quiet)
    folder = tmp_path / "vqa"
    folder.mkdir()
    save_model(folder, first)
    said: list[str] = []
    start = f"backbone={{name: {backbone}, checkpoint: '{folder}', tokenizer: train, max_text_length: 25}}"
    data = "{name: scenes, image_size: 32, grid: 3, cell_size: 10, object_sizes: [7, 9], max_objects: 6, "
    data += "num_images: {train: 16, calibration: 8, val: 8, test: 8}}"
    second = build(tiny_recipe(tmp_path, start, f"task={{name: nlvr2, data: {data}}}"), said.append)
    before, after = weights(first), weights(second)
    words = len(first.processor.tokenizer)
    assert len(second.processor.tokenizer) > words and second.processor.max_text_length == 25
    part_of = second.model.backbone.part_of
    for name, value in after.items():
        if part_of(name) == "head" or name not in before:
            continue
        old = before[name]
        if "word_embeddings" in name:
            assert torch.equal(value[:words], old[:words])
        elif "token_type" in name:  # a second image's type starts as the first one's
            assert torch.equal(value[: len(old)], old) and torch.equal(value[-1], old[-1])
        else:
            assert torch.equal(value, old), name
    assert any("new, from random values" in line for line in said)


class _Tables(nn.Module):
    """A backbone with a word table and a head, whose names say nothing."""

    def __init__(self, words: int, labels: int) -> None:
        super().__init__()
        self.wte, self.out = nn.Embedding(words, 4), nn.Linear(4, labels)


def test_heads_of_another_shape_start_afresh_and_any_table_grows() -> None:
    before, after, said = _Tables(5, 3), _Tables(7, 2), list[str]()
    found = carried_over(after, before.state_dict(), lambda name: name.startswith("out"), said.append)
    assert torch.equal(found["wte.weight"][:5], before.wte.weight) and len(found["wte.weight"]) == 7
    assert torch.equal(found["wte.weight"][5:], after.wte.weight[5:])
    assert torch.equal(found["out.weight"], after.out.weight) and found["out.bias"].shape == (2,)
    assert said == [
        "not used, being of the other task's head: out (2 tensors)",
        "new, from random values: out (2 tensors)",
    ]


def test_a_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    file.write_text("hello", encoding="utf-8")
    with pytest.raises(UserError, match="not a checkpoint"):
        build(tiny_recipe(tmp_path, f"backbone.checkpoint={file}"), quiet)


@pytest.mark.parametrize(("longest", "bounded"), [(30, False), (8, True)])
def test_captions_are_expected_to_be_as_long_as_those_of_the_data(
    longest: int, bounded: bool, tmp_path: Path
) -> None:
    task = f"task={{name: captioning, max_length: {longest}, min_length: 2, data: {{name: scenes, {SMALL}}}}}"
    bundle = build(tiny_recipe(tmp_path, f"backbone={{{BLIP}}}", task, "pruning.target_sparsity=null"), quiet)
    texts = bundle.task.written("train")  # type: ignore[attr-defined]
    read = bundle.processor.tokenizer(texts, truncation=True, max_length=20)["input_ids"]
    words = sum(len(ids) for ids in read) / len(texts)
    form = bundle.model.backbone.form
    assert form.new_tokens == pytest.approx(longest - form.prompt_tokens if bounded else words, abs=0.06)
    assert bundle.config["form"]["new_tokens"] == form.new_tokens
    save_model(tmp_path, bundle)
    assert load_model(tmp_path, log=quiet).model.backbone.form == form
    start = bundle.model.backbone.token_counts(form.text_tokens)
    assert start["decoder.row_calls"] == pytest.approx(3 * form.new_tokens)


@pytest.mark.parametrize("content", ["5", "null", '"model_type"', "[]"])
def test_a_configuration_that_is_no_object(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"config\.json: not the configuration"):
        start_named(str(tmp_path))


@pytest.mark.parametrize("name", ["model_base.pth", "blip_image_captioning_base"])
def test_a_checkpoint_that_is_not_there(tmp_path: Path, name: str) -> None:
    """It was asked for a model folder in place of an official file that had yet to be fetched."""
    with pytest.raises(UserError, match="no model there") as found:
        start_named(str(tmp_path / name))
    assert found.value.hint == "there is no such file or folder, and nothing is downloaded"
    with pytest.raises(UserError, match="no model there") as found:
        start_named(str(tmp_path))
    assert found.value.hint == "give a model folder or a run folder"

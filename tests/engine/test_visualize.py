"""The command: pictures of a tiny model with random weights."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from smarttrim_cli.data.scenes import read_truth
from smarttrim_cli.engine import visualize as visualize_module
from smarttrim_cli.engine.artifact import Bundle, load_model, save_model
from smarttrim_cli.engine.build import build
from smarttrim_cli.engine.figures.canvas import Canvas
from smarttrim_cli.engine.figures.collect import (
    model_view,
    picture_of_question,
)
from smarttrim_cli.engine.figures.data import Instance
from smarttrim_cli.engine.figures.trimming import draw_trimming
from smarttrim_cli.engine.runs import Run
from smarttrim_cli.engine.visualize import _distinct, visualize
from smarttrim_cli.errors import UserError
from smarttrim_cli.recipe import load_recipe
from tests.engine.test_figures import images_drawn, words_drawn
from tests.engine.tiny_run import Recorder

RECIPE = """\
output_dir: tiny
backbone:
  name: meter
  image_size: 48
  tokenizer: train
  vision: {model: vit_tiny_patch16_224, args: {patch_size: 12, embed_dim: 16, depth: 2, num_heads: 2}}
  text:
    config: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32,
             max_position_embeddings: 60, type_vocab_size: 1}
  hidden_size: 16
  num_attention_heads: 2
  intermediate_size: 32
  num_cross_layers: 1
task:
  name: vqa
  min_answer_count: 1
  data: {name: scenes, num_images: {train: 12, calibration: 2, val: 2, test: 4}}
pruning:
  target_sparsity: {token: {vision: 0.5, text: 0.3}, head: {vision: 0.3, text: 0.3, cross: 0.3}}
  token_trimmer: {name: cross_modal, hidden_dim: 8}
  head_trimmer: {name: global_head, hidden_dim: 8}
train: {max_steps: 2}
"""
METRICS = [
    {"step": 1, "loss": 3.0, "task": 2.0, "cost": 0.01, "kept/token.vision": 1.0, "target/token.vision": 0.9},
    {"step": 2, "loss": 2.5, "task": 1.5, "cost": 0.02, "kept/token.vision": 0.8, "target/token.vision": 0.7},
    {"step": 2, "eval": {"accuracy": 0.5, "accuracy_se": 0.1}},
]


def _save(folder: Path, text: str) -> Run:
    """A run of a recipe, untrained; its trimmers drop at random."""
    recipe_file = folder / "recipe.yaml"
    recipe_file.write_text(text, encoding="utf-8")
    bundle = build(load_recipe(str(recipe_file), []), lambda _: None)
    torch.manual_seed(0)
    for parameter in bundle.model.trimmers.parameters():
        torch.nn.init.normal_(parameter)
    run = Run(folder)
    run.model.mkdir()
    save_model(run.model, bundle)
    return run


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of scenes for this module."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def make_run(cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """Makes a run directory."""
    monkeypatch.setenv("SMARTTRIM_CACHE", str(cached))

    def make(text: str = RECIPE, metrics: bool = True) -> Run:
        folder = tmp_path / "tiny"
        folder.mkdir()
        run = _save(folder, text)
        if metrics:
            run.metrics.write_text("".join(json.dumps(line) + "\n" for line in METRICS), encoding="utf-8")
        return run

    return make


def test_everything_is_drawn(make_run: Callable[..., Run], made: list[Canvas]) -> None:
    run = make_run()
    pictures = visualize(str(run.path), num_instances=2)
    names = [path.name for path in pictures]
    assert all(path.parent == run.figures for path in pictures)
    assert sum(name.startswith("trimming_") for name in names) == 2
    assert sum(name.startswith("two_questions_") for name in names) == 1
    assert names[-4:] == ["macs_histogram.png", "heads.png", "training_curves.png", "index.html"]
    for path in pictures[:-1]:
        with Image.open(path) as picture:
            picture.load()
            assert picture.width == 1728
    page = pictures[-1].read_text(encoding="utf-8")
    assert not re.search(r"https?:|<script|<link|url\(|@import", page)
    embedded = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert [base64.b64decode(data) for data in embedded] == [path.read_bytes() for path in pictures[:-1]]
    assert not list(run.figures.glob(".*"))
    assert not any("means over its images" in words_drawn(canvas) for canvas in made)
    again = visualize(str(run.path), num_instances=2, out=run.path / "again")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in pictures]


def test_named_instances(make_run: Callable[..., Run], tmp_path: Path) -> None:
    run = make_run()
    bundle: Bundle = load_model(run.model)
    ids = [sample.id for sample in bundle.task.samples("test")]  # type: ignore[attr-defined]
    names = [path.name for path in visualize(str(run.path), instances=[3, 0], out=tmp_path / "o")]
    assert [name for name in names if name.startswith("trimming_")] == [
        f"trimming_{ids[3]}.png", f"trimming_{ids[0]}.png"
    ]  # fmt: skip


def test_retrieval_has_texts_and_no_answers(
    make_run: Callable[..., Run], made: list[Canvas], tmp_path: Path
) -> None:
    text = RECIPE.replace("name: vqa\n  min_answer_count: 1", "name: retrieval").replace("test: 4", "test: 2")
    run = make_run(text, metrics=False)
    pictures = visualize(str(run.path), num_instances=1)
    trimming, histogram = words_drawn(made[0]), words_drawn(made[1])
    assert "image with 10 texts, the first shown" in trimming
    assert not any(word in text for word in ("question type", "trimmed ") for text in (trimming, histogram))
    page = pictures[-1].read_text(encoding="utf-8")
    assert not any(word in page for word in ("answered", "two different questions"))


@pytest.mark.parametrize("similarity", [False, True])
def test_blocks_of_retrieval_may_differ_in_width(similarity: bool, make_run: Callable[..., Run]) -> None:
    """The last one of an image has the rest of the texts: it shares no batch with others."""
    text = RECIPE.replace("name: vqa\n  min_answer_count: 1", "name: retrieval\n  block_size: 7")
    run = make_run(text.replace("test: 4", "test: 2"), metrics=False)
    task: Any = load_model(run.model).task
    assert len(task.samples("test")) == 2
    names = [path.name for path in visualize(str(run.path), instances=[1, 2, 0], similarity=similarity)]
    shown = [name for name in names if name.startswith("trimming_")]
    assert len(shown) == 3 and ("similarity.png" in names) is similarity


NLVR2 = RECIPE.replace("name: vqa\n  min_answer_count: 1", "name: nlvr2")


def test_all_images_of_an_instance_are_drawn(
    make_run: Callable[..., Run], made: list[Canvas], tmp_path: Path
) -> None:
    pictures = visualize(str(make_run(NLVR2, metrics=False).path), num_instances=1)
    names = [path.name for path in pictures]
    assert names[1] == names[0].replace(".png", "_image2.png")
    assert [re.sub("_[^_]*$", "", name) for name in names[2:4]] == ["two_questions", "macs"]
    trimming, _, questions, histogram, heads = made[:5]
    assert "runs the head; means over its images or texts" in words_drawn(heads)
    layers = images_drawn(trimming) - 1
    assert images_drawn(questions) == 2 * 2 * (1 + layers)  # two statements about two images
    assert images_drawn(histogram) == 2 * 2 * 2  # the cheapest and the dearest: as it is, and what is kept
    for number in ("1", "2"):
        assert words_drawn(questions).count(f" image {number} ") == 2
        assert words_drawn(histogram).count(f"of the patches of image {number} kept at cross 1") == 2


def test_boxes_are_those_of_their_image(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Instance] = []

    def spy(path: Path, instance: Instance) -> Path:
        shown.append(instance)
        return draw_trimming(path, instance)

    monkeypatch.setattr("smarttrim_cli.engine.visualize.draw_trimming", spy)
    run = make_run(NLVR2, metrics=False)
    visualize(str(run.path), num_instances=6)
    task: Any = load_model(run.model).task
    truth, samples = read_truth(task.folder, "test"), task.samples("test")
    boxes = (truth.boxes, truth.second_boxes)
    assert len(shown) == 12 and any(one.boxes for one in shown)
    for one in shown:
        drawn = tuple((box.role, (box.x, box.y, box.width, box.height)) for box in one.boxes)
        sample = samples[int(one.name.removeprefix("instance "))]
        assert drawn == tuple(boxes[one.image_number - 1].get(sample.id, ()))


def test_instances_never_share_a_picture() -> None:
    """Ids that are alike once they are safe in file names, and one that is too long for any."""
    names = [_distinct(text) for text in ("a/b", "a.b", "a_b", "x" * 300, "x" * 301, 7, "ẞ" * 80)]
    assert len(set(names)) == len(names) and max(len(name.encode()) for name in names) < 100
    assert names[2] == "a_b" and names[5] == "7"


def test_own_image(make_run: Callable[..., Run], tmp_path: Path) -> None:
    run = make_run()
    file = tmp_path / "my photo.png"
    Image.fromarray(np.zeros((30, 50, 3), np.uint8)).save(file)
    picture, page = visualize(str(run.path), image=file, questions=["is it red?", "how many are there?"])
    assert re.fullmatch(r"two_questions_own_my_photo-[0-9a-f]+\.png", picture.name)
    assert page == picture.with_suffix(".html")


def test_own_images_replace_no_other(make_run: Callable[..., Run], tmp_path: Path) -> None:
    """Names that are alike once they are safe, names in two folders, and the longest that there can be."""
    run, pictures = make_run(), set()
    (tmp_path / "b").mkdir()
    files = [tmp_path / name for name in ("a b.png", "a_b.png", "b/a_b.png", "ẞ" * 80 + ".png")]
    for file in files:
        Image.fromarray(np.zeros((30, 50, 3), np.uint8)).save(file)
        pictures |= set(visualize(str(run.path), image=file, questions=["is it red?", "is it blue?"]))
    for question in ("is it blue?", "is it green?"):  # nor do other questions about one
        pictures |= set(visualize(str(run.path), image=files[0], questions=["is it red?", question]))
    assert len(pictures) == 2 * (len(files) + 1) and all(path.is_file() for path in pictures)


def test_without_trimmers_only_the_curves(make_run: Callable[..., Run]) -> None:
    text = re.sub(r"pruning:.*(?=train:)", "pruning: null\n", RECIPE, flags=re.DOTALL)
    run = make_run(text)
    pictures = visualize(str(run.path))
    assert [path.name for path in pictures] == ["training_curves.png", "index.html"]
    assert "no trimmers" in pictures[-1].read_text(encoding="utf-8")
    run.metrics.unlink()
    with pytest.raises(UserError, match="nothing to draw"):
        visualize(str(run.path))


def test_a_named_instance_whose_image_is_broken_is_refused(
    make_run: Callable[..., Run], tmp_path: Path
) -> None:
    run = make_run()
    task: Any = load_model(run.model).task
    sample = task.samples("test")[3]
    shutil.copytree(task.folder, tmp_path / "data")
    (file,) = (tmp_path / "data").rglob(sample.images[0].name)
    file.unlink()
    data = [f"task.data={{name: vqa_v2, data_dir: '{tmp_path / 'data'}'}}", "task.on_bad_sample=skip"]
    with pytest.raises(UserError, match="it cannot be shown: its image is broken") as caught:
        visualize(str(run.path), overrides=data, instances=[3])
    assert caught.value.where == f"--instance 3: sample {sample.id}, {file}"


def test_instances_named_where_nothing_is_dropped(make_run: Callable[..., Run], tmp_path: Path) -> None:
    reporter = Recorder()
    untrimmed = re.sub(r"pruning:.*(?=train:)", "pruning: null\n", RECIPE, flags=re.DOTALL)
    visualize(str(make_run(untrimmed).path), instances=[99999], reporter=reporter)
    assert reporter.warnings == ["the model has no trimmers, so nothing is shown of --instance"]


def test_without_token_trimmers_and_metrics(make_run: Callable[..., Run]) -> None:
    text = RECIPE.replace("token_trimmer: {name: cross_modal, hidden_dim: 8}", "token_trimmer: null")
    text = text.replace("token: {vision: 0.5, text: 0.3}, ", "")
    names = [path.name for path in visualize(str(make_run(text, metrics=False).path))]
    assert names == ["macs_histogram.png", "heads.png", "index.html"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"instances": [16]}, "no instance 16: split test has 16"),
        ({"questions": ["a?"]}, "needs a picture"),
        ({"image": Path("none.png"), "questions": ["a?"]}, "at least two questions, not 1"),
        ({"image": Path("none.png"), "questions": ["a?", "b?"]}, "missing"),
        ({"image": Path("none.png"), "questions": ["a?", " "]}, "a question is empty"),
        ({"image": Path("none.png"), "questions": ["a?", "b?", "a? "]}, r"given more than once: a\?"),
        ({"out": Path(__file__)}, "is a file, not a directory"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, object], message: str, make_run: Callable[..., Run]) -> None:
    run = make_run()
    with pytest.raises(UserError, match=message):
        visualize(str(run.path), **arguments)  # type: ignore[arg-type]
    assert not run.figures.exists()


def test_an_instance_shows_the_decisions_of_masked_mode(make_run: Callable[..., Run]) -> None:
    bundle = load_model(make_run().model)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48, 3)).astype(np.uint8)
    image = Image.fromarray(pixels)
    shown = picture_of_question(bundle, image, "is there a red circle?", "x")
    inputs = bundle.processor([image], ["is there a red circle?"])
    keep = bundle.model(inputs, "masked").decisions.keep
    assert shown.words == ["is", "there", "a", "red", "circle", "?", "[end]"]
    assert [layer.label for layer in shown.patches] == ["vision 1", "vision 2", "cross 1"]
    assert [layer.label for layer in shown.word_layers] == ["text 1", "cross 1"]
    for index, layer in enumerate(shown.patches):
        assert layer.keep.shape == (4, 4)
        assert layer.keep.flatten().tolist() == keep[f"vision.{index}.token"][0, 1:].tolist()
    for index, layer in enumerate(shown.word_layers):
        assert layer.keep.tolist() == keep[f"text.{index}.token"][0, 1:].tolist()
    assert 0 < shown.patches[0].share < 1
    assert 0 < shown.word_layers[0].share < 1


def test_a_text_that_the_model_reads_in_part(make_run: Callable[..., Run]) -> None:
    bundle = load_model(make_run().model)
    image = Image.new("RGB", (48, 48))
    text = "is there a red circle?"
    for length, cut in ((8, False), (7, True)):
        bundle.processor = replace(bundle.processor, max_text_length=length)
        shown = picture_of_question(bundle, image, text, "x")
        assert shown.cut == cut and len(shown.words) == length - 1


def test_the_view_is_what_the_model_sees(make_run: Callable[..., Run]) -> None:
    processor = load_model(make_run().model).processor
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48, 3)).astype(np.uint8)
    view = model_view(processor.preprocess(Image.fromarray(pixels)), processor.preprocess)
    assert (view == pixels).all()


def test_a_run_that_takes_no_pictures_is_said_before_the_work(
    make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    run.figures.write_text("mine", encoding="utf-8")
    monkeypatch.setattr(visualize_module, "load_model", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(UserError, match="is a file, not a directory") as caught:
        visualize(str(run.path))
    assert caught.value.where == f"pictures in {run.figures}"

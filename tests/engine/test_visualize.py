"""The pictures of a tiny model with random weights, and what they are drawn from."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from smarttrim_cli.data.scenes import read_truth
from smarttrim_cli.engine.artifact import Bundle, load_model, save_model
from smarttrim_cli.engine.build import build
from smarttrim_cli.engine.figures.canvas import Canvas, Span, line_height, style
from smarttrim_cli.engine.figures.collect import (
    Seen,
    choose,
    model_view,
    most_different,
    picture_of_question,
    questions_by_image,
    spread,
)
from smarttrim_cli.engine.figures.curves import draw_curves
from smarttrim_cli.engine.figures.data import Answer, Instance, LayerMask, format_macs, format_reduction
from smarttrim_cli.engine.figures.heads import HeadTable, draw_heads
from smarttrim_cli.engine.figures.histogram import draw_histogram
from smarttrim_cli.engine.figures.page import Album
from smarttrim_cli.engine.figures.trimming import draw_trimming, fade, merged
from smarttrim_cli.engine.runs import Run
from smarttrim_cli.engine.visualize import _distinct, visualize
from smarttrim_cli.errors import UserError
from smarttrim_cli.recipe import load_recipe
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


def _instance(layers: int, side: int = 6) -> Instance:
    rng = np.random.default_rng(0)
    view = rng.integers(0, 256, (48, 48, 3)).astype(np.uint8)
    patches = [LayerMask("vision", 1 + i, rng.random((side, side)) < 0.5) for i in range(layers)]
    words = ["is", "it", "$5_{x}", "?"]
    kept = [np.ones(4, bool), np.ones(4, bool), np.array([True, False, True, False])]
    text = [LayerMask("text", 1, kept[0]), LayerMask("text", 2, kept[1]), LayerMask("cross", 1, kept[2])]
    return Instance(
        "instance 0", "is it $5_{x}?", "count", view, view, patches, words, text,
        Answer("yes", 1.0), Answer("no", 0.0), "yes", 2e6, 5e6,
    )  # fmt: skip


def _images(axes_owner: Canvas) -> int:
    return sum(len(axes.images) for axes in axes_owner.figure.axes)


# --- pixels and plain data ---


def test_fade_keeps_kept_patches_to_the_last_bit() -> None:
    view = np.random.default_rng(0).integers(0, 256, (48, 48, 3)).astype(np.uint8)
    keep = np.random.default_rng(1).random((4, 4)) < 0.5
    faded = fade(view, keep)
    for row in range(4):
        for column in range(4):
            block = np.s_[12 * row : 12 * row + 12, 12 * column : 12 * column + 12]
            if keep[row, column]:
                assert (faded[block] == view[block]).all()
            else:
                assert faded[block].min() >= 200  # pale
                assert (faded[block] == faded[block][..., :1]).all()  # grey


def test_fade_of_sizes_that_the_grid_does_not_divide() -> None:
    faded = fade(np.zeros((7, 7, 3), np.uint8), np.array([[True, False], [False, True]]))
    assert (faded[:4, :4] == 0).all()
    assert (faded[4:, 4:] == 0).all()
    assert (faded[:4, 4:] > 0).all()


def test_layers_that_keep_the_same_are_merged() -> None:
    labels = [label for label, _ in merged(_instance(1).word_layers)]
    assert labels == ["text 1–2", "cross 1"]
    places = (("text", 1), ("text", 2), ("cross", 1))
    same = [LayerMask(part, number, np.ones(2, bool)) for part, number in places]
    assert [label for label, _ in merged(same)] == ["text 1 – cross 1"]


def test_numbers_in_words() -> None:
    assert [format_macs(value) for value in (7.4812e6, 88.12e9, 2.5e3)] == ["7.48 M", "88.1 G", "2.5 k"]
    assert [format_macs(value) for value in (9.994e8, 9.996e8, 999.7e3)] == ["999 M", "1 G", "1 M"]
    assert format_reduction(2.0) == "2.00× fewer MACs"
    assert format_reduction(0.8) == "1.25× more MACs"


# --- the choice of instances ---


def _seen(index: int, kind: str, score: float, kept: str = "1111") -> Seen:
    mask = np.array([True] + [letter == "1" for letter in kept])
    record = {"id": index, "type": kind, "score": score}
    return Seen(
        index, record, {"vision.0.token": np.ones((1, 5), bool), "vision.1.token": mask[None]}, 1.0, 2.0
    )


def test_choose_is_even_over_types_and_correct_first() -> None:
    given = [("b", 0.0), ("a", 0.0), ("a", 1.0), ("b", 1.0), ("a", 1.0)]
    seen = [_seen(index, kind, score) for index, (kind, score) in enumerate(given)]
    assert [one.index for one in choose(seen, 4)] == [2, 3, 4, 0]


def test_the_pair_that_differs_most_among_correct_ones() -> None:
    seen = [
        _seen(0, "a", 1.0, "1110"), _seen(1, "a", 1.0, "1100"),
        _seen(2, "a", 1.0, "1100"), _seen(3, "a", 1.0, "0011"),
        _seen(4, "a", 1.0, "1000"), _seen(5, "a", 0.0, "0001"),
    ]  # fmt: skip
    pair = most_different(seen, [[0, 1], [2, 3], [4, 5]])
    assert pair is not None
    assert [one.index for one in pair] == [2, 3]
    assert most_different(seen[:1], [[0, 1]]) is None
    nothing_left = [_seen(6, "a", 1.0, "0000"), _seen(7, "a", 1.0, "0000")]
    pair = most_different([*nothing_left, *seen[:2]], [[6, 7], [0, 1]])
    assert pair is not None
    assert [one.index for one in pair] == [0, 1]


def test_questions_by_image_wants_different_words() -> None:
    class Sample:
        def __init__(self, image: str, text: str) -> None:
            self.images, self.text = (image,), text

    samples = [Sample("x", "a"), Sample("y", "a"), Sample("x", "a"), Sample("y", "b")]
    assert questions_by_image(samples) == {"y": [1, 3]}


def test_spread() -> None:
    assert spread(range(10), 3) == [0, 3, 6]
    assert spread(range(2), 3) == [0, 1]


# --- drawing ---


def test_text_wraps_within_its_width() -> None:
    canvas = Canvas()
    words = ["word"] * 40 + ["x" * 400]
    y = canvas.spans(1.0, 1.0, [Span(word) for word in words], 3.0, 10)
    right = max(canvas.measure(text.get_text(), 10) + text.get_position()[0] for text in canvas.figure.texts)
    assert right <= 4.0 + 1e-6
    lines = {text.get_position()[1] for text in canvas.figure.texts}
    assert y == pytest.approx(1.0 + len(lines) * line_height(10))


def test_tied_spans_stay_together() -> None:
    canvas = Canvas()
    canvas.spans(0.0, 0.0, [Span("m" * 20), Span("label", tied=True), Span("n" * 20)], 3.2, 10)
    first, label, answer = (text.get_position() for text in canvas.figure.texts)
    assert label[1] == answer[1] < first[1]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Canvas]:
    """The canvases that were saved."""
    canvases: list[Canvas] = []
    save = Canvas.save

    def spy(self: Canvas, path: Path, height: float) -> Path:
        canvases.append(self)
        return save(self, path, height)

    monkeypatch.setattr(Canvas, "save", spy)
    return canvases


@pytest.mark.parametrize(("layers", "rows"), [(4, 1), (6, 1), (8, 2), (18, 3)])
def test_trimming_has_a_panel_per_layer(layers: int, rows: int, made: list[Canvas], tmp_path: Path) -> None:
    path = draw_trimming(tmp_path / "t.png", _instance(layers))
    assert _images(made[0]) == 1 + layers
    panels = made[0].figure.axes[1:]
    assert len({round(axes.get_position().y0, 4) for axes in panels}) == rows
    boxes = [axes.get_position() for axes in made[0].figure.axes]
    assert not any(a is not b and a.overlaps(b) for a in boxes for b in boxes)
    assert all(0 < box.x0 < box.x1 < 1 and 0 < box.y0 < box.y1 < 1 for box in boxes)
    with Image.open(path) as picture:
        assert picture.width == 1728
        assert 500 < picture.height < 2000


def _words_drawn(canvas: Canvas) -> str:
    return " ".join(text.get_text() for text in canvas.figure.texts)


def test_what_was_cut_off_has_a_mark(made: list[Canvas], tmp_path: Path) -> None:
    for cut in (True, False):
        draw_trimming(tmp_path / "t.png", replace(_instance(4), cut=cut))
        assert ("$5_{x} … ?" in _words_drawn(made[-1])) == cut


def test_an_empty_answer_is_said_and_none_is_left_out(made: list[Canvas], tmp_path: Path) -> None:
    """A caption may be empty; a block of retrieval has no answer at all."""
    draw_trimming(tmp_path / "t.png", replace(_instance(4), trimmed=Answer("", 0.0)))
    assert "trimmed (nothing) ✗ full no" in _words_drawn(made[-1])
    nothing = replace(_instance(4), trimmed=Answer(""), full=Answer(""), reference=None, texts=3)
    draw_trimming(tmp_path / "t.png", nothing)
    drawn = _words_drawn(made[-1])
    assert "trimmed" not in drawn and "image with 3 texts, the first shown" in drawn


def test_struck_words_have_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    struck: list[str] = []
    spans = Canvas.spans

    def spy(self: Canvas, x: float, y: float, pieces: list[Span], width: float, size: float = 10) -> float:
        struck.extend(piece.text for piece in pieces if piece.struck)
        return spans(self, x, y, pieces, width, size)

    monkeypatch.setattr(Canvas, "spans", spy)
    draw_trimming(tmp_path / "t.png", _instance(4))
    assert struck == ["it", "?"]


def test_curves_without_trimmers_or_scores(tmp_path: Path) -> None:
    path = draw_curves(tmp_path / "c.png", "run", [{"step": 1, "loss": 1.0, "grounding": 0.0}], "accuracy")
    assert Image.open(path).width == 1728


def test_scores_without_an_error_or_a_number(tmp_path: Path) -> None:
    """Of a single instance, and of a model that has diverged."""
    scores = [{"accuracy": 1.0, "accuracy_se": None}, {"accuracy": None}]
    records = [{"step": 1, "loss": 1.0}, *({"step": 1, "eval": score} for score in scores)]
    assert draw_curves(tmp_path / "c.png", "run", records, "accuracy").exists()


def test_curves_of_an_edited_log(tmp_path: Path) -> None:
    records = [
        {"step": 1, "loss": 1.0, "grounding": None, "kept/x": 0.5, "kept/a.b.c": 0.5},
        {"step": 1, "eval": {"accuracy": "x"}},
        {"step": 2, "eval": {"accuracy": 0.5, "accuracy_se": "x"}},
    ]
    assert draw_curves(tmp_path / "c.png", "run", records, "accuracy").exists()


@pytest.mark.parametrize(
    ("steps", "markers", "key"),
    [([4], ["o", "o", "s"], "dot: kept"), ([2, 4], ["None"] * 3, "solid: kept")],
)
def test_what_was_logged_once_is_a_dot_beside_a_square(
    steps: list[int], markers: list[str], key: str, made: list[Canvas], tmp_path: Path
) -> None:
    group = "token.vision"
    records = [{"step": step, "loss": 1.0, f"kept/{group}": 0.5, f"target/{group}": 0.6} for step in steps]
    draw_curves(tmp_path / "c.png", "run", records, "accuracy")
    lines = [line for axes in made[0].figure.axes for line in axes.get_lines()]
    assert [str(line.get_marker()) for line in lines] == markers
    assert any(key in text.get_text() for text in made[0].figure.texts)


@pytest.mark.parametrize("steps", [[4], [2, 4]])
def test_scores_show_their_errors(steps: list[int], made: list[Canvas], tmp_path: Path) -> None:
    """A band between steps, a bar at a single one."""
    records = [{"step": step, "eval": {"accuracy": 0.5, "accuracy_se": 0.1}} for step in steps]
    draw_curves(tmp_path / "c.png", "run", records, "accuracy")
    (axes,) = made[0].figure.axes
    (error,) = (each.get_datalim(axes.transData) for each in axes.collections)
    assert (error.y0, error.y1) == pytest.approx((0.4, 0.6))
    assert bool(axes.containers) == (len(steps) == 1)


@pytest.mark.parametrize(
    ("term", "note"),
    [({"cost": 0.1}, "terms unweighted, log scale"), ({"cost": 1.0}, "terms unweighted"), ({}, "")],
)
def test_losses_say_that_terms_are_unweighted(
    term: dict[str, float], note: str, made: list[Canvas], tmp_path: Path
) -> None:
    draw_curves(tmp_path / "c.png", "run", [{"step": 1, "loss": 3.0, "task": 1.0, **term}], "accuracy")
    assert made[0].figure.axes[0].get_ylabel() == note


def test_a_loss_of_0_has_no_place_on_a_logarithmic_axis(made: list[Canvas], tmp_path: Path) -> None:
    records = [{"step": step, "loss": loss} for step, loss in ((1, 100.0), (2, 0.0), (3, 1.0))]
    draw_curves(tmp_path / "c.png", "run", records, "accuracy")
    axes = made[0].figure.axes[0]
    places = axes.transData.transform(axes.get_lines()[0].get_xydata())
    assert np.isfinite(places[:, 1]).tolist() == [True, False, True]


def test_heads_of_many_sizes(tmp_path: Path) -> None:
    tables = [HeadTable("a", ["cross 1"], np.ones((1, 24))), HeadTable("b", ["vision 1"], np.zeros((1, 2)))]
    assert Image.open(draw_heads(tmp_path / "h.png", tables, 3)).width == 1728


@pytest.mark.parametrize(
    ("reductions", "labels"),
    [((1.9, 2.4), ["1.9×", "2.0×", "2.1×", "2.2×", "2.3×", "2.4×"]), ((1.0, 3.99), ["1.0×", "1.5×"])],
)
def test_ticks_have_the_same_number_of_digits(
    reductions: tuple[float, ...], labels: list[str], made: list[Canvas], tmp_path: Path
) -> None:
    draw_histogram(tmp_path / "h.png", reductions, 2.0, [_instance(1)], [_instance(1)])
    shown = [label.get_text() for label in made[0].figure.axes[-1].get_xticklabels()]
    assert set(labels) <= set(shown) and len({len(text) for text in shown}) == 1


def test_style_leaves_the_callers_settings_alone() -> None:
    with matplotlib.rc_context({"font.size": 33.0}):
        before = dict(matplotlib.rcParams.items())
        with style():
            assert matplotlib.rcParams["font.size"] != 33.0
        assert dict(matplotlib.rcParams.items()) == before


def test_letters_that_the_font_lacks_are_no_warnings(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    with style():
        draw_curves(tmp_path / "c.png", "日本", [{"step": 1, "loss": 1.0}], "accuracy")
    assert not recwarn.list


def test_page_escapes_what_users_write(tmp_path: Path) -> None:
    picture = tmp_path / "p.png"
    Image.new("RGB", (2, 2)).save(picture)
    album = Album(tmp_path, "run <1>", ["a & b"])
    album.add(picture, "Sec", '<script>"')
    text = album.write("index.html")[-1].read_text(encoding="utf-8")
    assert "run &lt;1&gt;" in text
    assert "a &amp; b" in text
    assert "<script" not in text


# --- the command ---


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
    assert not any("means over its images" in _words_drawn(canvas) for canvas in made)
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
    trimming, histogram = _words_drawn(made[0]), _words_drawn(made[1])
    assert "image with 10 texts, the first shown" in trimming
    assert not any(word in text for word in ("question type", "trimmed ") for text in (trimming, histogram))
    page = pictures[-1].read_text(encoding="utf-8")
    assert not any(word in page for word in ("answered", "two different questions"))


NLVR2 = RECIPE.replace("name: vqa\n  min_answer_count: 1", "name: nlvr2")


def test_all_images_of_an_instance_are_drawn(
    make_run: Callable[..., Run], made: list[Canvas], tmp_path: Path
) -> None:
    pictures = visualize(str(make_run(NLVR2, metrics=False).path), num_instances=1)
    names = [path.name for path in pictures]
    assert names[1] == names[0].replace(".png", "_image2.png")
    assert [re.sub("_[^_]*$", "", name) for name in names[2:4]] == ["two_questions", "macs"]
    trimming, _, questions, histogram, heads = made[:5]
    assert "runs the head; means over its images or texts" in _words_drawn(heads)
    layers = _images(trimming) - 1
    assert _images(questions) == 2 * 2 * (1 + layers)  # two statements about two images
    assert _images(histogram) == 2 * 2 * 2  # the cheapest and the dearest: as it is, and what is kept
    for number in ("1", "2"):
        assert _words_drawn(questions).count(f" image {number} ") == 2
        assert _words_drawn(histogram).count(f"of the patches of image {number} kept at cross 1") == 2


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


def test_costs_of_models_that_write_say_at_which_length(made: list[Canvas], tmp_path: Path) -> None:
    for writes in (True, False):
        draw_histogram(tmp_path / "h.png", [1.9, 2.4], 2.0, [_instance(1)], [_instance(1)], writes)
        assert ("were it to write as many tokens" in _words_drawn(made[-1])) == writes


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
    assert len(pictures) == 2 * len(files) and all(path.is_file() for path in pictures)


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

"""Pictures: what is drawn of given data, by the canvas and by each figure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from smarttrim_cli.engine.figures.canvas import Canvas, Span, line_height, style
from smarttrim_cli.engine.figures.collect import (
    Seen,
    choose,
    most_different,
    questions_by_image,
    spread,
)
from smarttrim_cli.engine.figures.curves import draw_curves
from smarttrim_cli.engine.figures.data import Answer, Instance, LayerMask, format_macs, format_reduction
from smarttrim_cli.engine.figures.heads import HeadTable, draw_heads
from smarttrim_cli.engine.figures.histogram import draw_histogram
from smarttrim_cli.engine.figures.page import Album
from smarttrim_cli.engine.figures.trimming import draw_trimming, fade, merged


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


def images_drawn(axes_owner: Canvas) -> int:
    """How many images a canvas shows."""
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


@pytest.mark.parametrize(("layers", "rows"), [(4, 1), (6, 1), (8, 2), (18, 3)])
def test_trimming_has_a_panel_per_layer(layers: int, rows: int, made: list[Canvas], tmp_path: Path) -> None:
    path = draw_trimming(tmp_path / "t.png", _instance(layers))
    assert images_drawn(made[0]) == 1 + layers
    panels = made[0].figure.axes[1:]
    assert len({round(axes.get_position().y0, 4) for axes in panels}) == rows
    boxes = [axes.get_position() for axes in made[0].figure.axes]
    assert not any(a is not b and a.overlaps(b) for a in boxes for b in boxes)
    assert all(0 < box.x0 < box.x1 < 1 and 0 < box.y0 < box.y1 < 1 for box in boxes)
    with Image.open(path) as picture:
        assert picture.width == 1728
        assert 500 < picture.height < 2000


def words_drawn(canvas: Canvas) -> str:
    """All of its texts."""
    return " ".join(text.get_text() for text in canvas.figure.texts)


def test_what_was_cut_off_has_a_mark(made: list[Canvas], tmp_path: Path) -> None:
    for cut in (True, False):
        draw_trimming(tmp_path / "t.png", replace(_instance(4), cut=cut))
        assert ("$5_{x} … ?" in words_drawn(made[-1])) == cut


def test_an_empty_answer_is_said_and_none_is_left_out(made: list[Canvas], tmp_path: Path) -> None:
    """A caption may be empty; a block of retrieval has no answer at all."""
    draw_trimming(tmp_path / "t.png", replace(_instance(4), trimmed=Answer("", 0.0)))
    assert "trimmed (nothing) ✗ full no" in words_drawn(made[-1])
    nothing = replace(_instance(4), trimmed=Answer(""), full=Answer(""), reference=None, texts=3)
    draw_trimming(tmp_path / "t.png", nothing)
    drawn = words_drawn(made[-1])
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
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert {"1", "10", "100"} <= set(labels) and not any("$" in label for label in labels)


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


def test_costs_of_models_that_write_say_at_which_length(made: list[Canvas], tmp_path: Path) -> None:
    for writes in (True, False):
        draw_histogram(tmp_path / "h.png", [1.9, 2.4], 2.0, [_instance(1)], [_instance(1)], writes)
        assert ("were it to write as many tokens" in words_drawn(made[-1])) == writes

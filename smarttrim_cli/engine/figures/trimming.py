"""Kept patches and struck-out words, layer by layer: one instance, or one image under several questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from smarttrim_cli.engine.figures.canvas import (
    BLUE,
    GREEN,
    INK,
    MARGIN,
    MUTED,
    PALE,
    VERMILION,
    Canvas,
    Span,
    line_height,
)
from smarttrim_cli.engine.figures.data import (
    Answer,
    Instance,
    LayerMask,
    Mask,
    Pixels,
    format_macs,
    format_reduction,
)

_IMAGE, _GUTTER, _GAP, _MOST_COLUMNS = 2.3, 0.4, 0.14, 6
_FADED, _PAPER = 0.13, 250.0
_ROLE_COLORS = (BLUE, VERMILION)
_LEGEND = "Full colour: kept at this layer. Faded or struck out: dropped here or before. Percentages: kept."


def fade(view: Pixels, keep: Mask) -> Pixels:
    """An image whose dropped patches are pale grey; kept ones are unchanged to the last bit.

    Args:
        view: (H, W, 3) image on which the patches lie.
        keep: (g, g) keep mask, row by row.
    """
    height, width = view.shape[:2]
    rows = np.arange(height) * keep.shape[0] // height
    columns = np.arange(width) * keep.shape[1] // width
    kept_HW = keep[rows][:, columns]
    grey_HW = view.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    pale_HW = np.rint(_FADED * grey_HW + (1 - _FADED) * _PAPER).astype(np.uint8)
    return np.where(kept_HW[..., None], view, pale_HW[..., None]).astype(np.uint8)


def draw_trimming(path: Path, instance: Instance) -> Path:
    """One instance: question and answers, the image at every vision layer, the words at every text layer."""
    canvas = Canvas()
    y = _headline(canvas, MARGIN, instance, 17)
    y = _body(canvas, y + 0.22, instance)
    return canvas.save(path, _legend(canvas, y) + MARGIN)


def draw_questions(path: Path, questions: Sequence[Sequence[Instance]]) -> Path:
    """The same image under several questions, one above the other.

    Args:
        path: Where the picture goes.
        questions: Of each question what is shown of its image, or of its images.
    """
    canvas = Canvas()
    same = "The same images" if len(questions[0]) > 1 else "The same image"
    y = canvas.paragraph(
        MARGIN, MARGIN, f"{same}, different questions", canvas.right - MARGIN, 17, INK, "bold"
    )
    for images in questions:
        canvas.rule(y + 0.12)
        y = _headline(canvas, y + 0.3, images[0], 14)
        for image in images:
            y = _body(canvas, y + 0.18, image)
    return canvas.save(path, _legend(canvas, y) + MARGIN)


def answer_spans(instance: Instance) -> list[Span]:
    """The answers of trimmed and full model and the reference; right and wrong differ by sign and colour.

    Nothing where there are none: in retrieval only a whole split has a result.
    """

    def marked(label: str, answer: Answer) -> list[Span]:
        if answer.score is None:
            return [Span(label, MUTED, tied=True), *_words_of(answer.text)]
        sign, color = ("✓", GREEN) if answer.score >= 0.5 else ("✗", VERMILION)
        *words, last = _words_of(answer.text)
        last = replace(last, gap=0.3, tied=True)
        return [Span(label, MUTED, tied=True), *words, last, Span(sign, color, "bold", gap=2.2)]

    if not (instance.trimmed.text or instance.full.text or instance.reference):
        return []
    spans = [*marked("trimmed", instance.trimmed), *marked("full", instance.full)]
    if instance.reference is not None:
        spans += [Span("reference", MUTED, tied=True), *_words_of(instance.reference)]
    return spans


def _words_of(text: str) -> list[Span]:
    """An answer word by word, so that long ones wrap between words."""
    *words, last = text.split() or ["(nothing)"]
    return [*(Span(word, INK, "bold") for word in words), Span(last, INK, "bold", gap=2.2)]


def cost_text(instance: Instance) -> str:
    """MACs of the instance beside those of the full model."""
    trimmed, full = format_macs(instance.macs), format_macs(instance.full_macs)
    return f"{trimmed} MACs, full model {full}: {format_reduction(instance.reduction)}"


def merged(layers: Sequence[LayerMask]) -> list[tuple[str, LayerMask]]:
    """Layers that keep the same, taken together under a common label."""
    runs: list[list[LayerMask]] = []
    for layer in layers:
        if runs and np.array_equal(runs[-1][-1].keep, layer.keep):
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return [(_run_label(run[0], run[-1]), run[0]) for run in runs]


def _run_label(first: LayerMask, last: LayerMask) -> str:
    if first is last:
        return first.label
    if first.part == last.part:
        return f"{first.label}–{last.number}"
    return f"{first.label} – {last.label}"


def _headline(canvas: Canvas, y: float, instance: Instance, size: float) -> float:
    width = canvas.right - MARGIN
    if instance.question:
        y = canvas.paragraph(MARGIN, y, instance.question, width, size, INK, "bold") + 0.06
    if answers := answer_spans(instance):
        y = canvas.spans(MARGIN, y, answers, width, 11) + 0.02
    notes = [
        cost_text(instance),
        *([f"image with {instance.texts} texts, the first shown"] if instance.texts > 1 else []),
        *([f"question type: {instance.kind}"] if instance.kind else []),
        instance.name,
    ]
    return canvas.paragraph(MARGIN, y, "   ·   ".join(notes), width, 9, MUTED)


def _body(canvas: Canvas, y: float, instance: Instance) -> float:
    """Original image on the left; panels, then words, on the right."""
    below_image = _original(canvas, MARGIN, y, instance)
    x = MARGIN + _IMAGE + _GUTTER
    below = _panels(canvas, x, y, canvas.right - x, instance)
    below = _words(canvas, x, below + 0.16, canvas.right - x, instance)
    return max(below_image, below)


def _original(canvas: Canvas, x: float, y: float, instance: Instance) -> float:
    height, width = instance.image.shape[:2]
    scale = _IMAGE / max(height, width)
    canvas.text(x, y, instance.image_label, 9, MUTED)
    y += line_height(9) + 0.03
    axes = canvas.image(x, y, width * scale, height * scale, instance.image)
    y += height * scale + 0.09
    roles = list(dict.fromkeys(box.role for box in instance.boxes))
    colors = {role: _ROLE_COLORS[index % len(_ROLE_COLORS)] for index, role in enumerate(roles)}
    from matplotlib.patches import Rectangle

    for box in instance.boxes:
        for color, thickness in (("#ffffff", 3.6), (colors[box.role], 1.6)):
            corner = (box.x - 0.5, box.y - 0.5)
            frame = Rectangle(corner, box.width, box.height, fill=False, edgecolor=color, linewidth=thickness)
            axes.add_patch(frame)
    if not roles:
        return y
    key = [Span("asked about:", MUTED)] + [Span(f"□ {role}", colors[role], "bold", gap=0.9) for role in roles]
    return canvas.spans(x, y, key, _IMAGE, 8.5)


def _panels(canvas: Canvas, x: float, y: float, width: float, instance: Instance) -> float:
    """The image at every layer of the vision stream, in rows of equal length."""
    count = len(instance.patches)
    columns = max(math.ceil(count / math.ceil(count / _MOST_COLUMNS)), 4)
    side = (width - (columns - 1) * _GAP) / columns
    step = side + line_height(9) + 0.03 + _GAP
    for index, layer in enumerate(instance.patches):
        left, top = x + index % columns * (side + _GAP), y + index // columns * step
        canvas.text(left, top, layer.label, 9, MUTED)
        canvas.text(left + side, top, f"{layer.share:.0%}", 9, INK, "bold", "right")
        canvas.image(left, top + line_height(9) + 0.03, side, side, fade(instance.view, layer.keep))
    return y + math.ceil(count / columns) * step - _GAP


def _words(canvas: Canvas, x: float, y: float, width: float, instance: Instance) -> float:
    """The question at every layer of the text stream, dropped words struck out; "…" is where it was cut."""
    if not instance.word_layers:
        return y
    rows = merged(instance.word_layers)
    label_width = max(canvas.measure(label, 9) for label, _ in rows) + 0.16
    share_width = canvas.measure("100%", 9, "bold") + 0.2
    for label, layer in rows:
        canvas.text(x, y + 0.015, label, 9, MUTED)
        canvas.text(
            x + label_width + share_width - 0.2, y + 0.015, f"{layer.share:.0%}", 9, INK, "bold", "right"
        )
        words = [
            Span(word, INK if kept else PALE, struck=not kept)
            for word, kept in zip(instance.words, layer.keep, strict=True)
        ]
        if instance.cut:
            words.insert(-1, Span("…", MUTED))
        left = label_width + share_width
        y = canvas.spans(x + left, y, words, width - left, 10.5) + 0.03
    return y


def _legend(canvas: Canvas, y: float) -> float:
    return canvas.paragraph(MARGIN, y + 0.14, _LEGEND, canvas.right - MARGIN, 8.5, MUTED)

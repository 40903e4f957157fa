"""Writes scenes with hypotheses in the official layout of SNLI-VE (https://github.com/necla-ml/SNLI-VE).

``snli_ve_{split}.jsonl`` has a JSON object per line; the images of all splits are in ``flickr30k_images``.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from smarttrim_cli.data.scenes.describe import Facts, number_word
from smarttrim_cli.data.scenes.hypotheses import Hypothesis, sample_hypotheses
from smarttrim_cli.data.scenes.options import Options
from smarttrim_cli.data.scenes.output import FIRST_IMAGE_ID, MAX_SCENES, Truth, write_image, write_json_lines
from smarttrim_cli.data.scenes.world import Scene, sample_scene
from smarttrim_cli.errors import UserError

IMAGES = "flickr30k_images"
Example = tuple[Scene, list[Hypothesis]]


def make_example(options: Options, split: str, index: int) -> Example:
    """One image of a split with its hypotheses; depends on the options (seed) and its place alone."""
    rng = random.Random(f"{options.seed}/snli_ve/{split}/{index}")
    number, weights = options.snli_ve.hypotheses_per_image, options.snli_ve.weights.model_dump()
    for _ in range(MAX_SCENES):
        scene = sample_scene(rng, options.of_split(split))
        hypotheses = sample_hypotheses(Facts(scene), rng, number, weights)
        if hypotheses is not None:
            return scene, hypotheses
    raise UserError(
        f"these scenes do not allow {number} different hypotheses of the types in weights",
        where="snli_ve.hypotheses_per_image",
        hint="Ask for fewer hypotheses per image, or for scenes with more objects, colors or shapes.",
    )


def write(folder: Path, options: Options) -> dict[str, dict[str, int]]:
    """Write all splits; returns the numbers of images and hypotheses."""
    (folder / IMAGES).mkdir()
    return {split: _write_split(folder, options, split) for split in options.splits}


def _write_split(folder: Path, options: Options, split: str) -> dict[str, int]:
    truth = Truth()
    lines: list[dict[str, Any]] = []
    number: int = getattr(options.num_images, split)
    for index in range(number):
        scene, hypotheses = make_example(options, split, index)
        image_id = FIRST_IMAGE_ID[split] + index
        write_image(folder / IMAGES / f"{image_id}.png", scene)
        truth.add_image(image_id, scene)
        for position, hypothesis in enumerate(hypotheses):
            line = _line(image_id, position, scene, hypothesis)
            lines.append(line)
            truth.add_question({"question_id": line["pairID"]}, hypothesis.type, [(scene, hypothesis.roles)])
    write_json_lines(folder / f"snli_ve_{split}.jsonl", lines)
    truth.write(folder, split)
    return {"images": number, "hypotheses": len(lines)}


def _line(image_id: int, position: int, scene: Scene, hypothesis: Hypothesis) -> dict[str, Any]:
    """One entry; the official pair ids end with the number of the caption and the first letter of the label.

    That letter would give the label away to whoever prints ids, so ours end with the position.
    """
    objects = len(scene.objects)
    return {
        "annotator_labels": [hypothesis.label],
        "captionID": f"{image_id}.jpg#0",
        "Flickr30K_ID": str(image_id),
        "gold_label": hypothesis.label,
        "pairID": f"{image_id}.jpg#0r{position}",
        "sentence1": f"a picture with {number_word(objects)} object{'s' if objects > 1 else ''}",
        "sentence2": hypothesis.text,
    }

"""Writes scenes with captions in the layout of the Karpathy splits of COCO, for retrieval and captioning.

``dataset_coco.json`` (https://cs.stanford.edu/people/karpathy/deepimagesent) lists the images of all splits
with their sentences; an image is ``{filepath}/{filename}``.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smarttrim_cli.data.scenes.captions import sample_captions, signature
from smarttrim_cli.data.scenes.describe import Facts
from smarttrim_cli.data.scenes.options import Options
from smarttrim_cli.data.scenes.output import FIRST_IMAGE_ID, MAX_SCENES, Truth, write_image, write_json
from smarttrim_cli.data.scenes.world import Scene, sample_scene
from smarttrim_cli.errors import UserError

Example = tuple[Scene, list[str]]


def make_examples(options: Options, split: str, number: int) -> Iterator[Example]:
    """The first images of a split with their captions.

    Each depends on the options (seed), its place and the images before it: a scene with the objects of an
    earlier one is drawn again, so that captions can tell all images of a split apart.
    """
    taken: set[Any] = set()
    for index in range(number):
        rng = random.Random(f"{options.seed}/captions/{split}/{index}")
        example = _make_example(options.of_split(split), rng, taken)
        taken.add(signature(example[0]))
        yield example


def write(folder: Path, options: Options) -> dict[str, dict[str, int]]:
    """Write all splits; returns the numbers of images and captions."""
    entries: list[dict[str, Any]] = []
    counts = {}
    for split in options.splits:
        before = len(entries)
        entries += _write_images(folder, options, split, before)
        number = len(entries) - before
        counts[split] = {"images": number, "captions": number * options.captions.captions_per_image}
    write_json(folder / "dataset_coco.json", {"images": entries, "dataset": "coco"})
    return counts


def _make_example(options: Options, rng: random.Random, taken: set[Any]) -> Example:
    own = options.captions
    for _ in range(MAX_SCENES):
        scene = sample_scene(rng, options)
        if signature(scene) not in taken:
            captions = sample_captions(Facts(scene), rng, own.captions_per_image, own.max_phrases)
            if captions is not None:
                return scene, captions
    raise UserError(
        f"these scenes do not allow {own.captions_per_image} captions of so many different images",
        where="captions.captions_per_image, num_images",
        hint="Ask for fewer captions or images, or for scenes with more objects, colors or shapes.",
    )


def _write_images(folder: Path, options: Options, split: str, first: int) -> list[dict[str, Any]]:
    """Write the images and the ground truth of a split; returns its entries, numbered from ``first``."""
    (folder / split).mkdir()
    truth = Truth()
    entries = []
    number: int = getattr(options.num_images, split)
    for index, (scene, captions) in enumerate(make_examples(options, split, number)):
        image_id = FIRST_IMAGE_ID[split] + index
        filename = f"COCO_{split}_{image_id:012d}.png"
        write_image(folder / split / filename, scene)
        truth.add_image(image_id, scene)
        sentences = [
            {
                "tokens": re.findall(r"\w+", caption),
                "raw": caption,
                "imgid": first + index,
                "sentid": (first + index) * len(captions) + position,
            }
            for position, caption in enumerate(captions)
        ]
        entries.append(
            {
                "filepath": split,
                "sentids": [sentence["sentid"] for sentence in sentences],
                "filename": filename,
                "imgid": first + index,
                "split": split,
                "sentences": sentences,
                "cocoid": image_id,
            }
        )
    truth.write(folder, split)
    return entries

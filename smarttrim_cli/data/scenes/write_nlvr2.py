"""Writes scenes with statements in the official layout of NLVR2 (https://github.com/lil-lab/nlvr).

``{split}.json`` has a JSON object per line: sentence, identifier ``{split}-{set}-{pair}-{sentence}``, label
and, for train, the directory below ``images/train``. The images are
``images/{split}/{split}-{set}-{pair}-img0.png`` and ``-img1.png``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smarttrim_cli.data.scenes.describe import Facts
from smarttrim_cli.data.scenes.options import Options
from smarttrim_cli.data.scenes.output import MAX_SCENES, Truth, write_image, write_json_lines
from smarttrim_cli.data.scenes.statements import PAIRS_PER_SET, Pair, SetFacts, Statement, sample_statements
from smarttrim_cli.data.scenes.world import sample_scene
from smarttrim_cli.errors import UserError

IMAGES_PER_SET = 2 * PAIRS_PER_SET
SETS_PER_DIRECTORY = 100
Example = tuple[list[Pair], list[Statement]]


def make_example(options: Options, split: str, index: int) -> Example:
    """One set of a split with its statements; depends on the options (seed) and its place alone."""
    rng = random.Random(f"{options.seed}/nlvr2/{split}/{index}")
    own = options.nlvr2
    for _ in range(MAX_SCENES):
        look = _narrow(rng, options.of_split(split))
        scenes = [sample_scene(rng, look) for _ in range(IMAGES_PER_SET)]
        pairs = [(Facts(left), Facts(right)) for left, right in zip(scenes[::2], scenes[1::2], strict=True)]
        statements = sample_statements(SetFacts(pairs), rng, own.statements_per_set, own.weights.model_dump())
        if statements is not None:
            return pairs, statements
    raise UserError(
        f"these scenes do not allow {own.statements_per_set} different statements of the types in weights",
        where="nlvr2.statements_per_set",
        hint="Ask for fewer statements per set, for more types, or for more objects.",
    )


def write(folder: Path, options: Options) -> dict[str, dict[str, int]]:
    """Write all splits; returns the numbers of images, of instances and of their different statements."""
    return {split: _write_split(folder, options, split) for split in options.splits}


def _write_split(folder: Path, options: Options, split: str) -> dict[str, int]:
    truth = Truth()
    sets = -(-getattr(options.num_images, split) // IMAGES_PER_SET)
    lines: list[dict[str, Any]] = []
    for index in range(sets):
        pairs, statements = make_example(options, split, index)
        directory = {"directory": index // SETS_PER_DIRECTORY} if split == "train" else {}
        images = folder / "images" / split / str(directory.get("directory", ""))
        images.mkdir(parents=True, exist_ok=True)
        for position, pair in enumerate(pairs):
            name = f"{split}-{index}-{position}"
            for side, facts in enumerate(pair):
                write_image(images / f"{name}-img{side}.png", facts.scene)
                truth.add_image(f"{name}-img{side}", facts.scene)
            for number, statement in enumerate(statements):
                identifier = f"{name}-{number}"
                label = {"sentence": statement.text, "label": str(statement.labels[position])}
                lines.append({"identifier": identifier, **label, **directory})
                about = [(facts.scene, tuple(_roles(facts, statement))) for facts in pair]
                truth.add_question({"question_id": identifier}, statement.type, about)
    write_json_lines(folder / f"{split}.json", lines)
    truth.write(folder, split)
    statements_made = sets * options.nlvr2.statements_per_set
    return {"images": sets * IMAGES_PER_SET, "instances": len(lines), "statements": statements_made}


def _narrow(rng: random.Random, options: Options) -> Options:
    """The same scenes with the colors and shapes of one set: few, so that there is much to compare."""
    own = options.nlvr2
    colors = rng.sample(options.colors, min(own.colors_per_set, len(options.colors)))
    shapes = rng.sample(options.shapes, min(own.shapes_per_set, len(options.shapes)))
    return options.model_copy(update={"colors": tuple(colors), "shapes": tuple(shapes)})


def _roles(facts: Facts, statement: Statement) -> Iterator[tuple[str, int]]:
    """The objects of an image that a statement's descriptions fit."""
    names = ("referent",) if len(statement.about) == 1 else ("first", "second")
    for role, description in zip(names, statement.about, strict=True):
        for index in facts.matches.get(description, ()):
            yield role, index

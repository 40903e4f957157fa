"""What the writers of all layouts share: numbers of images, picture files, JSON, and the ground truth.

``scenes_{split}.json`` holds the ground truth of a split: the objects of each image and, for each question
(statement, hypothesis), the boxes of the objects that it is about.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from smarttrim_cli.data.scenes.options import CROWDED, SPLITS
from smarttrim_cli.data.scenes.render import render
from smarttrim_cli.data.scenes.world import Scene

Roles = tuple[tuple[str, int], ...]
"""Pairs of role and index of an object in its scene."""
FIRST_IMAGE_ID = {split: (1 + position) * 1_000_000 for position, split in enumerate((*SPLITS, CROWDED))}
"""Image ids are unique over all splits."""
MAX_SCENES = 50
"""Scenes drawn for one image until one allows what is to be said about it."""


class Truth:
    """The ground truth of a split while it is written."""

    def __init__(self) -> None:
        self.content: dict[str, list[dict[str, Any]]] = {"images": [], "questions": []}

    def add_image(self, image_id: int | str, scene: Scene) -> None:
        """Note the objects of an image."""
        objects = [
            {name: value for name, value in vars(item).items() if value is not None} for item in scene.objects
        ]
        self.content["images"].append({"image_id": image_id, "objects": objects})

    def add_question(self, ids: dict[str, Any], type: str, scenes: Iterable[tuple[Scene, Roles]]) -> None:
        """Note what a question is about in its image; of the second of two images, boxes say ``image: 1``."""
        boxes = []
        for position, (scene, roles) in enumerate(scenes):
            which = {"image": position} if position else {}
            for role, index in roles:
                boxes.append({"role": role, "object": index, "box": scene.objects[index].box, **which})
        self.content["questions"].append({**ids, "type": type, "boxes": boxes})

    def write(self, folder: Path, split: str) -> None:
        """Write ``scenes_{split}.json``."""
        write_json(folder / f"scenes_{split}.json", self.content)


def write_image(path: Path, scene: Scene) -> None:
    """Draw a scene and write it as PNG."""
    render(scene).save(path, compress_level=1)


def write_json(path: Path, content: Any) -> None:
    """Write JSON without blanks."""
    path.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")


def write_json_lines(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line."""
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8", newline="\n")

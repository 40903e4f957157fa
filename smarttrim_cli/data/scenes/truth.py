"""Reads the ground truth of the scenes: objects per image, and the boxes that each question is about."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from smarttrim_cli.data.files import read_json
from smarttrim_cli.data.scenes.world import SceneObject
from smarttrim_cli.errors import UserError

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class SceneTruth:
    """Ground truth of a split: ``objects`` by image id; ``boxes`` (role, (x, y, w, h)) by question id."""

    objects: dict[int, tuple[SceneObject, ...]]
    boxes: dict[int, tuple[tuple[str, Box], ...]]


def read_truth(folder: Path, split: str) -> SceneTruth:
    """Read ``scenes_{split}.json`` of a folder of scenes.

    Raises:
        UserError: The file is missing (data that are not scenes have none) or damaged.
    """
    path = folder / f"scenes_{split}.json"
    content = read_json(path)
    try:
        objects = {
            image["image_id"]: tuple(
                SceneObject(**{**item, "box": tuple(item["box"])}) for item in image["objects"]
            )
            for image in content["images"]
        }
        boxes = {
            question["question_id"]: tuple((box["role"], tuple(box["box"])) for box in question["boxes"])
            for question in content["questions"]
        }
    except (KeyError, TypeError) as error:
        raise UserError(f"not a ground truth file of the scenes ({error!r})", where=str(path)) from error
    return SceneTruth(objects, boxes)

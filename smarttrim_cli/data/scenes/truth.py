"""Reads the ground truth of the scenes: objects per image, and the boxes that each question is about."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smarttrim_cli.data.files import read_json
from smarttrim_cli.data.samples import SampleId
from smarttrim_cli.data.scenes.world import SceneObject
from smarttrim_cli.errors import UserError

Box = tuple[int, int, int, int]
Boxes = tuple[tuple[str, Box], ...]


@dataclass(frozen=True)
class SceneTruth:
    """Ground truth of a split.

    Attributes:
        objects: By image id.
        boxes: What a question is about, (role, (x, y, width, height)), by id of the question.
        second_boxes: The same in the right one of two images; ``boxes`` are then those in the left one.
        types: Type of a question, by its id.
    """

    objects: dict[SampleId, tuple[SceneObject, ...]]
    boxes: dict[SampleId, Boxes]
    second_boxes: dict[SampleId, Boxes]
    types: dict[SampleId, str] = field(default_factory=dict)


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
        boxes, second_boxes = (_boxes(content["questions"], position) for position in (0, 1))
        types = {question["question_id"]: question["type"] for question in content["questions"]}
    except (KeyError, TypeError) as error:
        raise UserError(f"not a ground truth file of the scenes ({error!r})", where=str(path)) from error
    return SceneTruth(objects, boxes, second_boxes, types)


def _boxes(questions: list[dict[str, Any]], position: int) -> dict[SampleId, Boxes]:
    """Boxes in the first or second image, by id of the question."""
    return {
        question["question_id"]: tuple(
            (box["role"], tuple(box["box"])) for box in question["boxes"] if box.get("image", 0) == position
        )
        for question in questions
    }

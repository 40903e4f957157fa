"""Writes a split of scenes as files in the official VQA v2 layout.

Layout: https://visualqa.org (version 2 of the questions and annotations). Beside the official files,
``scenes_{split}.json`` holds the ground truth: the objects of each image and, for each question, the boxes of
the objects that it is about.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from smarttrim_cli.data.scenes.describe import Facts
from smarttrim_cli.data.scenes.options import SPLITS, Options
from smarttrim_cli.data.scenes.questions import Question, sample_questions
from smarttrim_cli.data.scenes.render import render
from smarttrim_cli.data.scenes.world import Scene, sample_scene
from smarttrim_cli.errors import UserError

ANSWERS_PER_QUESTION = 10
MAX_SCENES = 50
"""Scenes drawn for one image until one allows enough questions."""
FIRST_IMAGE_ID = {split: (1 + position) * 1_000_000 for position, split in enumerate(SPLITS)}
Example = tuple[Scene, list[Question]]


def make_example(options: Options, split: str, index: int) -> Example:
    """One image of a split with its questions; depends on the options (seed) and its place alone."""
    rng = random.Random(f"{options.seed}/{split}/{index}")
    weights = options.question_weights.model_dump()
    number = options.questions_per_image
    for _ in range(MAX_SCENES):
        scene = sample_scene(rng, options)
        questions = sample_questions(
            Facts(scene), rng, number, weights, options.max_count, options.neighbour_share
        )
        if questions is not None:
            return scene, questions
    raise UserError(
        f"these scenes do not allow {number} different questions of the types in question_weights",
        where="questions_per_image",
        hint="Ask for fewer questions per image, for more types, or for more objects.",
    )


def write_split(folder: Path, options: Options, split: str) -> dict[str, int]:
    """Write the images, questions, annotations and ground truth of one split; returns the counts."""
    (folder / split).mkdir(parents=True)
    questions: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    truth: dict[str, list[dict[str, Any]]] = {"images": [], "questions": []}
    number: int = getattr(options.num_images, split)
    for index in range(number):
        scene, asked = make_example(options, split, index)
        image_id = FIRST_IMAGE_ID[split] + index
        render(scene).save(folder / split / f"COCO_{split}_{image_id:012d}.png", compress_level=1)
        truth["images"].append({"image_id": image_id, "objects": [vars(item) for item in scene.objects]})
        for position, question in enumerate(asked):
            ids = {"image_id": image_id, "question_id": image_id * 100 + position}
            questions.append({**ids, "question": question.text})
            annotations.append({**ids, **_annotation(question)})
            truth["questions"].append({**ids, "type": question.type, "boxes": _boxes(scene, question)})
    head = _header(split)
    _write_json(
        folder / f"v2_OpenEnded_mscoco_{split}_questions.json",
        {**head, "task_type": "Open-Ended", "questions": questions},
    )
    _write_json(folder / f"v2_mscoco_{split}_annotations.json", {**head, "annotations": annotations})
    _write_json(folder / f"scenes_{split}.json", truth)
    return {"images": number, "questions": len(questions)}


def _annotation(question: Question) -> dict[str, Any]:
    answer = {"answer": question.answer, "answer_confidence": "yes"}
    return {
        "question_type": question.type,
        "answer_type": answer_type(question.answer),
        "multiple_choice_answer": question.answer,
        "answers": [{**answer, "answer_id": 1 + position} for position in range(ANSWERS_PER_QUESTION)],
    }


def answer_type(answer: str) -> str:
    """The official class of an answer: "yes/no", "number" or "other"."""
    if answer in ("yes", "no"):
        return "yes/no"
    return "number" if answer.isdigit() else "other"


def _boxes(scene: Scene, question: Question) -> list[dict[str, Any]]:
    return [
        {"role": role, "object": index, "box": scene.objects[index].box} for role, index in question.roles
    ]


def _header(split: str) -> dict[str, Any]:
    info = {"description": "Synthetic scenes in the layout of VQA v2", "version": "2.0"}
    return {"info": info, "license": {"name": "Apache-2.0"}, "data_type": "mscoco", "data_subtype": split}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")

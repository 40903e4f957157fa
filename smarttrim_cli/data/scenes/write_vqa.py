"""Writes scenes with questions in the official layout of VQA v2 (https://visualqa.org)."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from smarttrim_cli.data.scenes.describe import Facts
from smarttrim_cli.data.scenes.options import Options
from smarttrim_cli.data.scenes.output import FIRST_IMAGE_ID, MAX_SCENES, Truth, write_image, write_json
from smarttrim_cli.data.scenes.questions import Question, sample_questions
from smarttrim_cli.data.scenes.world import Scene, sample_scene, with_grounds
from smarttrim_cli.errors import UserError

ANSWERS_PER_QUESTION = 10
Example = tuple[Scene, list[Question]]


def make_example(options: Options, split: str, index: int) -> Example:
    """One image of a split with its questions; depends on the options (seed) and its place alone."""
    rng = random.Random(f"{options.seed}/{split}/{index}")
    weights = options.question_weights.model_dump()
    number = options.questions_per_image
    for _ in range(MAX_SCENES):
        scene = sample_scene(rng, options.of_split(split))
        if options.name_grounds:
            scene = with_grounds(scene, options.background.tiles)
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


def write(folder: Path, options: Options) -> dict[str, dict[str, int]]:
    """Write all splits; returns the numbers of images and questions."""
    return {split: _write_split(folder, options, split) for split in options.splits}


def _write_split(folder: Path, options: Options, split: str) -> dict[str, int]:
    (folder / split).mkdir(parents=True)
    questions: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    truth = Truth()
    number: int = getattr(options.num_images, split)
    for index in range(number):
        scene, asked = make_example(options, split, index)
        image_id = FIRST_IMAGE_ID[split] + index
        write_image(folder / split / f"COCO_{split}_{image_id:012d}.png", scene)
        truth.add_image(image_id, scene)
        for position, question in enumerate(asked):
            ids = {"image_id": image_id, "question_id": image_id * 100 + position}
            questions.append({**ids, "question": question.text})
            annotations.append({**ids, **_annotation(question)})
            truth.add_question(ids, question.type, [(scene, question.roles)])
    head = _header(split)
    write_json(
        folder / f"v2_OpenEnded_mscoco_{split}_questions.json",
        {**head, "task_type": "Open-Ended", "questions": questions},
    )
    write_json(folder / f"v2_mscoco_{split}_annotations.json", {**head, "annotations": annotations})
    truth.write(folder, split)
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


def _header(split: str) -> dict[str, Any]:
    info = {"description": "Synthetic scenes in the layout of VQA v2", "version": "2.0"}
    return {"info": info, "license": {"name": "Apache-2.0"}, "data_type": "mscoco", "data_subtype": split}

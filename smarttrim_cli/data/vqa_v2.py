"""Reader of VQA v2 in its official layout (https://visualqa.org), which the embedded scenes use too.

A data folder holds, for each split::

    v2_OpenEnded_mscoco_train2014_questions.json
    v2_mscoco_train2014_annotations.json             (none for the official test splits)
    train2014/COCO_train2014_000000000009.jpg        (test-dev2015 has its images in test2015)
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from smarttrim_cli.data.files import read_json
from smarttrim_cli.errors import UserError

_QUESTIONS_FILE = re.compile(r"v2_OpenEnded_mscoco_(.+)_questions\.json")


class Options(BaseModel):
    """Where the official files are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data_dir: str = Field(description="folder with the question and annotation files")
    images_dir: str | None = Field(
        None, description="folder with the image folders (train2014, ...); null: data_dir"
    )


@dataclass(frozen=True)
class VqaSample:
    """A question about an image; what comes from annotations is None without them (official test sets)."""

    question_id: int
    image_id: int
    image_path: Path
    question: str
    answers: tuple[str, ...] | None
    question_type: str | None
    answer_type: str | None
    major_answer: str | None = None


def locate(options: Options, log: Callable[[str], None] = print) -> Path:
    """The folder with the data."""
    return Path(options.data_dir)


def read(
    data_dir: str | Path, split: str, *, require_answers: bool, images_dir: str | Path | None = None
) -> list[VqaSample]:
    """Read the questions of a split, with their answers where there are annotations.

    Args:
        data_dir: Folder with the question and annotation files.
        split: ``train``, ``val``, ``test``, ``test-dev``, ... with or without the year.
        require_answers: Whether a split without annotations is an error.
        images_dir: Folder with the image folders, if not ``data_dir``.

    Raises:
        UserError: A file is missing or damaged, the split is unknown, or a question has no annotation.
    """
    folder = Path(data_dir)
    subtype = _find_subtype(folder, split)
    questions_path = folder / f"v2_OpenEnded_mscoco_{subtype}_questions.json"
    annotations_path = folder / f"v2_mscoco_{subtype}_annotations.json"
    annotations = _read_annotations(annotations_path, split, require_answers)
    images, image_name = _image_naming(Path(images_dir or data_dir), subtype)
    samples = []
    for question in _entries(questions_path, "questions"):
        question_id = _field(question, "question_id", int, questions_path)
        image_id = _field(question, "image_id", int, questions_path)
        annotation = None if annotations is None else annotations.get(question_id, {})
        if annotation == {}:
            raise UserError(f"no annotation for question_id {question_id}", where=str(annotations_path))
        samples.append(
            VqaSample(
                question_id=question_id,
                image_id=image_id,
                image_path=images / image_name.format(image_id),
                question=_field(question, "question", str, questions_path),
                answers=_answers(annotation, annotations_path) if annotation else None,
                question_type=annotation.get("question_type") if annotation else None,
                answer_type=annotation.get("answer_type") if annotation else None,
                major_answer=annotation.get("multiple_choice_answer") if annotation else None,
            )
        )
    return samples


def splits(data_dir: str | Path) -> list[str]:
    """Subtypes (``train2014``, ...) for which the folder has a file of questions."""
    try:
        names = sorted(os.listdir(data_dir))
    except OSError as error:
        raise UserError(f"cannot read the data folder: {error.strerror}", where=str(data_dir)) from error
    return [found[1] for found in map(_QUESTIONS_FILE.fullmatch, names) if found]


def _find_subtype(folder: Path, split: str) -> str:
    present = splits(folder)
    found = [name for name in present if name == split]
    found = found or [name for name in present if re.fullmatch(re.escape(split) + r"20\d\d", name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(
            f"split {split} could be any of {', '.join(found)}", where=str(folder), hint="Name the year."
        )
    hint = (
        f"Splits there: {', '.join(present)}."
        if present
        else "It has no v2_OpenEnded_mscoco_*_questions.json."
    )
    raise UserError(f"no questions for split {split}", where=str(folder), hint=hint)


def _read_annotations(path: Path, split: str, required: bool) -> dict[int, dict[str, Any]] | None:
    """Annotations by question id; None if there is no such file."""
    if path.exists():
        return {_field(entry, "question_id", int, path): entry for entry in _entries(path, "annotations")}
    if required:
        raise UserError(
            f"split {split} has questions but no answers",
            where=str(path),
            hint="Training and scoring need the annotations; a submission file can be written without.",
        )
    return None


def _entries(path: Path, key: str) -> list[dict[str, Any]]:
    content = read_json(path)
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"not in the layout of VQA v2: no list of {key}", where=str(path))
    if not entries:
        raise UserError(f"the list of {key} is empty", where=str(path))
    return entries


def _field(entry: dict[str, Any], key: str, kind: type, path: Path) -> Any:
    if not isinstance(entry.get(key), kind):
        name = f"question_id {entry['question_id']}" if "question_id" in entry else f"entry {entry}"
        raise UserError(f"{name} has no {key} (of type {kind.__name__})", where=str(path))
    return entry[key]


def _answers(annotation: dict[str, Any], path: Path) -> tuple[str, ...]:
    try:
        answers = tuple(answer["answer"] for answer in annotation["answers"])
    except (KeyError, TypeError):
        answers = ()
    if not answers or not all(isinstance(answer, str) for answer in answers):
        raise UserError(f"question_id {annotation['question_id']} has no list of answers", where=str(path))
    return answers


def _image_naming(root: Path, subtype: str) -> tuple[Path, str]:
    """The folder of a split's images, and the pattern of their names (JPEG; PNG for the scenes)."""
    subtype = subtype.replace("-dev", "")
    folder = root / subtype
    try:
        suffixes = (Path(entry.name).suffix for entry in os.scandir(folder) if entry.name.startswith("COCO_"))
        suffix = next(suffixes, None)
    except OSError as error:
        raise UserError(f"cannot read the folder of images: {error.strerror}", where=str(folder)) from error
    if suffix is None:
        raise UserError(f"no image named COCO_{subtype}_*", where=str(folder))
    return folder, f"COCO_{subtype}_{{:012d}}{suffix}"

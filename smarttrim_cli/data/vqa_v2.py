"""Reader of VQA v2 in its official layout (https://visualqa.org), which the embedded scenes use too.

A data folder holds, for each split::

    v2_OpenEnded_mscoco_train2014_questions.json
    v2_mscoco_train2014_annotations.json             (none for the official test splits)
    train2014/COCO_train2014_000000000009.jpg        (test-dev2015 has its images in test2015)
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from smarttrim_cli.data.files import field, objects, read_json, refuse_half_characters, shown
from smarttrim_cli.data.samples import VqaSample
from smarttrim_cli.data.splits import (
    Log,
    file_names,
    image_folder,
    image_suffix,
    joins_splits,
    unknown_split,
    unlabelled,
)
from smarttrim_cli.errors import UserError

TASKS = ("vqa",)
_QUESTIONS_FILE = re.compile(r"v2_OpenEnded_mscoco_(.+)_questions\.json")


class Options(BaseModel):
    """Where the official files are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data_dir: str = Field(description="folder with the question and annotation files")
    images_dir: str | None = Field(
        None, description="folder with the image folders (train2014, ...); null: data_dir"
    )


@joins_splits
def read(options: Options, task: str, split: str, *, labelled: bool, log: Log = print) -> list[VqaSample]:
    """Questions of a split; see :func:`read_folder`."""
    return read_folder(options.data_dir, split, labelled=labelled, images_dir=options.images_dir)


def splits(options: Options, task: str = "vqa") -> list[str]:
    """Subtypes (``train2014``, ...) for which the folder has a file of questions."""
    return _subtypes(Path(options.data_dir))


def read_folder(
    data_dir: str | Path, split: str, *, labelled: bool, images_dir: str | Path | None = None
) -> list[VqaSample]:
    """Read the questions of a split, with their answers where there are annotations.

    Args:
        data_dir: Folder with the question and annotation files.
        split: ``train``, ``val``, ``test``, ``test-dev``, ... with or without the year.
        labelled: Whether a split without annotations is an error.
        images_dir: Folder with the image folders, if not ``data_dir``.

    Raises:
        UserError: A file is missing or damaged, the split is unknown, or a question has no annotation.
    """
    folder = Path(data_dir)
    subtype = _find_subtype(folder, split)
    questions_path = folder / f"v2_OpenEnded_mscoco_{subtype}_questions.json"
    annotations_path = folder / f"v2_mscoco_{subtype}_annotations.json"
    annotations = _read_annotations(annotations_path, split, labelled)
    images, image_name = _image_naming(Path(images_dir or data_dir), subtype)
    samples = []
    for number, question in enumerate(objects(read_json(questions_path), "questions", questions_path)):
        where = _place(question, number, questions_path)
        question_id = field(question, "question_id", int, where)
        image_id = field(question, "image_id", int, where)
        annotation = None if annotations is None else annotations.get(question_id, {})
        if annotation is not None:
            _refuse_other(annotation, question_id, image_id, annotations_path)
        samples.append(
            VqaSample(
                id=question_id,
                images=(images / image_name.format(image_id),),
                text=field(question, "question", str, where),
                image_id=image_id,
                answers=_answers(annotation, annotations_path) if annotation else None,
                question_type=_optional(annotation, "question_type", annotations_path),
                answer_type=_optional(annotation, "answer_type", annotations_path),
                major_answer=_optional(annotation, "multiple_choice_answer", annotations_path),
            )
        )
    return samples


def _subtypes(folder: Path) -> list[str]:
    return [found[1] for found in map(_QUESTIONS_FILE.fullmatch, file_names(folder)) if found]


def _find_subtype(folder: Path, split: str) -> str:
    present = _subtypes(folder)
    found = [name for name in present if name == split]
    found = found or [name for name in present if re.fullmatch(re.escape(split) + r"20\d\d", name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(
            f"split {split} could be any of {', '.join(found)}", where=str(folder), hint="Name the year."
        )
    raise unknown_split(split, "questions", present, folder, "v2_OpenEnded_mscoco_*_questions.json")


def _read_annotations(path: Path, split: str, required: bool) -> dict[int, dict[str, Any]] | None:
    """Annotations by question id; None if there is no such file."""
    if path.exists():
        found: dict[int, dict[str, Any]] = {}
        for number, entry in enumerate(objects(read_json(path), "annotations", path)):
            where = _place(entry, number, path)
            question_id = field(entry, "question_id", int, where)
            if question_id in found:
                raise UserError("two annotations of this question", where=where)
            found[question_id] = entry
        return found
    if required:
        raise unlabelled(split, "questions", "answers", path)
    return None


def _refuse_other(annotation: dict[str, Any], question_id: int, image_id: int, path: Path) -> None:
    """Refuse a question without annotation, or with that of another image."""
    if not annotation:
        raise UserError(f"no annotation for question_id {question_id}", where=str(path))
    annotated = annotation.get("image_id", image_id)
    if annotated != image_id:
        raise UserError(
            f"the annotation is of image {shown(annotated)}, the question of image {image_id}",
            where=f"{path}, question_id {question_id}",
            hint="questions and annotations have to be of the same release",
        )


def _place(entry: dict[str, Any], number: int, path: Path) -> str:
    """The question id if there is one, else the number of the entry in its list, from 0."""
    name = f"question_id {entry['question_id']}" if "question_id" in entry else f"entry {number}"
    return f"{path}, {name}"


def _optional(annotation: dict[str, Any] | None, key: str, path: Path) -> str | None:
    if annotation is None or annotation.get(key) is None:
        return None
    return str(field(annotation, key, str, f"{path}, question_id {annotation['question_id']}"))


def _answers(annotation: dict[str, Any], path: Path) -> tuple[str, ...]:
    try:
        answers = tuple(answer["answer"] for answer in annotation["answers"])
    except (KeyError, TypeError):
        answers = ()
    if not answers or not all(isinstance(answer, str) for answer in answers):
        raise UserError(f"question_id {annotation['question_id']} has no list of answers", where=str(path))
    for answer in answers:
        refuse_half_characters(answer, "answer", f"{path}, question_id {annotation['question_id']}")
    return answers


def _image_naming(root: Path, subtype: str) -> tuple[Path, str]:
    """The folder of a split's images, and the pattern of their names (JPEG; PNG for the scenes)."""
    subtype = subtype.replace("-dev", "")
    folder = image_folder([root / subtype])
    suffix = image_suffix(folder, f"COCO_{subtype}_")
    return folder, f"COCO_{subtype}_{{:012d}}{suffix}"

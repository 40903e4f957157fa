"""From an entry of one's own data (a JSON line, a row of a table) to a sample of a task.

``KEYS`` is the one place that says what an entry has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smarttrim_cli.data.files import field, refuse_half_characters, texts
from smarttrim_cli.data.samples import (
    ENTAILMENT,
    CaptionedImage,
    EntailmentSample,
    ImageSource,
    Sample,
    SampleId,
    StatementSample,
    VqaSample,
)
from smarttrim_cli.data.splits import Log, unlabelled
from smarttrim_cli.errors import UserError
from smarttrim_cli.metrics.vqa_accuracy import plain_answer

KEYS: dict[str, tuple[str, ...]] = {
    "vqa": ("question", "answer", "answers", "image_id", "question_type", "answer_type", "type", "id"),
    "nlvr2": ("statement", "label", "id"),
    "snli_ve": ("hypothesis", "label", "id"),
    "retrieval": ("captions", "id"),
    "captioning": ("captions", "type", "id"),
}
"""Keys of an entry per task, but for its images (``image``; ``images``, two, for nlvr2)."""
_ANNOTATORS = 10


@dataclass(frozen=True)
class Entry:
    """An entry before it is checked.

    Attributes:
        values: What it holds under the names of ``KEYS``.
        images: Its images, in order.
        id: Its id where it names none.
        where: Its place, for errors.
        split: The split it is in.
        labelled: Whether it has to have annotations.
    """

    values: Mapping[str, Any]
    images: tuple[ImageSource, ...]
    id: SampleId
    where: str
    split: str
    labelled: bool


def images_per_sample(task: str) -> int:
    """Two for statements about pairs, else one."""
    return 2 if task == "nlvr2" else 1


def to_sample(task: str, entry: Entry) -> Sample:
    """The sample of an entry.

    Raises:
        UserError: A key is missing or has a value of the wrong kind.
    """
    makers: dict[str, Callable[[Entry], Sample]] = {
        "vqa": _question,
        "nlvr2": _statement,
        "snli_ve": _hypothesis,
        "retrieval": lambda entry: _captioned(replace(entry, labelled=True)),
        "captioning": _captioned,
    }
    return makers[task](entry)


def gathered(samples: Sequence[Sample], split: str, log: Log) -> list[Sample]:
    """Samples of images with captions, one per image: lines of the same image (Flickr's list) are one.

    Else each of them would be an image of its own, and the captions of the others wrong ones of it.
    """
    by_image: dict[Hashable, CaptionedImage] = {}
    for number, sample in enumerate(samples):
        if not isinstance(sample, CaptionedImage):
            return list(samples)
        key = _image_key(sample) if sample.captions else None
        key = number if key is None else key
        first = by_image.get(key)
        captions = (() if first is None else first.captions) + sample.captions
        by_image[key] = replace(first or sample, captions=captions)
    if len(by_image) < len(samples):
        log(f"{split}: {len(samples)} entries of {len(by_image)} images; captions of an image are gathered")
    return list(by_image.values())


def _image_key(sample: CaptionedImage) -> Hashable:
    """The same for samples of the same image; None where there is no image."""
    image = sample.images[0]
    return image if isinstance(image, Path) else image.key()


def _question(entry: Entry) -> VqaSample:
    answers = _answers(entry)
    kind = _optional_text(entry, "type")
    said = Counter(answer for answer in answers or () if answer)  # an annotator may have said nothing
    major = said.most_common(1)[0][0] if said else None
    return VqaSample(
        id=_id(entry),
        images=entry.images,
        text=_text(entry, "question"),
        image_id=_image_id(entry),
        answers=answers,
        question_type=_optional_text(entry, "question_type") or kind,
        answer_type=_optional_text(entry, "answer_type") or kind,
        major_answer=major if entry.values.get("answer") is None else _answer(entry),
        normalized=True,
    )


def _statement(entry: Entry) -> StatementSample:
    text = _text(entry, "statement")
    label = _annotation(entry, "label")
    if label is not None and str(label).lower() not in ("true", "false"):
        raise UserError(f"label is {label!r}, not true or false", where=entry.where)
    truth = None if label is None else str(label).lower() == "true"
    return StatementSample(id=_id(entry), images=entry.images, text=text, label=truth, statement=text)


def _hypothesis(entry: Entry) -> EntailmentSample:
    label = _annotation(entry, "label")
    if label is not None and label not in ENTAILMENT:
        raise UserError(f"label is {label!r}, not one of {', '.join(ENTAILMENT)}", where=entry.where)
    return EntailmentSample(id=_id(entry), images=entry.images, text=_text(entry, "hypothesis"), label=label)


def _captioned(entry: Entry) -> CaptionedImage:
    """An image with captions; without them only where they are to be written."""
    given = _annotation(entry, "captions")
    captions = () if given is None else texts(dict(entry.values), "captions", entry.where)
    if not all(caption.strip() for caption in captions):
        raise _blank("captions", entry.where)
    return CaptionedImage(
        id=_id(entry), images=entry.images, captions=captions, type=_optional_text(entry, "type")
    )


def _answers(entry: Entry) -> tuple[str, ...] | None:
    """Answers of all annotators; a single answer stands for ten equal ones.

    Besides a list of texts, the layout of VQA v2 is taken: a list of objects, each with ``answer``. Answers
    are normalised, as those of the vocabulary are: the official accuracy compares answers on which all agree
    as they are written, so that "yes" would be wrong where ten said "Yes".
    """
    if entry.values.get("answers") is None:
        answer = _annotation(entry, "answer")
        return None if answer is None else (_answer(entry),) * _ANNOTATORS
    given = entry.values["answers"]
    if isinstance(given, Sequence) and not isinstance(given, str):
        given = [_in_words(one.get("answer") if isinstance(one, Mapping) else one) for one in given]
    given = texts({"answers": given}, "answers", entry.where)
    if not any(answer.strip() for answer in given):
        raise _blank("answers", entry.where)
    answers = tuple(map(plain_answer, given))
    return answers * _ANNOTATORS if len(answers) == 1 else answers


def _answer(entry: Entry) -> str:
    values = {**entry.values, "answer": _in_words(entry.values["answer"])}
    answer = str(field(values, "answer", str, entry.where))
    if not answer.strip():
        raise _blank("answer", entry.where)
    return plain_answer(answer)


def _blank(key: str, where: str) -> UserError:
    """The error for an answer or a caption that says nothing: no prediction would be right."""
    return UserError(
        f"{key} is blank", where=where, hint="leave it out (or the key, or null) if there is none"
    )


def _in_words(answer: Any) -> Any:
    """A whole number as a text: a table of numbers alone has no texts."""
    return str(answer) if type(answer) is int else answer


def _annotation(entry: Entry, key: str) -> Any:
    """The value of a key that entries without annotations lack."""
    value = entry.values.get(key)
    if value is None and entry.labelled:
        raise unlabelled(entry.split, "samples", key, entry.where)
    return value


def _text(entry: Entry, key: str) -> str:
    return str(field(dict(entry.values), key, str, entry.where))


def _optional_text(entry: Entry, key: str) -> str | None:
    return None if entry.values.get(key) is None else _text(entry, key)


def _id(entry: Entry) -> SampleId:
    return _optional_id(entry, "id", entry.id)


def _image_id(entry: Entry) -> SampleId:
    return _optional_id(entry, "image_id", str(entry.images[0]))


def _optional_id(entry: Entry, key: str, default: SampleId) -> SampleId:
    value = entry.values.get(key)
    if value is None:
        return default
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise UserError(f"{key} is {value!r}, not a number or a text", where=entry.where)
    if isinstance(value, str):
        refuse_half_characters(value, key, entry.where)
    return value

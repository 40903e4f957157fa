"""From scores of images and texts to records: one per image, with the ranks of it and of its texts.

Legend: I images, T texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from smarttrim_cli.metrics.recall import ScoreMatrix, mean_recall_per_image
from smarttrim_cli.tasks._gallery import Gallery
from smarttrim_cli.tasks.base import Record


def record_of(image_id: Any, ranks: Sequence[int | None]) -> Record:
    """The record of an image: ranks (1 is first) of its best text, then, for each text, of the image."""
    return {
        "id": image_id,
        "type": "all",
        "question": "",
        "prediction": tuple(ranks),
        "reference": None,
        "score": None,
    }


def ranked(gallery: Gallery, image_to_text: ScoreMatrix, text_to_image: ScoreMatrix) -> list[Record]:
    """Scored records of all images of a gallery.

    Args:
        gallery: Images and texts, in the order of the matrices.
        image_to_text: Scores for finding texts.
        text_to_image: Scores for finding images; the same matrix where all pairs are scored.
    """
    ranks: list[list[int | None]] = [[_rank(rank)] for rank in image_to_text.image_to_text_ranks()]
    for image, rank in zip(gallery.image_of_text, text_to_image.text_to_image_ranks(), strict=True):
        ranks[image].append(_rank(rank))
    records = [record_of(image.id, row) for image, row in zip(gallery.images, ranks, strict=True)]
    for record, scores_T in zip(records, image_to_text.scores_IT, strict=True):
        record["best_text"] = gallery.texts[int(scores_T.argmax())]
        record["scored_pairs"] = int(np.isfinite(scores_T).sum())
    return scored(records)


def complete(whole: Gallery, records: Sequence[Record]) -> tuple[Gallery, ScoreMatrix]:
    """The images whose blocks were scored, with the scores of all pairs of them and their texts."""
    matrix = ScoreMatrix(whole.image_of_text)
    for record in records:
        block = record["block"]
        matrix.add([block.image], block.texts, record["scores"][None])
    there = {record["block"].image for record in records}
    if len(there) == len(whole.images):
        return whole, matrix
    images = sorted(there)
    texts = [place for place, image in enumerate(whole.image_of_text) if image in there]
    found = whole.part(images)
    part = ScoreMatrix(found.image_of_text)
    part.add(range(len(images)), range(len(texts)), matrix.scores_IT[np.ix_(images, texts)])
    return found, part


def ranks_of(records: Sequence[Record]) -> tuple[list[float], list[float], list[int]]:
    """Ranks of images and of texts, and the place of each text's image, from records."""
    rows = [[math.inf if rank is None else rank for rank in record["prediction"]] for record in records]
    image_of_text = [place for place, row in enumerate(rows) for _ in row[1:]]
    return [row[0] for row in rows], [rank for row in rows for rank in row[1:]], image_of_text


def scored(records: list[Record]) -> list[Record]:
    """Records with what each image adds to the mean recall."""
    scores = mean_recall_per_image(*ranks_of(records)).tolist()
    return [{**record, "score": score} for record, score in zip(records, scores, strict=True)]


def _rank(rank: float) -> int | None:
    """A rank for a record; None where the pair was no candidate."""
    return int(rank) if math.isfinite(rank) else None

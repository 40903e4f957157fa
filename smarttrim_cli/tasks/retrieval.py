"""Image-text retrieval: which text belongs to an image, and which image to a text.

Trained as METER is: cross-entropy over the matching scores of an image with its text and some false ones
(METER's may happen to be the image's own; here they are of other images). Evaluated over all pairs of a
split: recall at 1, 5 and 10 in both directions. A record is that of an image and its texts, so that the mean
of the scores is the mean of the six recalls.

Legend: B instances, K texts per image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset

from smarttrim_cli.data.processor import Processor
from smarttrim_cli.errors import UserError
from smarttrim_cli.forms import MATCHES, Form
from smarttrim_cli.metrics.recall import ScoreMatrix, mean_recall_per_image, recalls
from smarttrim_cli.tasks._data import DataOptions, Item, SampleDataset, instance_ids, spread, usable
from smarttrim_cli.tasks._gallery import BlockDataset, Gallery, Pair, gallery
from smarttrim_cli.tasks._summary import estimated
from smarttrim_cli.tasks._task import DataTask, need_style, refuse_unknown
from smarttrim_cli.tasks.base import Batch, Record

FORM = "retrieval"


class Options(DataOptions):
    """Recipe section of this task."""

    form_name: ClassVar[str] = FORM
    num_false_texts: int = Field(default=15, ge=1, description="training: texts of other images per instance")
    negatives_seed: int = Field(default=0, description="training: seed of the choice of false texts")
    block_size: int = Field(
        default=16, ge=1, description="evaluation: texts that an image is scored with at once"
    )


class RetrievalTask(DataTask):
    """See :class:`smarttrim_cli.tasks.base.Task`."""

    metric = "mean_recall"

    def __init__(self, options: Options, log: Callable[[str], None]) -> None:
        super().__init__(options, log)
        self._learned: Gallery | None = None
        self._galleries: dict[str, Gallery] = {}

    @property
    def form(self) -> Form:
        """A matcher of an image with texts."""
        return Form(FORM, text_tokens=14)

    # --- data ---

    def questions(self, split: str) -> list[str]:
        """All captions: the backbone reads one per score."""
        return [self.clean(caption) for sample in self.samples(split) for caption in sample.captions]

    def dataset(
        self, split: str, processor: Processor, *, limit: int | None = None, training: bool = False
    ) -> Dataset[Any]:
        """Blocks of the score matrix; for training an item per text.

        ``limit`` is the most blocks; it is kept by taking fewer images, whose matrix is complete.
        """
        images = self.samples(split, labelled=True)
        if not training:
            chosen = gallery(split, images, limit, self.options.block_size)
            self._galleries[chosen.name] = chosen
            return BlockDataset(chosen, processor, self.options.block_size, self.skips_bad)
        self._learned = gallery(split, images, None, self.options.block_size)
        self._refuse_too_few(self._learned)
        return SampleDataset(spread(self._learned.pairs(), limit), processor, self.skips_bad)

    def _refuse_too_few(self, learned: Gallery) -> None:
        most = max(len(image.captions) for image in learned.images)
        if len(learned.texts) - most < self.options.num_false_texts:
            raise UserError(
                f"{len(learned.texts)} texts do not give {self.options.num_false_texts} of other images",
                where="task.num_false_texts",
            )

    def collate(self, items: Sequence[Item | None], processor: Processor, training: bool = False) -> Batch:
        """Stack images; K texts for each: for training the true one first, else those of its block."""
        good = usable(items)
        samples = [sample for sample, _ in good]
        rows = self._training_texts(samples) if training else [self._texts(sample) for sample in samples]
        ids_BKL, mask_BKL = processor.texts([[self.clean(text) for text in row] for row in rows])
        pixels = torch.stack([pixels for _, pixels in good])
        inputs = {"pixel_values": pixels, "input_ids": ids_BKL, "attention_mask": mask_BKL}
        return Batch(inputs, instance_ids([sample.id for sample in samples]), {}, samples)

    def _training_texts(self, pairs: Sequence[Pair]) -> list[list[str]]:
        assert self._learned is not None
        texts = self._learned.texts
        o = self.options
        false = self._learned.false_texts(pairs, o.num_false_texts, o.negatives_seed)
        return [[pair.text, *(texts[place] for place in row)] for pair, row in zip(pairs, false, strict=True)]

    def _texts(self, block: Any) -> list[str]:
        texts = self._galleries[block.gallery].texts
        return [texts[place] for place in block.texts]

    def inputs(
        self, images: Sequence[Image.Image], texts: Sequence[str], processor: Processor
    ) -> dict[str, Tensor]:
        """Pictures of the user's own, each with one text."""
        inputs = super().inputs(images, texts, processor)
        for name in ("input_ids", "attention_mask"):
            inputs[name] = inputs[name][:, None]
        return inputs

    # --- loss, predictions, scores ---

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy over the scores (B, K) of a text each; the first is the true one."""
        true_B = torch.zeros(len(output), dtype=torch.long, device=output.device)
        return F.cross_entropy(output.float(), true_B)

    def predict(self, output: Tensor, batch: Batch, processor: Processor) -> list[Record]:
        """The scores of every block, from which :meth:`finish` makes records."""
        scores_BK = output.float().cpu().numpy()
        return [
            {
                "id": block.id,
                "type": "block",
                "question": "",
                "prediction": "",
                "reference": None,
                "score": None,
                "block": block,
                "scores": scores_K,
            }
            for block, scores_K in zip(batch.samples, scores_BK, strict=True)
        ]

    def answer(self, output: Tensor, processor: Processor) -> list[tuple[str, float]]:
        """The score of each pair (B, 1), and its sigmoid."""
        scores = output.float()[:, 0]
        pairs = zip(scores.tolist(), torch.sigmoid(scores).tolist(), strict=True)
        return [(f"score {score:.3f}", confidence) for score, confidence in pairs]

    def record(self, sample: Any, prediction: Any) -> Record:
        """The record of an image's ranks; its score depends on all images, see :meth:`finish`."""
        return {
            "id": sample.id,
            "type": "all",
            "question": "",
            "prediction": tuple(prediction),
            "reference": None,
            "score": None,
        }

    def finish(self, records: list[Record]) -> list[Record]:
        """One record per image from the records of all blocks.

        Its prediction are ranks (1 is first): that of its best text among all texts, then, for each of its
        texts, that of the image among all images. Images that were skipped are left out, with their texts.
        """
        if not records:
            return []
        found, matrix = _complete(self._galleries[records[0]["block"].gallery], records)
        ranks: list[list[int | None]] = [[_rank(rank)] for rank in matrix.image_to_text_ranks()]
        for image, rank in zip(found.image_of_text, matrix.text_to_image_ranks(), strict=True):
            ranks[image].append(_rank(rank))
        made = [self.record(image, row) for image, row in zip(found.images, ranks, strict=True)]
        for record, scores_T in zip(made, matrix.scores_IT, strict=True):
            record["best_text"] = found.texts[int(scores_T.argmax())]
            record["scored_pairs"] = int(np.isfinite(scores_T).sum())
        return _scored(made)

    def summarize(self, records: Sequence[Record]) -> dict[str, Any]:
        """Mean recall and the six recalls it is the mean of, with the size of the matrix."""
        summary = super().summarize(records)
        image_ranks, text_ranks, image_of_text = _ranks(records)
        estimates = recalls(image_ranks, text_ranks, image_of_text)
        summary |= {"images": len(image_ranks), "texts": len(text_ranks)}
        for name, estimate in estimates.items():
            summary |= estimated(name, estimate)
        if all("scored_pairs" in record for record in records):
            summary["scored_pairs"] = sum(record["scored_pairs"] for record in records)
        return summary

    def rescore(self, records: Sequence[Record], split: str) -> list[Record]:
        """Stored ranks as records.

        Raises:
            UserError: They are not of the split's images, or not as many as an image has texts.
        """
        by_id = {sample.id: sample for sample in self.samples(split, labelled=True)}
        refuse_unknown(records, by_id, split)
        for record in records:
            ranks, captions = record["prediction"], by_id[record["id"]].captions
            if not isinstance(ranks, list) or len(ranks) != 1 + len(captions):
                raise UserError(
                    f"the prediction for id {record['id']} is {ranks!r}, not the rank of the best text and "
                    f"{len(captions)} ranks of the image"
                )
        made = [self.record(by_id[record["id"]], record["prediction"]) for record in records]
        return _scored(made)

    def submission(self, records: Sequence[Record]) -> Any:
        """There is no official format.

        Raises:
            UserError: Always.
        """
        raise UserError(
            "retrieval has no official submission format",
            where="--submission-out",
            hint="--predictions-out writes the ranks of every image and text",
        )


def _complete(whole: Gallery, records: Sequence[Record]) -> tuple[Gallery, ScoreMatrix]:
    """The images that were scored, with the scores of all pairs of them and their texts."""
    matrix = ScoreMatrix(whole.image_of_text)
    for record in records:
        block = record["block"]
        matrix.add([block.image], block.texts, record["scores"][None])
    there = {record["block"].image for record in records}
    if len(there) == len(whole.images):
        return whole, matrix
    images = sorted(there)
    texts = [place for place, image in enumerate(whole.image_of_text) if image in there]
    found = Gallery(whole.name, [whole.images[place] for place in images])
    part = ScoreMatrix(found.image_of_text)
    part.add(range(len(images)), range(len(texts)), matrix.scores_IT[np.ix_(images, texts)])
    return found, part


def _rank(rank: float) -> int | None:
    """A rank for a record; None where the pair was no candidate."""
    return int(rank) if math.isfinite(rank) else None


def _ranks(records: Sequence[Record]) -> tuple[list[float], list[float], list[int]]:
    """Ranks of images and of texts, and the place of each text's image, from records."""
    rows = [[math.inf if rank is None else rank for rank in record["prediction"]] for record in records]
    image_of_text = [place for place, row in enumerate(rows) for _ in row[1:]]
    return [row[0] for row in rows], [rank for row in rows for rank in row[1:]], image_of_text


def _scored(records: list[Record]) -> list[Record]:
    """Records with what each image adds to the mean recall."""
    scores = mean_recall_per_image(*_ranks(records)).tolist()
    return [{**record, "score": score} for record, score in zip(records, scores, strict=True)]


def build(options: Options, log: Callable[[str], None], style: str) -> RetrievalTask:
    """The task; data are read when first needed."""
    need_style(FORM, style, [MATCHES])
    return RetrievalTask(options, log)

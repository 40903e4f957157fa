"""Image-text retrieval: which text belongs to an image, and which image to a text.

A backbone that matches is trained as METER is (``compute_irtr`` and ``compute_itm`` of the official
``objectives.py``, added unweighted): cross-entropy over the matching scores of an image with its text and
some false ones, and the matching loss over the true text with its image or, half of the time, another. There
false texts may happen to be the image's own, and other images come from the whole split; here false texts are
of other images, and other images from the batch. It is evaluated over all pairs of a split.

A backbone that contrasts is trained as BLIP is: see :mod:`._contrastive`. It is evaluated in two stages, of
which the first chooses candidates by their features (:mod:`smarttrim_cli.engine.retrieval`), or over all
pairs by matching alone.

The score is recall at 1, 5 and 10 in both directions. A record is that of an image and its texts, so that the
mean of the scores is the mean of the six recalls.
Legend: B instances, K texts per image, T texts of a split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset

from smarttrim_cli.data.files import shown
from smarttrim_cli.data.processor import Processor
from smarttrim_cli.errors import UserError
from smarttrim_cli.forms import CONTRASTS, MATCHES, Contrast, Form, Ranking
from smarttrim_cli.metrics.recall import ScoreMatrix, recalls
from smarttrim_cli.tasks._contrastive import ContrastiveLoss
from smarttrim_cli.tasks._data import DataOptions, Item, SampleDataset, instance_ids, spread, usable
from smarttrim_cli.tasks._gallery import (
    Gallery,
    OnePerImage,
    Pair,
    WholeMatrix,
    gallery,
    images_in_blocks,
)
from smarttrim_cli.tasks._ranks import complete, ranked, ranks_of, record_of, scored
from smarttrim_cli.tasks._summary import estimated
from smarttrim_cli.tasks._task import DataTask, need_style, refuse_unknown
from smarttrim_cli.tasks.base import Batch, Record
from smarttrim_cli.tasks.records import place_of

FORM = "retrieval"
_STAGES = ("first_stage_gmacs", "second_stage_gmacs")


class Options(DataOptions):
    """Recipe section of this task."""

    form_name: ClassVar[str] = FORM
    num_false_texts: int = Field(
        default=15, ge=1, le=10_000, description="training (METER): texts of other images per instance"
    )
    matching_weight: float = Field(
        default=1.0, ge=0, description="training (METER): weight of the matching loss beside the ranking loss"
    )
    negatives_seed: int = Field(
        default=0, description="training (METER): seed of the choice of false texts and other images"
    )
    queue_size: int = Field(
        default=57600,
        ge=1,
        le=1_000_000,
        description="training (BLIP): features of earlier batches to contrast with",
    )
    momentum: float = Field(
        default=0.995,
        ge=0,
        le=1,
        description="training (BLIP): how slowly the momentum encoders follow the trained ones",
    )
    alpha: float = Field(
        default=0.4,
        ge=0,
        le=1,
        description="training (BLIP): share of the momentum encoders' similarities in the targets, reached "
        "after an epoch",
    )
    two_stage: bool = Field(
        default=True,
        description="evaluation (BLIP): choose candidates by their features and score these alone; "
        "false: score all pairs, by matching alone",
    )
    num_candidates: int = Field(
        default=256,
        ge=1,
        le=1_000_000,
        description="evaluation (BLIP): candidates per image and per text (official: 256, Flickr30K 128)",
    )
    block_size: int = Field(
        default=16, ge=1, description="evaluation: texts that an image is scored with at once"
    )


class RetrievalTask(DataTask):
    """Retrieval by a backbone that matches; see :class:`smarttrim_cli.tasks.base.Task`."""

    metric = "mean_recall"
    two_stage = False

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
        """Blocks of images and texts; for training an item per text.

        ``limit`` is the most blocks; it is kept by taking fewer images, whose matrix is complete. In two
        stages an image is a block.
        """
        images = self.samples(split, labelled=True)
        if training:
            self._learned = gallery(split, images)
            self.check_training(self._learned)
            return SampleDataset(spread(self._learned.pairs(), limit), processor, self.skips_bad)
        size = self.options.block_size
        number = limit if self.two_stage else images_in_blocks(images, limit, size)
        chosen = gallery(split, images, number)
        self._galleries[chosen.name] = chosen
        kind = OnePerImage if self.two_stage else WholeMatrix
        return kind(chosen, processor, self.skips_bad, size)

    def check_training(self, learned: Gallery) -> None:
        """Refuse a split that does not give enough false texts.

        Raises:
            UserError: It does not.
        """
        most = max(len(image.captions) for image in learned.images)
        if len(learned.texts) - most < self.options.num_false_texts:
            raise UserError(
                f"{len(learned.texts)} texts do not give {self.options.num_false_texts} of other images",
                where="task.num_false_texts",
            )

    def collate(self, items: Sequence[Item | None], processor: Processor, training: bool = False) -> Batch:
        """Images with K texts each: those of a block; for training see :meth:`training_batch`."""
        good = usable(items)
        samples = [sample for sample, _ in good]
        pixels_B3HW = torch.stack([pixels for _, pixels in good])
        if training:
            return self.training_batch(samples, pixels_B3HW, processor)
        texts = [[self._galleries[block.gallery].texts[text] for text in block.texts] for block in samples]
        return self._batch(samples, pixels_B3HW, texts, processor)

    def training_batch(self, pairs: Sequence[Pair], pixels_B3HW: Tensor, processor: Processor) -> Batch:
        """The true text first, then false ones; for the matching loss the true one again, last."""
        assert self._learned is not None
        texts, o = self._learned.texts, self.options
        false = self._learned.false_texts(pairs, o.num_false_texts, o.negatives_seed)
        rows = [[pair.text, *(texts[place] for place in row)] for pair, row in zip(pairs, false, strict=True)]
        if not o.matching_weight:
            return self._batch(pairs, pixels_B3HW, rows, processor)
        others = self._learned.other_images(pairs, o.negatives_seed)
        rows = [[*row, pair.text] for pair, row in zip(pairs, rows, strict=True)]
        batch = self._batch(pairs, pixels_B3HW, rows, processor)
        batch.inputs["other_images"] = pixels_B3HW[others]
        batch.targets["matching"] = torch.tensor([int(row == other) for row, other in enumerate(others)])
        return batch

    def _batch(
        self,
        samples: Sequence[Any],
        pixels_B3HW: Tensor,
        texts: Sequence[Sequence[str]],
        processor: Processor,
    ) -> Batch:
        ids_BKL, mask_BKL = processor.texts([[self.clean(text) for text in row] for row in texts])
        inputs = {"pixel_values": pixels_B3HW, "input_ids": ids_BKL, "attention_mask": mask_BKL}
        return Batch(inputs, instance_ids([sample.id for sample in samples]), {}, list(samples))

    def inputs(
        self, images: Sequence[Image.Image], texts: Sequence[str], processor: Processor
    ) -> dict[str, Tensor]:
        """Pictures of the user's own, each with one text."""
        inputs = super().inputs(images, texts, processor)
        for name in ("input_ids", "attention_mask"):
            inputs[name] = inputs[name][:, None]
        return inputs

    # --- loss, predictions, scores ---

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """Cross-entropy over the scores (B, K) of a text each, the first is the true one; and matching."""
        scores_BK = self.logits(output, batch).float()
        true_B = torch.zeros(len(scores_BK), dtype=torch.long, device=scores_BK.device)
        ranking = F.cross_entropy(scores_BK, true_B)
        if not isinstance(output, Ranking):
            return ranking
        matching = F.cross_entropy(output.matching.float(), batch.targets["matching"])
        return ranking + self.options.matching_weight * matching

    def logits(self, output: Any, batch: Batch) -> Tensor:
        """The scores (B, K)."""
        return output.scores if isinstance(output, Ranking) else output

    def predict(self, output: Tensor, batch: Batch, processor: Processor) -> list[Record]:
        """The scores of every block, from which :meth:`finish` makes records."""
        scores_BK = output.float().cpu().numpy()
        return [
            {
                "id": block.id,
                "type": "all",
                "question": "",
                "prediction": "",
                "reference": None,
                "score": None,
                "part_of": block.image,
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
        return record_of(sample.id, prediction)

    def finish(self, records: list[Record]) -> list[Record]:
        """One record per image from the records of all blocks.

        Its prediction are ranks (1 is first): that of its best text among all texts, then, for each of its
        texts, that of the image among all images. Images that were skipped are left out, with their texts.
        """
        if not records:
            return []
        found, matrix = complete(self._galleries[records[0]["block"].gallery], records)
        return ranked(found, matrix, matrix)

    def summarize(self, records: Sequence[Record]) -> dict[str, Any]:
        """Mean recall and the six recalls it is the mean of, with the size of the matrix.

        In two stages also what was spent on an image in the mean: ``first_stage_gmacs``,
        ``second_stage_gmacs``; and the number of all pairs that were scored.
        """
        summary = super().summarize(records)
        image_ranks, text_ranks, image_of_text = ranks_of(records)
        estimates = recalls(image_ranks, text_ranks, image_of_text)
        summary |= {"images": len(image_ranks), "texts": len(text_ranks)}
        for name, estimate in estimates.items():
            summary |= estimated(name, estimate)
        for name in ("scored_pairs", *_STAGES):
            if all(name in record for record in records):
                total = sum(record[name] for record in records)
                summary[name] = total / len(records) if name in _STAGES else total
        return summary

    def rescore(self, records: Sequence[Record], split: str) -> list[Record]:
        """Stored ranks as records.

        Raises:
            UserError: They are not of the split's images, or not as many as an image has texts.
        """
        by_id = {sample.id: sample for sample in self.samples(split, labelled=True)}
        refuse_unknown(records, by_id, split)
        texts = sum(len(sample.captions) for sample in by_id.values())
        for record in records:
            ranks, captions = record["prediction"], by_id[record["id"]].captions
            most = [texts, *[len(by_id)] * len(captions)]
            if not isinstance(ranks, list) or len(ranks) != len(most) or not all(map(_is_rank, ranks, most)):
                raise UserError(
                    f"the prediction for id {record['id']} is {shown(ranks)}, not the rank of the best text "
                    f"(1 to {texts}) and {len(captions)} ranks of the image (1 to {len(by_id)})",
                    where=place_of(record),
                )
        return scored([self.record(by_id[record["id"]], record["prediction"]) for record in records])

    def submission(self, records: Sequence[Record]) -> Any:
        """There is no official format.

        Raises:
            UserError: Always.
        """
        self.check_submission([record["id"] for record in records])

    def check_submission(self, ids: Sequence[Any]) -> None:
        """There is no official format, which is known before predictions are made.

        Raises:
            UserError: Always.
        """
        raise UserError(
            "retrieval has no official submission format",
            where="--submission-out",
            hint="--predictions-out writes the ranks of every image and text",
        )


class ContrastiveRetrievalTask(RetrievalTask):
    """Retrieval by a backbone that contrasts; see :class:`smarttrim_cli.tasks.base.TwoStageTask`."""

    loss: Any

    def __init__(self, options: Options, log: Callable[[str], None]) -> None:
        super().__init__(options, log)
        self.two_stage, self.num_candidates = options.two_stage, options.num_candidates
        self.block_size = options.block_size
        self.loss = ContrastiveLoss(options.queue_size, options.momentum, options.alpha)

    def __getstate__(self) -> dict[str, Any]:
        """Without the loss: only processes that load data get a pickled task."""
        return {**self.__dict__, "loss": None}

    def check_training(self, learned: Gallery) -> None:
        """Refuse a single image; tell the loss how long an epoch is.

        Raises:
            UserError: There is nothing to contrast with.
        """
        if len(learned.images) < 2:
            raise UserError("one image cannot be told from others", where="task.data")
        self.loss.epoch_size = len(learned.texts)

    def training_batch(self, pairs: Sequence[Pair], pixels_B3HW: Tensor, processor: Processor) -> Batch:
        """Images with their true text, and which of them are the same."""
        assert self._learned is not None
        batch = self._batch(pairs, pixels_B3HW, [[pair.text] for pair in pairs], processor)
        images = [self._learned.image_of_text[pair.place] for pair in pairs]
        batch.inputs["image_ids"] = torch.tensor(images)
        return batch

    def logits(self, output: Contrast, batch: Batch) -> Tensor:
        """The matching logits of pairs and hard negatives, (3B, 2)."""
        return output.matching.flatten(0, 1)

    def text_inputs(self, found: Gallery, processor: Processor) -> tuple[Tensor, Tensor]:
        """Tokens and mask of all texts of a gallery, (T, L)."""
        return processor.tokens([self.clean(text) for text in found.texts])

    def ranked(
        self,
        found: Gallery,
        image_to_text: ScoreMatrix,
        text_to_image: ScoreMatrix,
        costs: Sequence[dict[str, float]],
    ) -> list[Record]:
        """Records of images ranked in two stages, with what each cost."""
        records = ranked(found, image_to_text, text_to_image)
        return [
            {**record, "scored_pairs": cost["pairs"], **{name: cost[name] for name in _STAGES}}
            for record, cost in zip(records, costs, strict=True)
        ]


def _is_rank(value: Any, most: int) -> bool:
    """A whole number from 1; None says that the pair was no candidate."""
    return value is None or (type(value) is int and 1 <= value <= most)


def build(options: Options, log: Callable[[str], None], style: str) -> RetrievalTask:
    """The task; data are read when first needed."""
    need_style(FORM, style, [MATCHES, CONTRASTS])
    return ContrastiveRetrievalTask(options, log) if style == CONTRASTS else RetrievalTask(options, log)

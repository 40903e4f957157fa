"""Image captioning with BLIP's decoder (Li et al. 2022), ``models/blip.py`` of the official code.

A caption follows a prompt, whose tokens are given, not learned; the loss is cross-entropy with label
smoothing 0.1, mean over the captions' tokens. Captions are written by beam search and scored by CIDEr and
BLEU.

Legend: B images, P prompt tokens, T tokens, V vocabulary, n real targets.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset

from smarttrim_cli.data.processor import Processor
from smarttrim_cli.data.samples import CaptionedImage
from smarttrim_cli.forms import GENERATES, Decoding, Form
from smarttrim_cli.metrics import captions
from smarttrim_cli.metrics.coco_tools import Unavailable, ptb_tokenize
from smarttrim_cli.tasks._data import DataOptions, Item, SampleDataset, instance_ids, spread, usable
from smarttrim_cli.tasks._generation import next_tokens, target_rows, token_losses
from smarttrim_cli.tasks._task import DataTask, check_number_of_images, need_style
from smarttrim_cli.tasks.base import Batch, Record

FORM = "captioning"
_MEAN_STEPS = 15.2
"""Steps that the paper's 246.3 GMACs stand for: about 19 tokens with the prompt, a mean over captions."""


class Options(DataOptions):
    """Recipe section of this task."""

    form_name: ClassVar[str] = FORM
    clean_texts: bool = Field(
        default=True, description="captions learned without signs, as the official BLIP does"
    )
    prompt: str = Field(default="a picture of ", description="every caption starts with it, unseen")
    num_beams: int = Field(default=3, ge=1, le=1000, description="beams of the search")
    max_length: int = Field(
        default=20, ge=2, le=10_000, description="most tokens, start token and prompt included"
    )
    min_length: int = Field(default=5, ge=1, le=10_000, description="fewest tokens, counted likewise")
    extra_metrics: list[Literal["spice", "meteor", "rouge_l"]] = Field(
        default=[], description="further metrics at every evaluation; spice takes minutes"
    )


@functools.cache
def official_metric() -> bool:
    """Whether captions can be scored after the official tokenizer, which needs Java."""
    try:
        ptb_tokenize(["a"])
    except Unavailable:
        return False
    return True


class CaptioningTask(DataTask):
    """See :class:`smarttrim_cli.tasks.base.Task`."""

    @property
    def metric(self) -> str:  # type: ignore[override]
        """``cider`` where the official tokenizer runs; else ``cider_simple_tokens``, not to be compared."""
        return "cider" if official_metric() else f"cider{captions.SIMPLE}"

    @property
    def form(self) -> Form:
        """A decoder of captions."""
        o = self.options
        prompt = len(o.prompt.split()) + 1
        decoding = Decoding(o.num_beams, o.max_length, o.min_length)
        return Form(FORM, text_tokens=prompt, prompt_tokens=prompt, new_tokens=_MEAN_STEPS, decoding=decoding)

    # --- data ---

    def texts(self, split: str) -> list[str]:
        """Captions behind the prompt."""
        return [self._prompted(caption) for sample in self.samples(split) for caption in sample.captions]

    def questions(self, split: str) -> list[str]:
        """None: the backbone reads the same prompt for every image."""
        return []

    def written(self, split: str) -> list[str]:
        """What the backbone is to write, behind the prompt: all captions."""
        return [self.clean(caption) for sample in self.samples(split) for caption in sample.captions]

    def _prompted(self, caption: str) -> str:
        return str(self.options.prompt) + self.clean(caption)

    def dataset(
        self, split: str, processor: Processor, *, limit: int | None = None, training: bool = False
    ) -> Dataset[Any]:
        """Images; for training an item for each of an image's captions, as ``text``."""
        samples: Sequence[Any] = self.samples(split, labelled=training)
        if training:
            samples = [
                replace(sample, id=f"{sample.id}#{number}", text=caption)
                for sample in samples
                for number, caption in enumerate(sample.captions)
            ]
        return SampleDataset(spread(samples, limit), processor, self.skips_bad)

    def collate(self, items: Sequence[Item | None], processor: Processor, training: bool = False) -> Batch:
        """Stack images; with them prompt and caption for training, (B, 1, T), else the prompt, (B, P)."""
        good = usable(items)
        samples = [sample for sample, _ in good]
        prompt_P = self._prompt(processor)
        inputs, targets = {"pixel_values": torch.stack([pixels for _, pixels in good])}, {}
        if training:
            ids_B1T, mask_B1T = processor.texts([[self._prompted(sample.text)] for sample in samples])
            inputs.update(answer_ids=ids_B1T, answer_mask=mask_B1T)
            targets["caption"] = next_tokens(ids_B1T, mask_B1T, given=len(prompt_P))
        else:
            inputs["prompt_ids"] = prompt_P.expand(len(good), -1)
        return Batch(inputs, instance_ids([sample.id for sample in samples]), targets, samples)

    def _prompt(self, processor: Processor) -> Tensor:
        """Tokens of the prompt (P,), without the end token."""
        return processor.tokens([self.options.prompt])[0][0, :-1]

    def inputs(
        self, images: Sequence[Image.Image], texts: Sequence[str], processor: Processor
    ) -> dict[str, Tensor]:
        """Pictures of the user's own; the texts are not looked at."""
        check_number_of_images(len(images), len(texts), self.form)
        pixels = torch.stack([processor.preprocess(image) for image in images])
        return {"pixel_values": pixels, "prompt_ids": self._prompt(processor).expand(len(images), -1)}

    # --- loss, predictions, scores ---

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Loss of logits (B, 1, T, V), mean over all tokens of the batch's captions (the official mean)."""
        targets = batch.targets["caption"]
        return token_losses(output, targets).sum() / (targets >= 0).sum().clamp(min=1)

    def logits(self, output: Tensor, batch: Batch) -> Tensor:
        """The logits at real targets, (n, V)."""
        return target_rows(output, batch.targets["caption"])

    def answer(self, output: Tensor, processor: Processor) -> list[tuple[str, float]]:
        """Captions of tokens (B, T), without the prompt and without a confidence: nan."""
        start = len(self._prompt(processor))
        return [(processor.decode(tokens_T[start:]), math.nan) for tokens_T in output]

    def predict(self, output: Tensor, batch: Batch, processor: Processor) -> list[Record]:
        """The caption of every image; :meth:`finish` scores them."""
        written = self.answer(output, processor)
        return [self.record(sample, text) for sample, (text, _) in zip(batch.samples, written, strict=True)]

    def record(self, sample: CaptionedImage, prediction: str) -> Record:
        """The record of a caption; ``references`` are all captions of the image."""
        return {
            "id": sample.id,
            "type": sample.type or "all",
            "question": "",
            "prediction": prediction,
            "reference": sample.captions[0] if sample.captions else None,
            "references": list(sample.captions),
            "score": None,
        }

    def finish(self, records: list[Record]) -> list[Record]:
        """The records with CIDEr as their score: it weighs words by how rare they are in all references."""
        known = [record for record in records if record["references"]]
        if not known:
            return records
        scores = self._scores(known)[self.metric].per_instance or [None] * len(known)
        score_of = {record["id"]: score for record, score in zip(known, scores, strict=True)}
        return [{**record, "score": score_of.get(record["id"])} for record in records]

    def summarize(self, records: Sequence[Record]) -> dict[str, Any]:
        """CIDEr and BLEU of the split; what cannot be computed here says why."""
        summary = super().summarize(records)
        known = [record for record in records if record["references"]]
        if not known:
            return summary
        if f"{self.metric}_by_type" in summary:
            summary[f"{self.metric}_by_type"] = self._by_type(known)
        return {**captions.summary(self._scores(known, self.options.extra_metrics)), **summary}

    def _by_type(self, records: Sequence[Record]) -> dict[str, dict[str, float]]:
        """CIDEr of every type's images by themselves, as domains of NoCaps are scored.

        How rare a word is, is then judged by the captions of that type alone.
        """
        of_type: dict[str, list[Record]] = {}
        for record in records:
            of_type.setdefault(record["type"], []).append(record)
        found = {}
        for name in sorted(of_type):
            estimate = self._scores(of_type[name])[self.metric].estimate
            if estimate is not None:
                own = {self.metric: estimate.mean, "se": estimate.standard_error}
                found[name] = {**own, "count": estimate.count}
        return found

    def _scores(
        self, records: Sequence[Record], extras: Sequence[str] = ()
    ) -> dict[str, captions.CaptionScore]:
        """Official metrics; where those cannot be computed, also their like over simple tokens."""
        written = [record["prediction"] for record in records]
        references = [record["references"] for record in records]
        scores = captions.official_scores(written, references, extras)
        return scores if official_metric() else {**scores, **captions.simple_scores(written, references)}

    def submission(self, records: Sequence[Record]) -> list[dict[str, Any]]:
        """The official result format of COCO and NoCaps: ``[{image_id, caption}, ...]``."""
        return [{"image_id": record["id"], "caption": record["prediction"]} for record in records]


def build(options: Options, log: Callable[[str], None], style: str) -> CaptioningTask:
    """The task; data are read when first needed."""
    need_style(FORM, style, [GENERATES])
    return CaptioningTask(options, log)

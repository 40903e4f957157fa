"""Visual question answering (VQA v2 and its layout), classified or generated, as the backbone answers.

A classifier's loss is METER's: binary cross-entropy with soft targets over a vocabulary of answers, mean
times the number of answers. What a backbone that generates learns is in ``_vqa_generation.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from smarttrim_cli.data.processor import Processor
from smarttrim_cli.forms import CLASSIFIES, GENERATES, Form
from smarttrim_cli.tasks._data import Item
from smarttrim_cli.tasks._task import need_style
from smarttrim_cli.tasks._vqa import FORM, AnswerTask, Options
from smarttrim_cli.tasks._vqa_generation import GenerativeVqa
from smarttrim_cli.tasks.base import Batch

__all__ = ["FORM", "Options", "VqaTask", "build"]


class VqaTask(AnswerTask):
    """VQA for a backbone that classifies; see :class:`smarttrim_cli.tasks.base.Task`."""

    @property
    def form(self) -> Form:
        """A classifier over the answers; without labels, over ``num_answers``."""
        return Form(FORM, num_labels=len(self.vocab) if self.vocab else self.options.num_answers)

    def collate(self, items: Sequence[Item | None], processor: Processor, training: bool = False) -> Batch:
        """Pad texts, stack images, lay out soft targets (B, answers)."""
        batch = self.asked(items, processor)
        targets = torch.zeros(len(batch), len(self.answers))
        for row, sample in enumerate(batch.samples):
            for index, value in self.known.soft_targets(sample.answers or ()).items():
                targets[row, index] = value
        batch.targets["answers"] = targets
        return batch

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Binary cross-entropy with soft targets, mean over instances of the sum over answers (METER)."""
        targets = batch.targets["answers"]
        return F.binary_cross_entropy_with_logits(output.float(), targets) * targets.shape[1]

    def answer(self, output: Tensor, processor: Processor) -> list[tuple[str, float]]:
        """Likeliest answers of logits (B, answers), with their sigmoid: every answer has its own target.

        They are compared before the sigmoid, which is the same 1.0 for all logits from about 17.4 on.
        """
        best_B, index_B = output.float().max(-1)
        scores = zip(index_B.tolist(), best_B.sigmoid().tolist(), strict=True)
        return [(self.answers[i], score) for i, score in scores]


def build(options: Options, log: Callable[[str], None], style: str) -> AnswerTask:
    """The task; data are read when first needed."""
    need_style(FORM, style, [CLASSIFIES, GENERATES])
    return VqaTask(options, log) if style == CLASSIFIES else GenerativeVqa(options, log)

"""SNLI-VE, visual entailment: does an image entail a hypothesis, contradict it, or neither?

Trained with cross-entropy; accuracy overall and per class.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import ClassVar

from smarttrim_cli.data.samples import ENTAILMENT, EntailmentSample
from smarttrim_cli.forms import CLASSIFIES, Form
from smarttrim_cli.tasks._classification import Classification
from smarttrim_cli.tasks._data import DataOptions
from smarttrim_cli.tasks._task import need_style
from smarttrim_cli.tasks.base import Record

FORM = "snli_ve"


class Options(DataOptions):
    """Recipe section of this task."""

    form_name: ClassVar[str] = FORM


class SnliVeTask(Classification):
    """See :class:`smarttrim_cli.tasks.base.Task`."""

    classes = ENTAILMENT

    @property
    def form(self) -> Form:
        """A classifier of an image and a text."""
        return Form(FORM, num_labels=len(ENTAILMENT), text_tokens=10)

    def label(self, sample: EntailmentSample) -> str | None:
        """The annotated class."""
        return sample.label

    def record(self, sample: EntailmentSample, prediction: str) -> Record:
        """The record of a prediction; its type is the annotated class, so that scores come per class."""
        return {**super().record(sample, prediction), "type": sample.label or "all"}

    def submission(self, records: Sequence[Record]) -> str:
        """JSON lines ``{"pairID", "prediction"}``; SNLI-VE has no official server or format."""
        lines = ({"pairID": record["id"], "prediction": record["prediction"]} for record in records)
        return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def build(options: Options, log: Callable[[str], None], style: str) -> SnliVeTask:
    """The task; data are read when first needed."""
    need_style(FORM, style, [CLASSIFIES])
    return SnliVeTask(options, log)

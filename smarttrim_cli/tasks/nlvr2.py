"""NLVR2: is a statement about two images true? Accuracy, and consistency over the pairs of a statement.

Trained with cross-entropy, as METER and BLIP do. Class 1 is "True" in both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from smarttrim_cli.data.samples import StatementSample
from smarttrim_cli.errors import UserError
from smarttrim_cli.forms import CLASSIFIES, Form
from smarttrim_cli.metrics.accuracy import consistency
from smarttrim_cli.tasks._classification import Classification
from smarttrim_cli.tasks._data import DataOptions
from smarttrim_cli.tasks._summary import estimated
from smarttrim_cli.tasks._task import need_style
from smarttrim_cli.tasks.base import Record

FORM = "nlvr2"


class Options(DataOptions):
    """Recipe section of this task."""

    form_name: ClassVar[str] = FORM


class Nlvr2Task(Classification):
    """See :class:`smarttrim_cli.tasks.base.Task`."""

    classes = ("False", "True")

    def __init__(self, options: Options, log: Callable[[str], None]) -> None:
        super().__init__(options, log)
        self._pairs: dict[str | None, int] = {}

    def samples(self, split: str, *, labelled: bool = False) -> list[StatementSample]:
        """Samples of a split, read once; how many pairs every statement has there is known from then on."""
        samples: list[StatementSample] = super().samples(split, labelled=labelled)
        self._pairs.update(Counter(sample.statement for sample in samples))
        return samples

    @property
    def form(self) -> Form:
        """A classifier of two images and a text."""
        return Form(FORM, num_labels=2, images=2, text_tokens=19)

    def label(self, sample: StatementSample) -> str | None:
        """Whether the statement is true, as a text."""
        return None if sample.label is None else str(sample.label)

    def record(self, sample: StatementSample, prediction: str) -> Record:
        """The record of a prediction, with what consistency needs.

        ``statement`` says which sentence it is about, ``pairs`` how many pairs of images the split has.
        """
        own = {"statement": sample.statement, "pairs": self._pairs.get(sample.statement)}
        return {**super().record(sample, prediction), **own}

    def summarize(self, records: Sequence[Record]) -> dict[str, Any]:
        """Accuracy and, where statements are known, the share of those right for all their image pairs.

        Statements of which pairs are missing (a part of a split, broken images) do not count: to be right for
        fewer pairs is easier.
        """
        summary = super().summarize(records)
        known = [
            (record["statement"], bool(record["score"]))
            for record in records
            if record["score"] is not None and record["statement"] is not None
        ]
        there = Counter(statement for statement, _ in known)
        pairs = {record["statement"]: record.get("pairs") or 0 for record in records}
        known = [(statement, right) for statement, right in known if there[statement] >= pairs[statement]]
        if known:
            estimate = consistency([statement for statement, _ in known], [right for _, right in known])
            summary |= {**estimated("consistency", estimate), "statements": estimate.count}
        return summary

    def submission(self, records: Sequence[Record]) -> str:
        """Lines ``identifier,prediction``, which the official evaluation reads; it knows no quotes.

        Raises:
            UserError: An id has a comma or a line break.
        """
        self.check_submission([record["id"] for record in records])
        return "".join(f"{record['id']},{record['prediction']}\n" for record in records)

    def check_submission(self, ids: Sequence[Any]) -> None:
        """Find out before predictions are made whether :meth:`submission` can hold them.

        Raises:
            UserError: An id has a comma or a line break.
        """
        broken = next((name for name in ids if set(str(name)) & set(",\r\n")), None)
        if broken is not None:
            raise UserError(
                f"id {broken!r} has a comma or a line break, which the format of the submission cannot hold",
                where="--submission-out",
                hint="give the samples other ids",
            )


def build(options: Options, log: Callable[[str], None], style: str) -> Nlvr2Task:
    """The task; data are read when first needed."""
    need_style(FORM, style, [CLASSIFIES])
    return Nlvr2Task(options, log)

"""VQA for a backbone that generates: BLIP (Li et al. 2022), ``models/blip_vqa.py`` of the official code.

It learns every distinct answer of a question, weighted by the share of annotators who gave it: the losses of
an answer's tokens are summed, times the weight, summed over answers and divided by the number of questions.
It predicts by ranking all answers of the vocabulary, or by writing one.

Legend: B questions, A answers per question, C candidates, T tokens, V vocabulary, n real targets.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from smarttrim_cli.data.processor import Processor
from smarttrim_cli.data.samples import VqaSample
from smarttrim_cli.data.vocab import AnswerVocab
from smarttrim_cli.errors import UserError
from smarttrim_cli.forms import Decoding, Form
from smarttrim_cli.tasks._data import Item
from smarttrim_cli.tasks._generation import next_tokens, target_rows, token_losses
from smarttrim_cli.tasks._vqa import FORM, AnswerTask
from smarttrim_cli.tasks.base import Batch


class GenerativeVqa(AnswerTask):
    """See :class:`smarttrim_cli.tasks.base.Task`."""

    _candidates: tuple[Processor, Tensor, Tensor] | None = None

    @property
    def form(self) -> Form:
        """A decoder of answers."""
        o = self.options
        candidates = min(o.num_candidates, len(self.vocab) if self.vocab else o.num_answers)
        decoding = Decoding(o.num_beams, o.max_length, o.min_length, candidates, rank=self.ranks)
        return Form(FORM, text_tokens=10, new_tokens=4, decoding=decoding)

    @property
    def ranks(self) -> bool:
        """Whether answers are chosen from the vocabulary, not written."""
        return bool(self.options.inference == "rank")

    def new_vocab(self, samples: Sequence[VqaSample]) -> AnswerVocab:
        """As for all; a model that writes needs no frequent answers: without any it gets those there are."""
        try:
            return super().new_vocab(samples)
        except UserError:
            if self.ranks:
                raise
        return AnswerVocab.from_samples(samples, 1)

    def candidate_tokens(self, processor: Processor) -> int:
        """Tokens that the decoder reads of each candidate: those of the longest but its end; 0 if none is."""
        return self._ranked(processor)["candidate_ids"].shape[1] - 1 if self.ranks else 0

    def texts(self, split: str) -> list[str]:
        """Questions and all answers: the tokenizer has to know both."""
        given = {answer for sample in self.samples(split) for answer in sample.answers or ()}
        return [*self.questions(split), *sorted(given.union(self.vocab.answers if self.vocab else ()))]

    def collate(self, items: Sequence[Item | None], processor: Processor, training: bool = False) -> Batch:
        """Questions and images; with them the annotated answers for training, else all candidates."""
        batch = self.asked(items, processor)
        if training:
            ids_BAT, mask_BAT, weights_BA = annotated_answers(batch.samples, processor)
            batch.inputs.update(answer_ids=ids_BAT, answer_mask=mask_BAT)
            batch.targets.update(answers=next_tokens(ids_BAT, mask_BAT), weights=weights_BA)
        elif self.ranks:
            batch.inputs.update(self._ranked(processor))
        return batch

    def inputs(
        self, images: Sequence[Image.Image], texts: Sequence[str], processor: Processor
    ) -> dict[str, Tensor]:
        """Pictures and questions of the user's own; with the candidates, if answers are ranked."""
        inputs = super().inputs(images, texts, processor)
        return {**inputs, **self._ranked(processor)} if self.ranks else inputs

    def _ranked(self, processor: Processor) -> dict[str, Tensor]:
        """Tokens of all answers, (C, T)."""
        if self._candidates is None or self._candidates[0] is not processor:
            self._candidates = (processor, *processor.tokens(self.answers))
        return {"candidate_ids": self._candidates[1], "candidate_mask": self._candidates[2]}

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Weighted loss of the answers' logits (B, A, T, V), mean over questions."""
        answers_BA = token_losses(output, batch.targets["answers"]).sum(-1)
        return (answers_BA * batch.targets["weights"]).sum() / len(batch)

    def logits(self, output: Tensor, batch: Batch) -> Tensor:
        """The logits at real targets, (n, V)."""
        return target_rows(output, batch.targets["answers"])

    def answer(self, output: Tensor, processor: Processor) -> list[tuple[str, float]]:
        """Best answers of scores (B, C), with their probability among the candidates; or written ones.

        Written answers, tokens (B, T), come without a confidence: nan.
        """
        if not self.ranks:
            return [(processor.decode(tokens_T), math.nan) for tokens_T in output]
        best_B, index_B = output.float().softmax(-1).max(-1)
        return [(self.answers[i], p) for i, p in zip(index_B.tolist(), best_B.tolist(), strict=True)]


def annotated_answers(samples: Sequence[VqaSample], processor: Processor) -> tuple[Tensor, Tensor, Tensor]:
    """The distinct answers of every question: ids and mask (B, A, T), weights (B, A).

    A weight is the share of the annotators; questions with fewer answers than others have weight and mask 0.
    Annotators who left it blank have said nothing that could be learned.
    """
    counts = [Counter(filter(str.strip, sample.answers or ())) for sample in samples]
    most = max(1, *map(len, counts))
    rows = [[*count, *[""] * (most - len(count))] for count in counts]
    ids_BAT, mask_BAT = processor.texts(rows)
    asked = [len(sample.answers or ()) for sample in samples]
    shares = [[n / people for n in count.values()] for count, people in zip(counts, asked, strict=True)]
    weights_BA = torch.tensor([[*row, *[0.0] * (most - len(row))] for row in shares])
    there_BA1 = (weights_BA > 0).long()[..., None]
    return ids_BAT, mask_BAT * there_BA1, weights_BA

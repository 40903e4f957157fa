"""Scores of generated captions: BLEU, CIDEr, ROUGE-L, METEOR and SPICE.

The official numbers (COCO caption evaluation) are those after its PTB tokenizer, which needs Java and the
package pycocoevalcap; without them they are left out, with the reason, and never approximated under the
same name. BLEU and CIDEr over plain words (:func:`simple_scores`) can be computed anywhere, under names of
their own.

In either case BLEU and CIDEr are computed by ``bleu.py`` and ``cider.py``, which the tests hold equal to
the scorers of pycocoevalcap. The official CIDEr is CIDEr-D.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from smarttrim_cli.metrics import coco_tools
from smarttrim_cli.metrics.bleu import bleu
from smarttrim_cli.metrics.cider import cider
from smarttrim_cli.metrics.coco_tools import Unavailable
from smarttrim_cli.metrics.stats import Estimate, mean_with_error
from smarttrim_cli.metrics.tokens import Tokens, check_references, simple_tokens

BLEU = ("bleu1", "bleu2", "bleu3", "bleu4")
EXTRAS = ("rouge_l", "meteor", "spice")
SIMPLE = "_simple_tokens"


@dataclass(frozen=True)
class CaptionScore:
    """One metric of a corpus of captions.

    Attributes:
        estimate: Score, standard error and number of captions; None where it could not be computed.
        per_instance: (N,) scores of the captions, where the metric has such.
        skipped: Why there is no score: "skipped: needs Java".
    """

    estimate: Estimate | None = None
    per_instance: tuple[float, ...] | None = None
    skipped: str | None = None


def simple_scores(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, CaptionScore]:
    """BLEU and CIDEr over simple tokens: ``bleu1_simple_tokens`` .. ``bleu4_...``, ``cider_simple_tokens``.

    Args:
        candidates: (N,) generated captions.
        references: (N,) lists of reference captions.

    Raises:
        ValueError: There are none, or one has no reference.
    """
    check_references(candidates, references)
    scores = _bleu_and_cider(
        [simple_tokens(caption) for caption in candidates],
        [[simple_tokens(caption) for caption in group] for group in references],
    )
    return {name + SIMPLE: score for name, score in scores.items()}


def official_scores(
    candidates: Sequence[str], references: Sequence[Sequence[str]], extras: Sequence[str] = EXTRAS
) -> dict[str, CaptionScore]:
    """The scores of the COCO caption evaluation: ``bleu1`` .. ``bleu4``, ``cider`` and the extras.

    What cannot be computed here is skipped, with the reason.

    Args:
        candidates: (N,) generated captions.
        references: (N,) lists of reference captions.
        extras: Which of ``rouge_l``, ``meteor`` and ``spice`` are wanted too; SPICE takes minutes.

    Raises:
        ValueError: There are no captions, or one has no reference.
    """
    check_references(candidates, references)
    try:
        # candidates and references apart, as the official evaluation passes them to the tokenizer
        texts = coco_tools.ptb_tokenize(candidates)
        flat = iter(coco_tools.ptb_tokenize([caption for group in references for caption in group]))
    except Unavailable as error:
        return {name: _skipped(error) for name in (*BLEU, "cider", *extras)}
    groups = [[next(flat) for _ in group] for group in references]
    scores = _bleu_and_cider([text.split() for text in texts], [[text.split() for text in g] for g in groups])
    for name in extras:
        try:
            scores[name] = _EXTRA[name](texts, groups)
        except Unavailable as error:
            scores[name] = _skipped(error)
    return scores


def summary(scores: dict[str, CaptionScore]) -> dict[str, Any]:
    """Scores as plain data: ``<name>`` and ``<name>_se``, or None and ``<name>_skipped`` with the reason."""
    content: dict[str, Any] = {}
    for name, score in scores.items():
        if score.estimate is None:
            content |= {name: None, f"{name}_skipped": score.skipped}
        else:
            content |= {name: score.estimate.mean, f"{name}_se": score.estimate.standard_error}
    return content


def _bleu_and_cider(
    candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]
) -> dict[str, CaptionScore]:
    estimates = zip(BLEU, bleu(candidates, references), strict=True)
    scores = {name: CaptionScore(estimate) for name, estimate in estimates}
    return {**scores, "cider": _mean(cider(candidates, references).tolist())}


def _rouge_l(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScore:
    from pycocoevalcap.rouge.rouge import Rouge

    scorer = Rouge()
    pairs = zip(candidates, references, strict=True)
    return _mean([float(scorer.calc_score([text], list(group))) for text, group in pairs])


def _meteor(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScore:
    """The corpus score is not the mean of the captions' scores; its error is taken from that mean."""
    corpus, per_instance = coco_tools.meteor(candidates, references)
    error = mean_with_error(per_instance).standard_error
    return CaptionScore(Estimate(corpus, error, len(per_instance)), tuple(per_instance))


def _spice(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScore:
    return _mean(coco_tools.spice(candidates, references))


_EXTRA: dict[str, Callable[[Sequence[str], Sequence[Sequence[str]]], CaptionScore]] = {
    "rouge_l": _rouge_l,
    "meteor": _meteor,
    "spice": _spice,
}


def _mean(per_instance: Sequence[float]) -> CaptionScore:
    return CaptionScore(mean_with_error(per_instance), tuple(per_instance))


def _skipped(error: Unavailable) -> CaptionScore:
    return CaptionScore(skipped=f"skipped: {error}")

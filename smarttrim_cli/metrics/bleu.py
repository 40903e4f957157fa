"""BLEU-1 to BLEU-4 of a corpus (Papineni et al. 2002), as the COCO caption evaluation computes it.

That is: clipped n-gram counts summed over the corpus, geometric mean of the precisions, brevity penalty with
the reference length closest to each candidate's (the shorter of two equally close ones).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from smarttrim_cli.metrics.stats import Estimate, bootstrap_error
from smarttrim_cli.metrics.tokens import MAX_ORDER, NGram, Tokens, check_references, ngram_counts

_TINY, _SMALL = 1e-15, 1e-9  # the official code's guards against 0 / 0
Floats = NDArray[np.float64]


def bleu(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> list[Estimate]:
    """BLEU-1 .. BLEU-4 (0 to 1); standard errors by bootstrap over instances, 1,000 draws with seed 0.

    Args:
        candidates: (N,) tokens of the captions.
        references: (N,) lists of the tokens of the reference captions.

    Raises:
        ValueError: There are none, or one has no reference.
    """
    statistics_NS = bleu_statistics(candidates, references)
    scores = bleu_of(statistics_NS.sum(axis=0))
    errors = bootstrap_error(lambda drawn: bleu_of(statistics_NS[drawn].sum(axis=0)), len(statistics_NS))
    return [
        Estimate(float(score), float(error), len(statistics_NS))
        for score, error in zip(scores, errors, strict=True)
    ]


def bleu_statistics(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> Floats:
    """What BLEU needs to know of each instance: (N, 10); it is summed over a corpus.

    The columns: length, length of the closest reference, n-grams found in a reference (4), n-grams (4).
    """
    check_references(candidates, references)
    return np.array(
        [_statistics(*pair) for pair in zip(candidates, references, strict=True)], dtype=np.float64
    )


def _statistics(candidate: Tokens, references: Sequence[Tokens]) -> list[int]:
    length = len(candidate)
    closest = min((abs(len(reference) - length), len(reference)) for reference in references)[1]
    available = Counter[NGram]()
    for reference in references:
        available |= ngram_counts(reference)
    found = [0] * MAX_ORDER
    for ngram, count in ngram_counts(candidate).items():
        found[len(ngram) - 1] += min(count, available[ngram])
    return [length, closest, *found, *(max(0, length - order) for order in range(MAX_ORDER))]


def bleu_of(statistics_S: Floats) -> Floats:
    """(4,) BLEU-1 .. BLEU-4 of a corpus from its summed statistics (10,)."""
    length, closest = statistics_S[:2]
    found_O, total_O = statistics_S[2 : 2 + MAX_ORDER], statistics_S[2 + MAX_ORDER :]
    products_O = np.cumprod((found_O + _TINY) / (total_O + _SMALL))
    ratio = (length + _TINY) / (closest + _SMALL)
    penalty = np.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    return products_O ** (1 / np.arange(1, MAX_ORDER + 1)) * penalty

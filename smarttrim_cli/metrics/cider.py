"""CIDEr-D (Vedantam et al. 2015), as the COCO caption evaluation computes what it calls "CIDEr".

Per order n the tf-idf vectors of candidate and reference are compared by their cosine, with the candidate's
entries clipped to the reference's and a Gaussian penalty (sigma 6) on the difference in length; the score
is the mean over n = 1..4 and over references, times 10. A document is the set of an image's references. Two
habits of the official code are kept: a length is the number of bigrams, and n-grams that no reference has
count as occurring in one document.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smarttrim_cli.metrics.tokens import MAX_ORDER, NGram, Tokens, check_references, ngram_counts

_SIGMA = 6.0
_SCALE = 10.0


@dataclass(frozen=True)
class _Vector:
    """Weights of a caption's n-grams, their norm per order, the caption's length in bigrams."""

    weights: dict[NGram, float]
    norms: list[float]
    bigrams: int


def cider(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> NDArray[np.float64]:
    """CIDEr-D of each instance (N,), 0 to 10; the corpus score is its mean (1.2 is often printed as 120).

    The document frequencies come from these references, so a score depends on the rest of the corpus; with a
    single instance every weight, and the score, is 0.

    Args:
        candidates: (N,) tokens of the captions.
        references: (N,) lists of the tokens of the reference captions.

    Raises:
        ValueError: There are none, or one has no reference.
    """
    check_references(candidates, references)
    counted = [[ngram_counts(reference) for reference in group] for group in references]
    documents = Counter(ngram for group in counted for ngram in set().union(*group))
    log_count = math.log(len(counted))
    scores = []
    for candidate, group in zip(candidates, counted, strict=True):
        vector = _vector(ngram_counts(candidate), documents, log_count)
        similar = [_similarity(vector, _vector(counts, documents, log_count)) for counts in group]
        scores.append(_SCALE * sum(similar) / len(similar))
    return np.array(scores)


def _vector(counts: Counter[NGram], documents: Counter[NGram], log_count: float) -> _Vector:
    """Weights tf * idf with idf = log(N / documents)."""
    weights = {
        ngram: count * (log_count - math.log(max(1, documents[ngram]))) for ngram, count in counts.items()
    }
    squares = [0.0] * MAX_ORDER
    for ngram, weight in weights.items():
        squares[len(ngram) - 1] += weight * weight
    bigrams = sum(count for ngram, count in counts.items() if len(ngram) == 2)
    return _Vector(weights, [math.sqrt(square) for square in squares], bigrams)


def _similarity(candidate: _Vector, reference: _Vector) -> float:
    """Mean over the orders of the clipped cosine, with the penalty on length."""
    products = [0.0] * MAX_ORDER
    for ngram, weight in candidate.weights.items():
        other = reference.weights.get(ngram, 0.0)
        products[len(ngram) - 1] += min(weight, other) * other
    cosines = [
        product / (one * other) if one and other else 0.0
        for product, one, other in zip(products, candidate.norms, reference.norms, strict=True)
    ]
    difference = candidate.bigrams - reference.bigrams
    return sum(cosines) / MAX_ORDER * math.exp(-(difference**2) / (2 * _SIGMA**2))

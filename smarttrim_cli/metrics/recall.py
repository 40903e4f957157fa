"""Recall at k of image-text retrieval, in both directions, from scores that arrive block by block.

A query is a hit at k if a true match is among its k best. Defined as in the evaluation of METER and BLIP,
but for ties: **a tie counts against the model** (a false match with the same score ranks higher), so that a
model which gives every pair the same score finds nothing; in the official code ties fall as sorting leaves
them.

Shapes: I images, T texts, Q queries. ``image_of_text_T`` holds the index of each text's image; an image may
have any number of texts above 0 (5 in COCO and Flickr30K).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smarttrim_cli.metrics.stats import Estimate, mean_with_error

CUTOFFS = (1, 5, 10)
IMAGE_TO_TEXT, TEXT_TO_IMAGE = "image_to_text", "text_to_image"
Floats = NDArray[np.float64]
Scores = NDArray[np.float32]
Indices = NDArray[np.intp]


class ScoreMatrix:
    """Scores of images against texts; what is not scored is -inf and cannot be found.

    With candidates chosen per direction (two stages: BLIP), each direction has a matrix of its own.

    It takes 4 * I * T bytes: 20 MB for 1,000 x 5,000 (Flickr30K), 500 MB for 5,000 x 25,000 (COCO).

    Attributes:
        scores_IT: The matrix so far, float32.
        image_of_text_T: Index of each text's image.
    """

    def __init__(self, image_of_text: ArrayLike) -> None:
        self.image_of_text_T = _checked(image_of_text)
        shape = (int(self.image_of_text_T.max()) + 1, len(self.image_of_text_T))
        self.scores_IT: Scores = np.full(shape, -np.inf, dtype=np.float32)

    def add(self, images: Sequence[int], texts: Sequence[int], scores: ArrayLike) -> None:
        """Put a block in its place; what was there before is overwritten.

        Args:
            images: (i,) indices of the block's images.
            texts: (t,) indices of its texts.
            scores: (i, t), higher is better; -inf where a pair is no candidate.

        Raises:
            ValueError: A score is not a number (nan), or the shapes do not fit.
        """
        scores_it = np.asarray(scores, dtype=np.float32)
        if scores_it.shape != (len(images), len(texts)):
            raise ValueError(f"expected scores {(len(images), len(texts))}, found {scores_it.shape}")
        if np.isnan(scores_it).any():
            row, column = np.argwhere(np.isnan(scores_it))[0]
            raise ValueError(f"the score of image {images[row]} and text {texts[column]} is nan")
        self.scores_IT[np.ix_(np.asarray(images), np.asarray(texts))] = scores_it

    @property
    def scored_pairs(self) -> int:
        """Number of pairs that were scored."""
        return sum(int(np.count_nonzero(row_T > -np.inf)) for row_T in self.scores_IT)

    def image_to_text_ranks(self) -> Floats:
        """(I,) per image the rank of its best text among all texts (1 is first; inf: none is a candidate)."""
        ranks_I = np.empty(len(self.scores_IT))
        for image, row_T in enumerate(self.scores_IT):
            own_T = self.image_of_text_T == image
            best = row_T[own_T].max()
            ranks_I[image] = 1 + np.count_nonzero(row_T[~own_T] >= best) if best > -np.inf else np.inf
        return ranks_I

    def text_to_image_ranks(self) -> Floats:
        """(T,) per text the rank of its image among all images (1 is first; inf: it is no candidate)."""
        own_T = self.scores_IT[self.image_of_text_T, np.arange(len(self.image_of_text_T))]
        ranks_T = np.zeros(len(own_T))
        for row_T in self.scores_IT:
            ranks_T += row_T >= own_T  # the image itself is counted too: the first rank is 1
        return np.where(own_T > -np.inf, ranks_T, np.inf)


def hits(ranks: ArrayLike) -> Floats:
    """Hits at 1, 5 and 10 of queries with the given ranks (Q,): (Q, 3), 1 or 0."""
    return (np.asarray(ranks, dtype=np.float64)[:, None] <= np.asarray(CUTOFFS)).astype(np.float64)


def recalls(image_ranks: ArrayLike, text_ranks: ArrayLike, image_of_text: ArrayLike) -> dict[str, Estimate]:
    """All recalls with standard errors.

    Args:
        image_ranks: (I,) of :meth:`ScoreMatrix.image_to_text_ranks`.
        text_ranks: (T,) of :meth:`ScoreMatrix.text_to_image_ranks`.
        image_of_text: (T,) index of each text's image.

    Returns:
        Per direction ``<direction>_recall@1``, ``@5``, ``@10`` and ``<direction>_mean_recall`` over queries;
        ``mean_recall``, the mean of the six, over images (see :func:`mean_recall_per_image`).
    """
    estimates = {}
    for direction, ranks in ((IMAGE_TO_TEXT, image_ranks), (TEXT_TO_IMAGE, text_ranks)):
        hits_Q3 = hits(ranks)
        for column, cutoff in enumerate(CUTOFFS):
            estimates[f"{direction}_recall@{cutoff}"] = mean_with_error(hits_Q3[:, column])
        estimates[f"{direction}_mean_recall"] = mean_with_error(hits_Q3.mean(axis=1))
    per_image_I = mean_recall_per_image(image_ranks, text_ranks, image_of_text)
    estimates["mean_recall"] = mean_with_error(per_image_I)
    return estimates


def mean_recall_per_image(image_ranks: ArrayLike, text_ranks: ArrayLike, image_of_text: ArrayLike) -> Floats:
    """What each image, with its texts, adds to the mean of the six recalls: (I,), their mean is that mean.

    For standard errors and paired differences: an image and its texts are found or missed together, so they
    count as one instance.
    """
    image_of_text_T = _checked(image_of_text)
    found_I, found_T = hits(image_ranks).mean(axis=1), hits(text_ranks).mean(axis=1)
    texts_I = np.bincount(image_of_text_T, weights=found_T, minlength=len(found_I))
    return (found_I + texts_I * (len(found_I) / len(found_T))) / 2


def _checked(image_of_text: ArrayLike) -> Indices:
    """The mapping as an array, if every image from 0 on has a text."""
    image_of_text_T = np.asarray(image_of_text, dtype=np.intp)
    if image_of_text_T.size == 0:
        raise ValueError("there are no texts")
    missing = np.flatnonzero(np.bincount(image_of_text_T) == 0)
    if missing.size:
        raise ValueError(f"image {missing[0]} has no text, so nothing can be found for it")
    return image_of_text_T

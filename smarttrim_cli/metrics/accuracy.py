"""Accuracy of classification, and the consistency of NLVR2.

Consistency follows the official script (https://github.com/lil-lab/nlvr, ``nlvr2/eval/metrics.py``): the
share of distinct sentences for which the predictions of all their image pairs are right.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from smarttrim_cli.metrics.stats import Estimate, mean_with_error


def accuracy(predictions: Sequence[object], labels: Sequence[object]) -> Estimate:
    """Share of predictions (N,) that equal their label (N,), with its standard error.

    Raises:
        ValueError: There are none, or not as many labels.
    """
    return mean_with_error(_hits(predictions, labels))


def consistency(statements: Sequence[Hashable], correct: Sequence[bool]) -> Estimate:
    """Share of distinct statements with nothing but right predictions; ``count`` is the number of statements.

    Args:
        statements: (N,) which sentence each prediction is about. In NLVR2 that is the identifier
            ``split-set-pair-sentence`` without its third part.
        correct: (N,) whether the prediction is right.

    Raises:
        ValueError: There are none, or the lengths differ.
    """
    all_right: dict[Hashable, bool] = {}
    for statement, right in zip(statements, correct, strict=True):
        all_right[statement] = all_right.get(statement, True) and bool(right)
    return mean_with_error(list(all_right.values()))


def _hits(predictions: Sequence[object], labels: Sequence[object]) -> list[float]:
    return [float(one == other) for one, other in zip(predictions, labels, strict=True)]

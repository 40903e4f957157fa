"""Summaries of predictions: scores with standard errors, per type, paired differences, collapse."""

from __future__ import annotations

from collections import Counter
from typing import Any

from smarttrim_cli.engine.inference import Predictions
from smarttrim_cli.metrics.stats import paired_difference
from smarttrim_cli.tasks.base import Record, Task

_COLLAPSED = 0.95


def score_summary(task: Task, result: Predictions) -> dict[str, Any]:
    """Score, standard error, count and scores by type of one model on a split; costs if there are any."""
    summary = task.summarize(result.records)
    if result.macs:
        count = len(result.macs)
        summary["gmacs"] = sum(result.macs) / count / 1e9
        summary["gmacs_by_part"] = {part: macs / count / 1e9 for part, macs in result.parts.items()}
        summary |= as_published(result, full=False) | per_pair(result.records, result.macs)
    if result.kept:
        summary["kept"] = {group: sum(values) / len(values) for group, values in result.kept.items()}
    if result.skipped:
        summary["skipped"] = result.skipped
    return summary


def per_pair(records: list[Record], macs: list[float]) -> dict[str, float]:
    """GMACs per pair of image and text, where an instance is matched with many; else empty."""
    pairs = sum(record.get("scored_pairs", 0) for record in records)
    return {"gmacs_per_pair": sum(macs) / pairs / 1e9} if pairs else {}


def as_published(result: Predictions, full: bool) -> dict[str, float]:
    """Mean GMACs as the official code of decoders counts them, of one of the models; empty without any."""
    values = [pair[1] if full else pair[0] for pair in result.published]
    return {"gmacs_as_published": sum(values) / len(values) / 1e9} if values else {}


def paired(first: list[Record], second: list[Record]) -> dict[str, float]:
    """Difference of scores, first minus second, on the same instances, with a 95 % interval."""
    pairs = [
        (one["score"], two["score"])
        for one, two in zip(first, second, strict=True)
        if one["score"] is not None
    ]
    if len(pairs) < 2:
        return {}
    result = paired_difference([one for one, _ in pairs], [two for _, two in pairs])
    return {"mean": result.mean, "se": result.standard_error, "low": result.low, "high": result.high}


def collapse_warning(records: list[Record], trimmed: bool = True) -> str | None:
    """A warning if nearly all predictions are the same although the references differ.

    Args:
        records: Predictions.
        trimmed: Whether they are a trimmed model's, for the advice.
    """
    answers = Counter(str(record["prediction"]) for record in records)
    references = Counter(str(record["reference"]) for record in records if record["reference"] is not None)
    if len(records) < 20 or len(references) < 2:
        return None
    answer, number = answers.most_common(1)[0]
    usual = references.most_common(1)[0][1] / sum(references.values())
    share = number / len(records)
    if share < _COLLAPSED or share <= usual + 0.02:
        return None
    what, advice = "model", "train longer, or with another learning rate"
    if trimmed:
        what = "trimmed model"
        advice = "lower the trimmers' learning rate, or check that stable_init and curriculum are enabled"
    return f"the {what} has collapsed: {share:.0%} of its predictions are {answer!r}; {advice}"

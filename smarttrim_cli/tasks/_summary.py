"""Metrics of a split from the scores of its records; tasks add their own to these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from smarttrim_cli.metrics.stats import Estimate, mean_with_error, means_by_group
from smarttrim_cli.tasks.base import Record


def summarize(metric: str, records: Sequence[Record]) -> dict[str, Any]:
    """Mean score with standard error and count, overall and by type; the count alone without references."""
    scored = [record for record in records if record["score"] is not None]
    if not scored:
        return {"count": len(records)}
    scores = [record["score"] for record in scored]
    summary: dict[str, Any] = {**estimated(metric, mean_with_error(scores)), "count": len(scored)}
    by_type = means_by_group(scores, [record["type"] for record in scored])
    if len(by_type) > 1:
        summary[f"{metric}_by_type"] = {
            name: {metric: value.mean, "se": value.standard_error, "count": value.count}
            for name, value in by_type.items()
        }
    return summary


def estimated(name: str, estimate: Estimate) -> dict[str, float]:
    """An estimate as two entries of a summary: ``<name>`` and ``<name>_se``."""
    return {name: estimate.mean, f"{name}_se": estimate.standard_error}

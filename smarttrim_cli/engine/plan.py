"""What a recipe will do, before it does it: sparsities, kept fractions and predicted MACs."""

from __future__ import annotations

from typing import Any

from smarttrim_cli.engine.artifact import Bundle, parameter_count
from smarttrim_cli.engine.build import build, plan_for
from smarttrim_cli.pruning.plan import Plan
from smarttrim_cli.recipe import Recipe


def plan(recipe: Recipe) -> dict[str, Any]:
    """Predicted costs of a recipe; builds the model, reads the data, trains nothing."""
    bundle = build(recipe, lambda text: None)
    return describe_plan(recipe, bundle, plan_for(recipe, bundle))


def describe_plan(recipe: Recipe, bundle: Bundle, plan: Plan) -> dict[str, Any]:
    """A plan as plain data.

    Returns:
        ``full_gmacs``, ``trimmed_gmacs``, ``speedup``, ``groups`` (target_sparsity and kept per group),
        ``gmacs_by_part``, ``tokens`` and parameter counts.
    """
    full, trimmed = sum(plan.full_macs.values()), sum(plan.trimmed_macs.values())
    return {
        "output_dir": recipe.output_dir,
        "full_gmacs": full / 1e9,
        "trimmed_gmacs": trimmed / 1e9,
        "speedup": full / trimmed,
        "groups": {group: {"target_sparsity": 1 - kept, "kept": kept} for group, kept in plan.kept.items()},
        "gmacs_by_part": {
            part: {"full": plan.full_macs.get(part, 0.0) / 1e9, "trimmed": macs / 1e9}
            for part, macs in plan.trimmed_macs.items()
        },
        "tokens": plan.tokens,
        "parameters": {
            "backbone": parameter_count(bundle.model.backbone),
            "trimmers": parameter_count(bundle.model.trimmers),
        },
    }

"""What a recipe will do, before it does it: sparsities, kept fractions and predicted MACs."""

from __future__ import annotations

from typing import Any

import torch

from smarttrim_cli.engine.artifact import build_backbone, parameter_count
from smarttrim_cli.engine.build import TYPICAL_TEXT_TOKENS, attach, backbone_section, plan_for_model, start_of
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.pruning.plan import Plan
from smarttrim_cli.recipe import Recipe


def plan(recipe: Recipe) -> dict[str, Any]:
    """Predicted costs of a recipe from its configuration alone: no data, no weights, no memory for them."""
    start = start_of(recipe)
    if start.config is not None:
        labels = start.config["num_labels"]
    else:
        labels = recipe.task.options_dict().get("num_answers", 3129)
    with torch.device("meta"):
        backbone = build_backbone(backbone_section(recipe, start), labels)
        model = attach(recipe, backbone)
    return describe_plan(recipe, model, plan_for_model(recipe, model, TYPICAL_TEXT_TOKENS))


def describe_plan(recipe: Recipe, model: TrimmedModel, plan: Plan) -> dict[str, Any]:
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
            "backbone": parameter_count(model.backbone),
            "trimmers": parameter_count(model.trimmers),
        },
    }

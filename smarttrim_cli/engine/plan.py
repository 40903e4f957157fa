"""What a recipe will do, before it does it: sparsities, kept fractions and predicted MACs."""

from __future__ import annotations

from typing import Any

import torch

from smarttrim_cli.engine.artifact import as_described, build_backbone, build_task, parameter_count
from smarttrim_cli.engine.build import attach, plan_for_model, section_of
from smarttrim_cli.engine.starting import backbone_section, start_of
from smarttrim_cli.engine.steering import check_steering
from smarttrim_cli.engine.student import apart, student_of
from smarttrim_cli.engine.warmup import check_warm_start
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.pruning.plan import Plan
from smarttrim_cli.recipe import Recipe


def plan(recipe: Recipe, *, check: bool = False) -> dict[str, Any]:
    """Predicted costs of a recipe from its configuration alone: no data, no weights, no memory for them.

    Args:
        recipe: The recipe.
        check: Also refuse switches of the strategy that training would refuse.

    Raises:
        UserError: Something the recipe asks for does not exist or does not fit.
    """
    with torch.device("meta"):
        backbone = backbone_without_data(recipe)
        model = attach(recipe, backbone)
    if check:
        check_warm_start(recipe, model)
        check_steering(recipe, model)
    return describe_plan(recipe, model, plan_for_model(recipe, model, backbone.form.text_tokens))


def backbone_without_data(recipe: Recipe) -> Any:
    """A recipe's backbone with random weights, of the sizes of its checkpoint if there is one."""
    start = start_of(recipe)
    task = build_task(section_of(recipe.task), recipe.backbone.name, log=lambda text: None)
    labels = start.labels_folder(task.form_name)
    if labels is not None:
        task.prepare_labels(labels)
    section, keep = apart(backbone_section(section_of(recipe.backbone), start), start)
    with as_described("backbone"):
        backbone = build_backbone(section, task.form)
    return student_of(section, keep, backbone)[1] if keep else backbone


def describe_plan(recipe: Recipe, model: TrimmedModel, plan: Plan) -> dict[str, Any]:
    """A plan as plain data.

    Returns:
        ``full_gmacs``, ``trimmed_gmacs`` (both also ``.._as_published`` where text is generated),
        ``speedup``, ``groups`` (target_sparsity and kept per group),
        ``gmacs_by_part``, ``tokens`` and parameter counts.
    """
    full, trimmed = sum(plan.full_macs.values()), sum(plan.trimmed_macs.values())
    published = {}
    if plan.published is not None:
        names = ("full_gmacs_as_published", "trimmed_gmacs_as_published")
        published = {name: macs / 1e9 for name, macs in zip(names, plan.published, strict=True)}
    return {
        "output_dir": recipe.output_dir,
        "full_gmacs": full / 1e9,
        "trimmed_gmacs": trimmed / 1e9,
        "speedup": full / trimmed,
        **published,
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

"""The decision threshold during training (``strategy.budget_controller``), and what it needs of a recipe."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from smarttrim_cli.errors import UserError
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.pruning.schedule import steered_threshold
from smarttrim_cli.pruning.sites import TOKEN, Site
from smarttrim_cli.recipe import Recipe
from smarttrim_cli.recipe.schema import BudgetController

LEVEL = "level/"
"""What the names of levels begin with among a step's losses."""


def check_steering(recipe: Recipe, model: TrimmedModel) -> None:
    """Refuse what could not work.

    Raises:
        UserError: The threshold is to be solved for trimmers that do not compare scores with it, or scores
            without the gradient of what is decided have nothing to learn from, or no budget.
    """
    controller, strategy = recipe.strategy.budget_controller, recipe.strategy
    if controller.enabled and controller.method == "solved":
        for name, trimmer in model.sites.items():
            if trimmer.relative:
                raise UserError(
                    f"{type(trimmer).__name__} ({name}) ranks tokens, so its threshold cannot be solved for",
                    where="strategy.budget_controller.method",
                    hint="integral",
                )
    if controller.enabled and controller.hold_heads:
        _check_heads(controller, model)
    if recipe.pruning is None or recipe.pruning.straight_through is True:
        return
    where = "pruning.straight_through"
    if not strategy.guidance_warmup.enabled:
        raise UserError(
            "scores would learn nothing: false needs the warm start",
            where=where,
            hint="true, or strategy.guidance_warmup.enabled=true",
        )
    if not controller.enabled:
        raise UserError(
            "a cost loss has no gradient without it, so nothing would hold the budget",
            where=where,
            hint="true, or strategy.budget_controller.enabled=true",
        )
    if recipe.pruning.straight_through == "heads":
        return
    for name, trimmer in model.sites.items():
        if Site.parse(name).kind != TOKEN and any(p.requires_grad for p in trimmer.parameters()):
            raise UserError(
                f"head trimmers learn by nothing else ({name})",
                where=where,
                hint="heads, or pruning.head_trimmer: null",
            )


def _check_heads(controller: BudgetController, model: TrimmedModel) -> None:
    where = "strategy.budget_controller.hold_heads"
    if controller.method != "solved":
        raise UserError("it goes with a solved threshold", where=where, hint="method: solved")
    heads = {name: trimmer for name, trimmer in model.sites.items() if Site.parse(name).kind != TOKEN}
    for name, trimmer in heads.items():
        if not trimmer.shifts:
            raise UserError(
                f"scores of {type(trimmer).__name__} ({name}) cannot be shifted", where=where, hint="false"
            )


def hold_heads(model: TrimmedModel, levels: Mapping[str, float]) -> None:
    """Shift the scores of heads so that they meet their own targets at the model's threshold, in place.

    Args:
        model: Its head trimmers.
        levels: Group to the threshold at which it would have met its target (:func:`.budget.head_levels`);
            trimmers that know their own have the last word.
    """
    for name, trimmer in model.sites.items():
        level = trimmer.level()
        level = levels.get(Site.parse(name).group) if level is None else level
        if level is not None:
            trimmer.shift_scores(float(model.threshold) - level)


def steer(threshold: Tensor, settings: BudgetController, solved: float, ratio: float, target: float) -> None:
    """Move the threshold after a step, in place.

    Args:
        threshold: Of the model.
        settings: Method and gain.
        solved: Threshold that the step's own scores call for (``solved``).
        ratio: Measured trimmed over full MACs of the step (``integral``).
        target: What they should have been.
    """
    if settings.method == "solved":
        threshold.lerp_(torch.full_like(threshold, solved), min(settings.gain, 1.0))
    else:
        threshold.fill_(steered_threshold(float(threshold), ratio, target, settings.gain))

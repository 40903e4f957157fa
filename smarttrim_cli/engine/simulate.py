"""Models without trained trimmers, made measurable: random decisions at a sparsity or a speed-up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from smarttrim_cli import registry
from smarttrim_cli.engine.artifact import trimmers_for
from smarttrim_cli.engine.build import trimmer_config
from smarttrim_cli.engine.plan import backbone_without_data
from smarttrim_cli.engine.runs import Run, is_run
from smarttrim_cli.errors import UserError
from smarttrim_cli.pruning.model import TrimmedModel, site_info
from smarttrim_cli.pruning.plan import make_plan
from smarttrim_cli.pruning.sites import TOKEN, Site
from smarttrim_cli.recipe import Recipe
from smarttrim_cli.trimmers._simulated import SimulatedTrimmer


def simulated_trimmers(
    backbone: Any, recipe: Recipe, groups: list[str] | None = None
) -> dict[str, nn.Module]:
    """The recipe's trimmers with random decisions."""
    config = trimmer_config(recipe.pruning)
    if groups is not None:
        config.groups = groups
    architecture = backbone.architecture()
    trimmers: dict[str, nn.Module] = {}
    for name, real in trimmers_for(backbone, config).items():
        if real.draws:  # ranks and draws of its own meet a target without training
            trimmers[name] = real
            continue
        kind = "random_token" if Site.parse(name).kind == TOKEN else "random_head"
        plugin = registry.load("trimmers", kind)
        options = plugin.Options()
        if kind == "random_token":
            options.every = (config.token or {}).get("every", 1)
        random = plugin.build(options, site_info(architecture, Site.parse(name)))
        trimmers[name] = SimulatedTrimmer(real, random)
    return trimmers


def measured_kept(target: str) -> dict[str, float]:
    """Kept fractions measured in a run.

    Raises:
        UserError: It is not a run, or it was not evaluated.
    """
    run = Run(Path(target))
    if not is_run(run.path) or not run.summary_file.exists():
        raise UserError(
            "not a run with a summary", where=target, hint="give a run directory that was evaluated"
        )
    kept = (run.summary().get("trimmed") or {}).get("kept")
    if not kept:
        raise UserError(
            "no kept fractions there", where=str(run.summary_file), hint=f"smarttrim evaluate {target}"
        )
    return dict(kept)


def random_model(recipe: Recipe, kept: dict[str, float] | None) -> TrimmedModel:
    """A model of random weights with random decisions.

    Args:
        recipe: Backbone, trimmers and targets; sizes come from its checkpoint if it names one.
        kept: Kept fractions per group instead of the recipe's targets.
    """
    torch.manual_seed(recipe.seed)
    backbone = backbone_without_data(recipe)
    groups = [group for group, fraction in kept.items() if fraction < 1.0] if kept else None
    model = TrimmedModel(backbone, simulated_trimmers(backbone, recipe, groups))
    apply_targets(model, recipe, kept)
    return model.eval()


def apply_targets(model: TrimmedModel, recipe: Recipe, kept: dict[str, float] | None) -> None:
    """Set random trimmers to kept fractions: given ones, or the plan, calibrated if it names a speed-up."""
    if not model.sites:
        return
    pruning = recipe.pruning
    tokens = model.backbone.token_counts(model.backbone.form.text_tokens)
    if kept is not None:
        model.set_targets({**dict.fromkeys(model.groups, 1.0), **kept})
        return
    assert pruning is not None
    sparsity = pruning.target_sparsity.groups() if pruning.target_sparsity else None
    plan = make_plan(model.architecture, model.sites, model.groups, tokens, sparsity, pruning.target_speedup)
    model.set_targets(plan.kept)  # met in the mean; calibrating on a few random instances would add noise

"""Other ways of trimming on a run's own weights, at equal MACs: ``evaluate --baseline``."""

from __future__ import annotations

from typing import Any

from torch import nn

from smarttrim_cli import registry
from smarttrim_cli.engine.artifact import Bundle
from smarttrim_cli.engine.devices import best_device
from smarttrim_cli.engine.importance import rank_heads
from smarttrim_cli.engine.inference import Predictions, batches, make_ready, predict, to_device
from smarttrim_cli.engine.report import Reporter
from smarttrim_cli.engine.scores import paired, score_summary
from smarttrim_cli.errors import UserError
from smarttrim_cli.pruning.calibrate import calibrate, measured_speedup
from smarttrim_cli.pruning.model import TrimmedModel, site_info
from smarttrim_cli.pruning.sites import TOKEN, Site
from smarttrim_cli.recipe import Recipe
from smarttrim_cli.trimmers._fixed import FixedTrimmer
from smarttrim_cli.trimmers.base import SiteInfo

_CALIBRATED_ON = 256
"""At most so many instances."""

_UNLIKE = 0.05
"""Ratios of MACs that are so far apart are no comparison at equal cost."""


def evaluate_baseline(
    name: str,
    bundle: Bundle,
    recipe: Recipe,
    split: str,
    limit: int | None,
    trimmed: Predictions,
    reporter: Reporter,
) -> dict[str, Any]:
    """Other trimmers on the same weights, with the same kept fractions, calibrated to the same MACs.

    The same MACs on the calibration split: what the split differs in from this one, both models share. What
    ranks heads by importance measures it there, too.

    Args:
        name: See :func:`baseline_trimmers`.
        bundle: The run's model, ready for inference.
        recipe: The run's.
        split: Split to score.
        limit: At most so many instances of it.
        trimmed: Of the run's own trimmed model on the same instances.
        reporter: Receives messages and progress.

    Returns:
        Scores and costs; ``speedup``; ``trimmed_minus_this``, a paired difference.
    """
    kept = {group: sum(values) / len(values) for group, values in trimmed.kept.items()}
    model = TrimmedModel(bundle.model.backbone, baseline_trimmers(bundle.model, name)).eval()
    make_ready(model, best_device())
    model.set_targets(kept)
    other = Bundle(model, bundle.task, bundle.processor, bundle.config)
    calibration = bundle.task.split_name("calibration")
    rank_heads(other, calibration, recipe.train.per_device_train_batch_size, recipe.seed)
    loader = batches(other, calibration, recipe.evaluate.batch_size, _CALIBRATED_ON)
    few = [to_device(batch, best_device()) for batch in loader]
    result = calibrate(model, few, measured_speedup(bundle.model, few))
    if not result.reached:
        reporter.warn(f"{name}: {result.speedup:.3f}x fewer MACs, not {result.target:.3f}x as the run")
    loader = batches(other, split, recipe.evaluate.batch_size, limit, recipe.train.dataloader_num_workers)
    predictions = predict(other, loader, ("packed",), reporter, f"evaluating {name} trimming")["packed"]
    summary = score_summary(bundle.task, predictions)
    summary["speedup"] = sum(predictions.full_macs) / sum(predictions.macs)
    own = sum(trimmed.full_macs) / sum(trimmed.macs)
    if abs(summary["speedup"] - own) > _UNLIKE * own:
        reporter.warn(
            f"{name}: {summary['speedup']:.2f}x fewer MACs on {split}, the run {own:.2f}x: they are alike "
            f"on {calibration}, but these scores are not of the same cost"
        )
    summary["trimmed_minus_this"] = paired(trimmed.records, predictions.records)
    return summary


def baseline_trimmers(model: TrimmedModel, name: str) -> dict[str, nn.Module]:
    """Trimmers for a baseline at the sites of a trimmed model.

    Args:
        model: Its trimmers stay where the baseline has none: a way of trimming tokens keeps the model's head
            trimmers, with their decisions, and the other way round.
        name: A trimmer, or what comes before its ``_token`` or ``_head``; ``random`` has both.

    Raises:
        UserError: There are no such trimmers, they need training, or the model has no sites for them.
    """
    plugins = {
        plugin.SCORES: (found, plugin)
        for found in _plugin_names(name)
        for plugin in [registry.load("trimmers", found)]
    }
    if not plugins:
        raise UserError(
            f"no baseline named {name!r}", where="--baseline", hint=f"known: {', '.join(known())}"
        )
    trimmers: dict[str, nn.Module] = {}
    replaced = False
    for site_name, own in model.sites.items():
        kind = "token" if Site.parse(site_name).kind == TOKEN else "head"
        if kind not in plugins:
            trimmers[site_name] = FixedTrimmer(own, float(model.threshold))
            continue
        found, plugin = plugins[kind]
        trimmers[site_name] = plugin.build(
            plugin.Options(), site_info(model.architecture, Site.parse(site_name))
        )
        replaced = True
        if any(True for _ in trimmers[site_name].parameters()):
            raise UserError(
                f"{found} needs training: in an evaluation its weights would be random",
                where="--baseline",
                hint=f"smarttrim finetune ... 'pruning.{kind}_trimmer={{name: {found}}}'",
            )
    if not replaced:
        raise UserError(
            f"{name} trims {'s and '.join(plugins)}s, and the run has no trimmers of that kind",
            where="--baseline",
        )
    return trimmers


def known() -> list[str]:
    """Baselines that need no training."""
    names = []
    for name in registry.names("trimmers"):
        plugin = registry.load("trimmers", name)
        heads = 1 if plugin.SCORES == "head" else 0
        trimmer = plugin.build(plugin.Options(), SiteInfo("vision.0.token", 0, 1, 8, 8, heads))
        if not any(True for _ in trimmer.parameters()):
            names.append(name.removesuffix("_token").removesuffix("_head"))
    return sorted(set(names))


def _plugin_names(name: str) -> list[str]:
    """The trimmers that a name stands for: of that very name, else one per kind."""
    there = registry.names("trimmers")
    return [name] if name in there else [n for n in (f"{name}_token", f"{name}_head") if n in there]

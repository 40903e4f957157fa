"""Full-size models that mean nothing but cost what real ones cost, for the benchmarks.

Weights are random; the trimmers are the recipe's own, and their final biases are set site by site so that on
a few random instances they keep the share that the plan for a speed-up gives that layer. So decisions are
taken, by the real trimmers, and differ between instances.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smarttrim_cli.engine.build import attach
from smarttrim_cli.engine.devices import describe_environment, keep_freed_memory
from smarttrim_cli.engine.plan import backbone_without_data
from smarttrim_cli.pruning.calibrate import calibrate
from smarttrim_cli.pruning.cost import instance_macs, planned_counts
from smarttrim_cli.pruning.economy import unprofitable
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.pruning.plan import make_plan
from smarttrim_cli.pruning.sites import Site
from smarttrim_cli.recipe import Recipe, load_recipe
from smarttrim_cli.tasks.base import Batch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
RECIPES = {
    "meter": ROOT / "recipes" / "meter" / "vqa_288_2.0x.yaml",
    "blip": ROOT / "recipes" / "blip" / "vqa_288_2.0x.yaml",
}
TEXT_TOKENS = 10
CALL_MACS = 4e7
"""What running a trimmer costs beside its MACs; ``docs/performance.md`` says how it was found."""
NO_IMAGE, NO_IMAGE_SITE = "no image", "vision.0.token"
STATIC_HEADS = "pruning.head_trimmer={name: saliency_head}"
FEW_TRIMMERS = "pruning.token_trimmer={name: cross_modal, hidden_dim: 32, every: 2}"
"""A third of the recipes' width, at every second layer."""

_TINY_TEXT = (
    "{hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, intermediate_size: 64, vocab_size: 90,"
    " max_position_embeddings: 64}"
)
TINY = {
    "meter": (
        "backbone.image_size=32",
        "backbone.max_text_length=20",
        "backbone.vision={model: vit_tiny_patch16_224,"
        " args: {patch_size: 8, embed_dim: 32, depth: 2, num_heads: 4}}",
        f"backbone.text={{model_type: roberta, config: {_TINY_TEXT}}}",
        "backbone.hidden_size=32",
        "backbone.num_attention_heads=4",
        "backbone.intermediate_size=64",
        "backbone.num_cross_layers=2",
        "task.num_answers=7",
    ),
    "blip": (
        "backbone.image_size=32",
        "backbone.max_text_length=20",
        "backbone.vision.config={patch_size: 8, hidden_size: 32, num_hidden_layers: 2,"
        " num_attention_heads: 4, intermediate_size: 64}",
        f"backbone.text.config={_TINY_TEXT.replace('}', ', sep_token_id: 2}')}",
    ),
}
"""Overrides that make tiny models, to see whether a benchmark runs."""


def recipe_of(backbone: str, *overrides: str) -> Recipe:
    """The recipe of a backbone's paper row at 2.0x, whose sparsities are scaled to other speed-ups."""
    return load_recipe(RECIPES[backbone], overrides)


def backbone_of(recipe: Recipe) -> Any:
    """A full-size backbone with random weights."""
    torch.manual_seed(0)
    return backbone_without_data(recipe).eval()


def examples(backbone: Any, count: int, seed: int = 0) -> list[dict[str, Tensor]]:
    """Random instances, one per batch."""
    return [backbone.example_inputs(TEXT_TOKENS, batch=1, seed=seed + index) for index in range(count)]


def joined(instances: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Instances as one batch; numbers that hold for a whole batch are the first one's."""
    return {
        name: torch.cat([inputs[name] for inputs in instances]) if value.dim() else value
        for name, value in instances[0].items()
    }


def trimmed_model(
    recipe: Recipe,
    backbone: Any,
    speedup: float | None,
    fit_on: dict[str, Tensor],
    groups: Callable[[str], bool] = lambda group: True,
    as_recipe: bool = False,
) -> TrimmedModel:
    """The recipe's trimmers on a backbone, keeping what the plan for a speed-up says; None keeps all.

    Args:
        recipe: Trimmers, and the proportions of the sparsities.
        backbone: May be shared between models.
        speedup: Full MACs over trimmed ones.
        fit_on: A batch of instances to fit the trimmers' biases on.
        groups: Which groups of sites get trimmers.
        as_recipe: With no speed-up: keep what the recipe's sparsities say, instead of all.
    """
    torch.manual_seed(1)
    trimmers = attach(recipe, backbone).sites
    model = TrimmedModel(backbone, {n: t for n, t in trimmers.items() if groups(Site.parse(n).group)}).eval()
    for trimmer in model.sites.values():
        trimmer.start_keeping(0.0)
        for module in trimmer.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
    counts = None
    if speedup is not None or as_recipe:
        assert recipe.pruning is not None and recipe.pruning.target_sparsity is not None
        tokens = backbone.token_counts(TEXT_TOKENS)
        sparsity = recipe.pruning.target_sparsity.groups()
        plan = make_plan(model.architecture, model.sites, model.groups, tokens, sparsity, speedup)
        counts = planned_counts(model.architecture, tokens, plan.kept, model.sites)
        rank_at_random(model, plan.kept)
    fit_biases(model, counts, fit_on)
    return model


def paying(recipe: Recipe, backbone: Any, speedup: float, fit: dict[str, Tensor]) -> TrimmedModel:
    """The recipe's trimmers without those that cost more time than they save, at the same speed-up."""
    model = trimmed_model(recipe, backbone, speedup, fit).prepare()  # it takes some twenty forward passes
    model.remove(unprofitable(model, as_batches(fit), CALL_MACS))
    calibrate(model, as_batches(fit), speedup)
    model.restore()
    return model


def without_image(recipe: Recipe, backbone: Any) -> TrimmedModel:
    """The model with no image token but the CLS from the first layer on, and nothing else trimmed."""
    sites = attach(recipe, backbone).sites
    model = TrimmedModel(backbone, {NO_IMAGE_SITE: sites[NO_IMAGE_SITE]}).eval()
    model.threshold.fill_(1e9)
    return model


def in_proportion(without: Mapping[str, float], macs: float) -> float:
    """The promise that is kept if time falls evenly from all image tokens to none.

    Args:
        without: ``speedup`` and ``macs`` of the model without image tokens, over the full one.
        macs: Full MACs over trimmed ones.
    """
    time, least = 1 / without["speedup"], 1 / without["macs"]
    return 1 / (macs * (time + (1 / macs - least) / (1 - least) * (1 - time)))


def as_batches(inputs: dict[str, Tensor]) -> list[Batch]:
    """Inputs as the batches of a task."""
    return [Batch(inputs, torch.arange(len(inputs["pixel_values"])), {})]


def rank_at_random(model: TrimmedModel, kept: Mapping[str, float]) -> None:
    """Give trimmers that rank heads by importance an importance, and their targets."""
    ranked = {name: trimmer for name, trimmer in model.sites.items() if trimmer.by_importance}
    importance = {name: torch.rand(heads) for name, heads in model.heads(ranked).items()}
    for name, trimmer in ranked.items():
        trimmer.set_importance(name, importance)
    if ranked:
        model.set_targets(kept)


@torch.no_grad()
def fit_biases(model: TrimmedModel, counts: Mapping[str, Any] | None, inputs: dict[str, Tensor]) -> None:
    """Shift every trimmer's final bias so that it keeps the planned number; None keeps all."""
    instances = len(next(iter(inputs.values())))
    handles = []

    def fit(name: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def hook(trimmer: nn.Module, args: Any, scores: Tensor) -> Tensor:
            if counts is None:
                shift = 20.0 - float(scores.min())
            else:
                values = scores.flatten().sort(descending=True).values
                wanted = min(round(float(counts[name]) * instances), len(values))
                shift = -float(values[max(wanted - 1, 0)]) + 1e-4
            _final_bias(trimmer).add_(shift)
            return scores + shift

        return hook

    fitted = {name: trimmer for name, trimmer in model.sites.items() if not trimmer.by_importance}
    for name, trimmer in fitted.items():
        handles.append(trimmer.register_forward_hook(fit(name)))
    model(inputs, "packed", instance_ids=torch.arange(instances))
    for handle in handles:
        handle.remove()


def _final_bias(trimmer: Any) -> Tensor:
    return trimmer.local[-1].bias if hasattr(trimmer, "local") else trimmer.mlp[-1].bias


def macs(model: TrimmedModel, inputs: dict[str, Tensor]) -> tuple[float, float]:
    """Mean GMACs of instances, trimmed and full."""
    with torch.no_grad():
        trimmed_B, full_B = instance_macs(model, model(inputs, "packed").decisions)
    return float(trimmed_B.mean()) / 1e9, float(full_B.mean()) / 1e9


@torch.no_grad()
def interleaved(
    variants: Mapping[str, Callable[[int], Any]], instances: int, rounds: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Milliseconds of every variant, called in turn on every instance, in every second round backwards.

    What runs right after the full model takes up to a hundredth longer than what runs before it.

    Args:
        variants: Name to a function of the instance's number.
        instances: How many instances there are.
        rounds: How often all of it is repeated.
        warmup: Rounds before, not noted: until memory that was freed serves again, its first use costs time.
    """
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for round_ in range(-warmup, rounds):
        for instance in range(instances):
            for name in list(variants)[:: 1 if round_ % 2 == 0 else -1]:
                run = variants[name]
                start = time.perf_counter()
                run(instance)
                if round_ >= 0:
                    taken[name].append((time.perf_counter() - start) * 1e3)
    return taken


def ratio(numerator: list[float], denominator: list[float]) -> float:
    """Median of the ratios of neighbouring measurements: what disturbs both cancels."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def arguments(doc: str | None, output: Path) -> argparse.ArgumentParser:
    """What benchmarks of both backbones are asked for in common.

    Args:
        doc: The benchmark's docstring.
        output: Where its JSON goes if nothing is said.
    """
    parser = argparse.ArgumentParser(description=(doc or "").split("\n", 1)[0])
    parser.add_argument("--backbone", choices=("meter", "blip"), action="append")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="tiny models: does everything run?")
    parser.add_argument("--output", type=Path, default=output)
    parser.add_argument("--add", action="store_true", help="leave the other backbone in the file as it is")
    return parser


def start(threads: int) -> dict[str, Any]:
    """Set up a benchmark process; returns what is written beside its results."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    return describe_environment(torch.device("cpu"))


def write(path: Path, report: dict[str, Any], add: bool = False) -> None:
    """Write a report as JSON.

    Args:
        path: Where to.
        report: What was measured; ``environment`` says where.
        add: Leave other backbones that the file has as they are; it must be of the same environment.
    """
    if add and path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before["environment"] != report["environment"]:
            raise SystemExit(f"{path} was measured elsewhere ({before['environment']}): nothing added")
        report["backbones"] = before["backbones"] | report["backbones"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path}")

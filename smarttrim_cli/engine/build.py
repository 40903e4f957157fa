"""From a recipe to a model with its task: the one place where the sections of a recipe meet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from smarttrim_cli import registry
from smarttrim_cli.data.images import Preprocess
from smarttrim_cli.data.processor import Processor, load_tokenizer, train_word_tokenizer
from smarttrim_cli.engine.artifact import (
    Bundle,
    TrimmerConfig,
    build_backbone,
    load_into,
    read_config,
    read_tensors,
    resolve_checkpoint,
    trimmers_for,
)
from smarttrim_cli.errors import UserError
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.pruning.plan import PROPORTIONS, Plan, make_plan
from smarttrim_cli.recipe import Plugin, Pruning, Recipe
from smarttrim_cli.tasks.base import Task

TYPICAL_TEXT_TOKENS = 10
"""Text tokens, special ones included, when there is no data to count: the paper's VQA figure."""


def section_of(plugin: Plugin) -> dict[str, Any]:
    """A plug-in section as a plain mapping."""
    return {"name": plugin.name, **plugin.options_dict()}


@dataclass
class Start:
    """Where a run starts: the folder of its checkpoint and the configuration there, or None for both."""

    folder: Path | None
    config: dict[str, Any] | None


def start_of(recipe: Recipe) -> Start:
    """The checkpoint that a recipe names, if any."""
    name = recipe.backbone.options_dict().get("checkpoint")
    if name is None:
        return Start(None, None)
    folder = resolve_checkpoint(name)
    return Start(folder, read_config(folder))


def build(recipe: Recipe, log: Any) -> Bundle:
    """Model, task and processor of a recipe.

    Weights, tokenizer, preprocessing and labels come from the checkpoint if the recipe names one; the
    backbone's sizes come from there too, and further backbone keys of the recipe must agree with them.

    Raises:
        UserError: Something the recipe asks for does not exist or does not fit.
    """
    start = start_of(recipe)
    torch.manual_seed(recipe.seed)
    task = registry.load("tasks", recipe.task.name).build(
        registry.options("tasks", section_of(recipe.task)), log
    )
    task.prepare_labels(start.folder)
    section = backbone_section(recipe, start)
    if start.folder is not None:
        processor = Processor.load(start.folder)
    else:
        processor = new_processor(section, task)
        section = with_vocabulary(section, len(processor.tokenizer))
    backbone = build_backbone(section, task.num_labels)
    if start.folder is not None:
        weights = start.folder / "model.safetensors"
        load_into(backbone, read_tensors(weights), str(weights))
    model = attach(recipe, backbone)
    config = {
        "backbone": section,
        "task": section_of(recipe.task),
        "num_labels": task.num_labels,
        "trimmers": vars(trimmer_config(recipe.pruning)),
    }
    return Bundle(model, task, processor, config)


def attach(recipe: Recipe, backbone: torch.nn.Module) -> TrimmedModel:
    """Trimmers of a recipe on a backbone, in their initial state."""
    model = TrimmedModel(backbone, trimmers_for(backbone, trimmer_config(recipe.pruning)))
    if recipe.strategy.stable_init.enabled:
        model.start_keeping(recipe.strategy.stable_init.keep_logit)
    return model


def backbone_section(recipe: Recipe, start: Start) -> dict[str, Any]:
    """The backbone's section; with a checkpoint the stored one, which the recipe must not contradict."""
    asked = section_of(recipe.backbone)
    if start.config is None:
        return asked
    stored = {**start.config["backbone"], "checkpoint": None}
    if asked["name"] != stored["name"]:
        raise UserError(
            f"the checkpoint is of backbone {stored['name']!r}, the recipe of {asked['name']!r}",
            where="backbone.name",
        )
    wanted, known = (registry.options("backbones", section).model_dump() for section in (asked, stored))
    for key in asked.keys() & wanted.keys() - {"checkpoint"}:
        if wanted[key] != known[key]:
            raise UserError(
                f"{key} is {wanted[key]!r} in the recipe but {known[key]!r} in the checkpoint",
                where=f"backbone.{key}",
                hint="leave it out: with a checkpoint, sizes come from there",
            )
    return stored


def completed(recipe: Recipe, bundle: Bundle) -> Recipe:
    """The recipe with the backbone as it was built: sizes come from a checkpoint, not from the defaults."""
    checkpoint = recipe.backbone.options_dict().get("checkpoint")
    backbone = Plugin(**{**bundle.config["backbone"], "checkpoint": checkpoint})
    return recipe.model_copy(update={"backbone": backbone}) if checkpoint else recipe


def with_vocabulary(section: dict[str, Any], size: int) -> dict[str, Any]:
    """The backbone's section with at least so many word embeddings."""
    text = dict(section.get("text", {}))
    config = dict(text.get("config", {}))
    if config and config.get("vocab_size", 0) < size:
        config["vocab_size"] = size
        text["config"] = config
        return {**section, "text": text}
    return section


def new_processor(section: dict[str, Any], task: Task) -> Processor:
    """Tokenizer and preprocessing of a model that starts without a checkpoint folder."""
    options = registry.options("backbones", section)
    if options.tokenizer == "train":
        tokenizer: Any = train_word_tokenizer(task.texts(task.split_name("train")))
    else:
        tokenizer = load_tokenizer(options.tokenizer)
    preprocess = Preprocess(size=options.image_size, mode="shorter_side_center_crop")
    return Processor(tokenizer, preprocess, options.max_text_length)


def trimmer_config(pruning: Pruning | None) -> TrimmerConfig:
    """Which groups of sites get which trimmers.

    With target sparsities alone, only groups with something to remove get trimmers; with a speed-up, those
    that have a proportion above 0.
    """
    if pruning is None:
        return TrimmerConfig([], None, None)
    shares = pruning.target_sparsity.groups() if pruning.target_sparsity else dict(PROPORTIONS)
    token = section_of(pruning.token_trimmer) if pruning.token_trimmer else None
    head = section_of(pruning.head_trimmer) if pruning.head_trimmer else None
    groups = [
        group
        for group, removed in shares.items()
        if removed > 0 and (token if group.startswith("token") else head) is not None
    ]
    return TrimmerConfig(groups, token, head)


def plan_for(recipe: Recipe, bundle: Bundle) -> Plan:
    """Targets of a run and predicted MACs, for instances of mean text length of the training split."""
    return plan_for_model(recipe, bundle.model, mean_text_tokens(bundle))


def plan_for_model(recipe: Recipe, model: TrimmedModel, text_tokens: float) -> Plan:
    """Targets of a run and predicted MACs, for an instance with so many text tokens."""
    pruning = recipe.pruning
    return make_plan(
        model.architecture,
        model.sites,
        model.groups,
        model.backbone.token_counts(text_tokens),
        pruning.target_sparsity.groups() if pruning and pruning.target_sparsity else None,
        pruning.target_speedup if pruning else None,
    )


def mean_text_tokens(bundle: Bundle, most: int = 500) -> float:
    """Mean number of text tokens of a training instance, special ones included."""
    texts = bundle.task.texts(bundle.task.split_name("train"))
    chosen = texts[:: max(len(texts) // most, 1)]
    encoded = bundle.processor.tokenizer(chosen, truncation=True, max_length=bundle.processor.max_text_length)
    return sum(len(ids) for ids in encoded["input_ids"]) / len(chosen)

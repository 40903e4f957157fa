"""From a recipe to a model with its task: the one place where the sections of a recipe meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from smarttrim_cli import registry
from smarttrim_cli.data.images import Preprocess
from smarttrim_cli.data.processor import Processor, load_tokenizer, train_word_tokenizer
from smarttrim_cli.data.word_tokenizer import extend_word_tokenizer
from smarttrim_cli.engine.artifact import (
    Bundle,
    TrimmerConfig,
    as_described,
    build_backbone,
    build_task,
    trimmers_for,
)
from smarttrim_cli.engine.plugin_checks import refuse_incomplete_task, refuse_odd_trimmers
from smarttrim_cli.engine.starting import FOLDER, Start, backbone_section, load_start, start_of
from smarttrim_cli.engine.student import apart, student_of
from smarttrim_cli.errors import UserError
from smarttrim_cli.forms import Form
from smarttrim_cli.pruning.model import TrimmedModel
from smarttrim_cli.pruning.plan import PROPORTIONS, Plan, make_plan
from smarttrim_cli.recipe import Plugin, Pruning, Recipe
from smarttrim_cli.tasks.base import Task


def section_of(plugin: Plugin) -> dict[str, Any]:
    """A plug-in section as a plain mapping."""
    return {"name": plugin.name, **plugin.options_dict()}


def build(recipe: Recipe, log: Any) -> Bundle:
    """Model, task and processor of a recipe.

    Weights, tokenizer, preprocessing and labels come from the checkpoint if the recipe names one; the
    backbone's sizes come from there too, and further backbone keys of the recipe must agree with them.

    Raises:
        UserError: Something the recipe asks for does not exist or does not fit.
    """
    start = start_of(recipe)
    torch.manual_seed(recipe.seed)
    task = build_task(section_of(recipe.task), recipe.backbone.name, log)
    refuse_incomplete_task(task, recipe.task.name)
    task.prepare_labels(start.labels_folder(task.form_name))
    section, keep = apart(backbone_section(section_of(recipe.backbone), start), start)
    processor = _processor(section, start, task)
    form = _with_length_of_texts(task, processor)
    with as_described("backbone"):
        section = registry.load("backbones", section["name"]).fit_to_tokenizer(section, processor.tokenizer)
        backbone = build_backbone(section, form)
    head = {name: weight.clone() for name, weight in _head(backbone)}
    load_start(section["name"], backbone, start, log)
    warmup, waits = recipe.strategy.guidance_warmup.enabled, recipe.strategy.curriculum.start_ratio > 0
    if warmup and not waits and any(torch.equal(head[name], weight) for name, weight in _head(backbone)):
        log(
            "the head is new, so strategy.guidance_warmup learns from a model that does not know its task; "
            "strategy.curriculum.start_ratio=0.45 trains the full model first"
        )
    if keep:
        section, backbone = student_of(section, keep, backbone)
    model = attach(recipe, backbone)
    trimmers = trimmer_config(recipe.pruning)
    refuse_odd_trimmers(model, {"token": trimmers.token, "head": trimmers.head})
    config = {
        "backbone": section,
        "task": section_of(recipe.task),
        "form": form.to_dict(),
        "trimmers": vars(trimmers),
    }
    return Bundle(model, task, processor, config)


def _head(backbone: Any) -> list[tuple[str, torch.Tensor]]:
    """Weights of the head that start at random, if none are loaded."""
    return [
        (name, weight.detach())
        for name, weight in backbone.named_parameters()
        if weight.dim() > 1 and backbone.part_of(name) == "head"
    ]


def attach(recipe: Recipe, backbone: torch.nn.Module) -> TrimmedModel:
    """Trimmers of a recipe on a backbone, in their initial state."""
    with as_described("pruning"):
        trimmers = trimmers_for(backbone, trimmer_config(recipe.pruning))
    model = TrimmedModel(backbone, trimmers)
    if recipe.strategy.stable_init.enabled:
        model.start_keeping(recipe.strategy.stable_init.keep_logit)
    return model


def completed(recipe: Recipe, bundle: Bundle) -> Recipe:
    """The recipe with the backbone as it was built: sizes come from a checkpoint, not from the defaults."""
    checkpoint = recipe.backbone.options_dict().get("checkpoint")
    section = bundle.config["backbone"]
    if recipe.backbone.options_dict().get(
        "keep_layers"
    ):  # sizes are those of the checkpoint, not of what is kept
        section = backbone_section(section_of(recipe.backbone), start_of(recipe))
    backbone = Plugin(**{**section, "checkpoint": checkpoint})
    return recipe.model_copy(update={"backbone": backbone}) if checkpoint else recipe


def _processor(section: dict[str, Any], start: Start, task: Task) -> Processor:
    """Tokenizer and preprocessing: those of the checkpoint, if it has any."""
    plugin, options = registry.load("backbones", section["name"]), registry.options("backbones", section)
    if start.kind == FOLDER:
        assert start.path is not None and start.form is not None
        processor = Processor.load(start.path)
        preprocess = replace(processor.preprocess, size=options.image_size)
        processor = replace(processor, preprocess=preprocess, max_text_length=options.max_text_length)
        if options.tokenizer == "train" and start.form.name != task.form_name:
            texts = task.texts(task.split_name("train"))
            words: Any = processor.tokenizer  # of words, as the section says
            return replace(processor, tokenizer=extend_word_tokenizer(words, texts))
        return processor
    if options.tokenizer == "train":
        tokenizer: Any = train_word_tokenizer(task.texts(task.split_name("train")))
    else:
        tokenizer = load_tokenizer(options.tokenizer)
    normalisation = plugin.normalisation(options) if hasattr(plugin, "normalisation") else {}
    preprocess = Preprocess(size=options.image_size, mode=plugin.PREPROCESS, **normalisation)
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
    """Targets of a run and predicted MACs, for an instance with so many text tokens.

    Raises:
        UserError: The recipe asks for something to be removed that this model has no trimmers for.
    """
    pruning = recipe.pruning
    if pruning is not None and pruning.target_sparsity is not None:
        _refuse_missing_groups(pruning.target_sparsity.groups(), model)
    return make_plan(
        model.architecture,
        model.sites,
        model.groups,
        model.backbone.token_counts(text_tokens),
        pruning.target_sparsity.groups() if pruning and pruning.target_sparsity else None,
        pruning.target_speedup if pruning else None,
    )


def _refuse_missing_groups(removed: dict[str, float], model: TrimmedModel) -> None:
    there = {site.group for site in model.architecture.sites()}
    missing = [group for group, share in removed.items() if share > 0 and group not in there]
    cross = {group: removed[group] for group in there if group.startswith("cross")}
    if cross and len({removed[group] for group in removed if group.startswith("cross")}) == 1:
        missing = [
            group for group in missing if not group.startswith("cross")
        ]  # one number for all there are
    if missing:
        raise UserError(
            f"target_sparsity asks for {missing[0]} = {removed[missing[0]]}, but this model has nothing of "
            f"the kind for this task",
            where="pruning.target_sparsity",
            hint=f"it has: {', '.join(sorted(there))}",
        )


def mean_text_tokens(bundle: Bundle) -> float:
    """Mean number of text tokens of a training instance, special ones included."""
    texts = bundle.task.questions(bundle.task.split_name("train"))
    if not texts:  # what the backbone reads is always the same
        return float(bundle.task.form.text_tokens)
    return _mean_length(texts, bundle.processor)


def _with_length_of_texts(task: Task, processor: Processor) -> Form:
    """A task's form with what its decoder reads: of candidates that are ranked all tokens.

    Captions are written in as many steps as those of the training data have tokens, and one more.

    A caption takes a step per token and one for its end; other beams go on for a while after the first one
    that has ended.
    """
    written = getattr(task, "written", None)
    texts = written(task.split_name("train")) if written else []
    if not texts:
        candidate_tokens = getattr(task, "candidate_tokens", None)
        count = candidate_tokens(processor) if candidate_tokens else 0
        return replace(task.form, candidate_tokens=count)
    steps = _mean_length(texts, processor)  # the start token is none, for the one more
    return task.form.with_steps(round(steps, 1))


def _mean_length(texts: Sequence[str], processor: Processor, most: int = 500) -> float:
    """Mean number of tokens, special ones included, over at most about so many texts."""
    chosen = texts[:: max(len(texts) // most, 1)]
    encoded = processor.tokenizer(chosen, truncation=True, max_length=processor.max_text_length)
    return sum(len(ids) for ids in encoded["input_ids"]) / len(chosen)

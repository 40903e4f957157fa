"""The teacher of a run (``strategy.teacher``): loaded, checked, and paired with the student's layers."""

from __future__ import annotations

from typing import Any

from torch import nn

from smarttrim_cli import registry
from smarttrim_cli.backbones._keep_layers import Keep, source_name
from smarttrim_cli.engine.artifact import Bundle, build_backbone, load_model
from smarttrim_cli.engine.build import section_of
from smarttrim_cli.engine.fingerprint import labels_of
from smarttrim_cli.engine.starting import FOLDER, OFFICIAL, Start, backbone_section, start_named, start_of
from smarttrim_cli.engine.student import apart, layers_of
from smarttrim_cli.errors import UserError
from smarttrim_cli.pruning.sites import LayerSpec
from smarttrim_cli.pruning.teacher import Teaching
from smarttrim_cli.recipe import Recipe

_WHERE = "strategy.teacher.checkpoint"


def teaching_of(recipe: Recipe, bundle: Bundle, log: Any) -> Teaching | None:
    """The teacher that a recipe names, with its pairs of layers; None if it names none.

    Args:
        recipe: Of the run.
        bundle: The student with its task.
        log: Receives messages.

    Raises:
        UserError: There is no such model, or it cannot teach this student.
    """
    settings = recipe.strategy.teacher
    if settings is None:
        return None
    if recipe.pruning is not None:
        raise UserError(
            "a teacher is for runs without trimming",
            where="strategy.teacher",
            hint="pruning: null; strategy.self_distillation is for trimmed models",
        )
    teacher = _load(settings.checkpoint, recipe, bundle, log)
    teacher.requires_grad_(False).eval()
    weights = settings.model_dump(exclude={"checkpoint"})
    pairs = _pairs(recipe, bundle, teacher) if settings.hidden > 0 or settings.attention > 0 else ()
    return Teaching(teacher, pairs, **weights)


def _load(name: str, recipe: Recipe, bundle: Bundle, log: Any) -> nn.Module:
    """The teacher's backbone."""
    start = start_named(name)
    if start.kind == FOLDER:
        return _of_folder(start, recipe, bundle, log)
    plugin = registry.load("backbones", recipe.backbone.name)
    load = getattr(plugin, "load_official" if start.kind == OFFICIAL else "load_hf", None)
    if load is None:
        raise UserError(f"backbone {recipe.backbone.name} does not read such checkpoints", where=_WHERE)
    section, _ = apart(backbone_section(section_of(recipe.backbone), start), start)
    section = plugin.fit_to_tokenizer(section, bundle.processor.tokenizer)
    teacher = build_backbone(section, bundle.task.form)
    report = load(teacher, start.path, log)
    if report.fresh:
        raise UserError(
            f"the teacher is not trained for this task: {report.fresh[0]} is not in the file",
            where=_WHERE,
            hint="fine-tune the full model on the task first, and name its run directory",
        )
    return teacher


def _of_folder(start: Start, recipe: Recipe, bundle: Bundle, log: Any) -> nn.Module:
    """The backbone in a model folder; it has to read the same inputs, and give the same labels."""
    assert start.path is not None
    found = load_model(start.path, section_of(recipe.task), log)
    own, its = bundle.processor, found.processor
    if own.tokenizer.get_vocab() != its.tokenizer.get_vocab():
        raise UserError("the teacher has another vocabulary than the student", where=_WHERE)
    if own.preprocess != its.preprocess:
        raise UserError(
            f"the teacher sees images otherwise: {its.preprocess}, the student {own.preprocess}", where=_WHERE
        )
    if labels_of(bundle.task) != labels_of(found.task):
        raise UserError(
            "the teacher answers with other labels than the student",
            where=_WHERE,
            hint="start the student from the same checkpoint: backbone.checkpoint brings labels",
        )
    return found.model.backbone


def _pairs(recipe: Recipe, bundle: Bundle, teacher: Any) -> tuple[tuple[LayerSpec, LayerSpec], ...]:
    """Every layer of the student with the one it follows: that which it was made of.

    Raises:
        UserError: Without ``keep_layers`` the depths differ, or layers differ in width.
    """
    keep: Keep = {}
    if recipe.backbone.options_dict().get("keep_layers"):
        start = start_of(recipe)
        _, keep = apart(backbone_section(section_of(recipe.backbone), start), start)
    layers = layers_of(recipe.backbone.name) if keep else {}
    own, its = bundle.model.architecture, teacher.architecture()
    known = {(spec.stream, spec.self_attention.path): spec for spec in its.layers}
    pairs = []
    for spec in own.layers:
        if spec.stream in own.overhead:
            continue
        path = source_name(spec.self_attention.path, keep, layers)
        if (spec.stream, path) not in known or (
            not keep and own.depth(spec.stream) != its.depth(spec.stream)
        ):
            raise UserError(
                f"the teacher has {its.depth(spec.stream)} {spec.stream} layers, and it is not said which of "
                f"them the student's {own.depth(spec.stream)} follow",
                where="strategy.teacher",
                hint="backbone.keep_layers says it; hidden: 0 and attention: 0 do without",
            )
        pairs.append((spec, known[spec.stream, path]))
    _check_widths(pairs)
    return tuple(pairs)


def _check_widths(pairs: list[tuple[LayerSpec, LayerSpec]]) -> None:
    for own, its in pairs:
        sizes = [
            (spec.width, [(kind, attention.heads) for kind, attention in spec.attentions])
            for spec in (own, its)
        ]
        if sizes[0] != sizes[1]:
            raise UserError(
                f"layer {own.stream}.{own.index} is {own.width} wide with {own.self_attention.heads} heads, "
                f"the teacher's {its.width} with {its.self_attention.heads}",
                where="strategy.teacher",
                hint="only layers of the same sizes can be compared; hidden: 0 and attention: 0 do without",
            )

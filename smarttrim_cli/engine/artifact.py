"""Model folders: what ``finetune`` saves, ``export`` ships and ``load`` opens.

``config.json`` says how to build the model; ``model.safetensors`` holds the backbone under the host's own
names; ``trimmers.safetensors`` only what trimming added, so that it can be attached to a freshly loaded host;
beside them tokenizer, preprocessing and label vocabulary. No pickles.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

import smarttrim_cli
from smarttrim_cli import registry
from smarttrim_cli.data.files import read_json, shown
from smarttrim_cli.data.processor import PREPROCESSING, Processor
from smarttrim_cli.engine.files import identity, write_json
from smarttrim_cli.errors import SmartTrimError, UserError, some
from smarttrim_cli.forms import Form
from smarttrim_cli.pruning.model import TrimmedModel, build_trimmers
from smarttrim_cli.pruning.prepared import for_good
from smarttrim_cli.tasks.base import Task
from smarttrim_cli.tensors import save_tensors
from smarttrim_cli.trimmers.base import SiteInfo, Trimmer

CONFIG, WEIGHTS, TRIMMERS = "config.json", "model.safetensors", "trimmers.safetensors"
FORMAT, VERSION = "smarttrim-model", 1
_KEYS = ("backbone", "task", "form", "trimmers", "threshold")
_DIVERGED = "the file may be damaged, or its training diverged"
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
BUILTIN = Path(__file__).parent.parent / "assets"


@dataclass
class TrimmerConfig:
    """Which trimmers a model has.

    Attributes:
        groups: Groups of sites with trimmers.
        token: Recipe section of the token trimmer, ``{name, ...}``; None for none.
        head: The same for heads.
        removed: Sites of these groups whose trimmer was taken out after training.
    """

    groups: list[str]
    token: dict[str, Any] | None
    head: dict[str, Any] | None
    removed: list[str] = field(default_factory=list)


@dataclass
class Bundle:
    """A model with everything needed to use it."""

    model: TrimmedModel
    task: Task
    processor: Processor
    config: dict[str, Any]


class MissingCheckpoint(UserError):
    """The folder that a recipe starts from holds no model (yet)."""


def resolve_checkpoint(name: str) -> Path:
    """Folder of a checkpoint: a path, or ``builtin:NAME``.

    Raises:
        UserError: There is no such folder (:class:`MissingCheckpoint`) or built-in model.
    """
    if name.startswith("builtin:"):
        folder = BUILTIN / name.removeprefix("builtin:")
        known = sorted(path.parent.name for path in BUILTIN.glob(f"*/{CONFIG}"))
        if not (folder / CONFIG).exists():
            raise UserError(
                f"no built-in model {name!r}", where="backbone.checkpoint", hint=f"known: {', '.join(known)}"
            )
        return folder
    folder = Path(name)
    if (folder / "model" / CONFIG).exists():
        folder = folder / "model"
    if not (folder / CONFIG).exists():
        hint = "give a model folder or a run folder"
        if not folder.exists():  # perhaps an official file
            hint = "there is no such file or folder, and nothing is downloaded"
        raise MissingCheckpoint(f"no model there: {CONFIG} is missing", where=name, hint=hint)
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a model folder.

    Raises:
        UserError: It is missing, damaged or of another format.
    """
    where = str(folder / CONFIG)
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise UserError(f"not the configuration of a {FORMAT}", where=where)
    missing = [key for key in _KEYS if key not in config]
    if missing:
        raise UserError(f"incomplete: it lacks {', '.join(missing)}", where=where)
    encoding = json.detect_encoding((folder / CONFIG).read_bytes())
    if encoding != "utf-8":  # the tokenizer's library reads it, too
        raise UserError("not plain UTF-8", where=where, hint="save it as UTF-8 without a byte order mark")
    try:
        Form.from_dict(config["form"])
        trimmers = TrimmerConfig(**config["trimmers"])
        for section in ("backbone", "task"):
            config[section]["name"]
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"damaged: {error}", where=where) from error
    _refuse_odd_values(config, trimmers, where)
    return config


def _refuse_odd_values(config: dict[str, Any], trimmers: TrimmerConfig, where: str) -> None:
    """Refuse what would trim otherwise than the model did: it may have been edited, or be of another program.

    Raises:
        UserError: A value is not of its kind; its key is named.
    """
    version, threshold = config.get("version"), config["threshold"]
    if type(version) is not int or version != VERSION:
        hint = "open it with the smarttrim that wrote it"
        raise UserError(f"version is {shown(version)}, not {VERSION}", where=where, hint=hint)
    if type(threshold) not in (int, float) or not abs(threshold) <= torch.finfo(torch.float32).max:
        raise UserError(f"threshold is {shown(threshold)}, not a finite number", where=where)
    for key, names in (("groups", trimmers.groups), ("removed", trimmers.removed)):
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"trimmers.{key} is {shown(names)}, not a list of texts", where=where)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file.

    Raises:
        UserError: It is missing or damaged.
    """
    try:
        return load_file(str(path))
    except FileNotFoundError as error:
        raise UserError("the weights are missing", where=str(path)) from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"the weights cannot be read: {error}", where=str(path)) from error


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load weights strictly: every problem is named.

    Raises:
        UserError: Keys are missing or unused, shapes differ, or values are no weights.
    """
    own = module.state_dict()
    problems = [f"missing: {name}" for name in own if name not in tensors]
    problems += [f"unused: {name}" for name in tensors if name not in own]
    problems += [
        f"shape of {name}: {tuple(tensors[name].shape)} in the file, {tuple(own[name].shape)} in the model"
        for name in own
        if name in tensors and own[name].shape != tensors[name].shape
    ]
    if problems:
        raise UserError(
            f"the weights do not fit the model ({len(problems)} problems): {some(problems, '; ')}",
            where=where,
        )
    for name, value in own.items():
        if value.is_floating_point():
            _refuse_wrong_values(name, tensors[name], where)
    module.load_state_dict(tensors)


def _refuse_wrong_values(name: str, value: Tensor, where: str) -> None:
    """Refuse other numbers in the place of weights, and weights that are nan or infinite."""
    if value.dtype not in _FLOATS:
        kind = str(value.dtype).removeprefix("torch.")
        hint = "save them as float32, float16 or bfloat16"
        raise UserError(f"{name} is of {kind}, which are no weights", where=where, hint=hint)
    if not value.isfinite().all():
        raise UserError(
            f"{name} has values that are not finite (nan or infinity)", where=where, hint=_DIVERGED
        )


def trimmers_for(backbone: Any, config: TrimmerConfig) -> dict[str, Trimmer]:
    """Fresh trimmers for every site of the configured groups, without those that were removed."""

    def builder(section: dict[str, Any] | None, scores: str) -> Any:
        if section is None:
            return None
        plugin = registry.load("trimmers", section["name"], whole=True)
        if plugin.SCORES not in ("token", "head"):
            raise UserError(
                f"trimmer {section['name']!r}: SCORES is {plugin.SCORES!r}, not 'token' or 'head'",
                where="pruning",
            )
        if scores != plugin.SCORES:
            raise UserError(
                f"trimmer {section['name']!r} scores {plugin.SCORES}s, not {scores}s", where="pruning"
            )
        options = registry.options("trimmers", section)

        def build(site: SiteInfo) -> Trimmer | None:
            trimmer = plugin.build(options, site)
            if not isinstance(trimmer, Trimmer | None):
                raise UserError(
                    f"trimmer {section['name']!r}: build gives {type(trimmer).__name__}, not a Trimmer",
                    where=site.name,
                    hint="extend smarttrim_cli.trimmers.base.Trimmer",
                )
            return trimmer

        return build

    token, head = builder(config.token, "token"), builder(config.head, "head")
    trimmers = build_trimmers(backbone.architecture(), config.groups, token, head)
    return {name: trimmer for name, trimmer in trimmers.items() if name not in config.removed}


def save_model(folder: Path, bundle: Bundle) -> None:
    """Write a model folder (which exists and is empty)."""
    config = {
        "format": FORMAT,
        "version": VERSION,
        "smarttrim_version": smarttrim_cli.__version__,
        **bundle.config,
    }
    config["threshold"] = float(bundle.model.threshold)
    save_tensors(bundle.model.backbone.state_dict(), folder / WEIGHTS)
    if bundle.model.sites:
        save_tensors(bundle.model.trimmers.state_dict(), folder / TRIMMERS)
    bundle.processor.save(folder)
    bundle.task.save_labels(folder)
    write_json(folder / CONFIG, config)


def load_trimmers(model: TrimmedModel, folder: Path) -> None:
    """Attach saved trimmers to a host that was loaded by other means."""
    load_into(model.trimmers, read_tensors(folder / TRIMMERS), str(folder / TRIMMERS))
    model.threshold.fill_(read_config(folder)["threshold"])


@for_good()
def load_model(folder: Path, task_options: Mapping[str, Any] | None = None, log: Any = print) -> Bundle:
    """Open a model folder.

    Args:
        folder: Written by :func:`save_model`.
        task_options: Recipe section of the task instead of the stored one (another data set, say).
        log: Receives messages.

    Raises:
        UserError: Something is missing, damaged or does not fit.
    """
    before = identity(folder / CONFIG)
    config = read_config(folder)
    section = dict(task_options) if task_options is not None else config["task"]
    form = Form.from_dict(config["form"])
    with as_described(str(folder / CONFIG)):
        _refuse_unknown_form(form.name, config["backbone"]["name"], str(folder / CONFIG))
        task = build_task(section, config["backbone"]["name"], log)
    if task.form_name != form.name:
        raise UserError(
            f"the model is for {form.name}, task {section['name']!r} needs one for {task.form_name}",
            where="task.name" if task_options is not None else str(folder / CONFIG),
        )
    task.prepare_labels(folder)
    with as_described(str(folder / CONFIG)):
        as_stored = dataclasses.replace(
            task.form, num_labels=form.num_labels, candidate_tokens=form.candidate_tokens
        ).with_steps(form.new_tokens)
        backbone = build_backbone(config["backbone"], as_stored)
        trimmers = trimmers_for(backbone, TrimmerConfig(**config["trimmers"]))
    load_into(backbone, read_tensors(folder / WEIGHTS), str(folder / WEIGHTS))
    model = TrimmedModel(backbone, trimmers)
    if model.sites:
        load_trimmers(model, folder)
    elif (folder / TRIMMERS).exists():
        raise UserError(
            f"trimmers names none, but there is a {TRIMMERS}",
            where=str(folder / CONFIG),
            hint=f"restore this file; for a model without trimmers, remove {TRIMMERS}",
        )
    model.eval()
    if task.form.num_labels != form.num_labels:
        raise UserError(
            f"the label vocabulary has {task.form.num_labels} entries, the model {form.num_labels}",
            where=str(folder),
        )
    processor = Processor.load(folder)
    _refuse_other_sizes(processor, config["backbone"], backbone, folder / PREPROCESSING)
    if identity(folder / CONFIG) != before:  # its files may be of two models
        hint = "run the command again"
        raise UserError("the model was replaced while it was read", where=str(folder), hint=hint)
    return Bundle(model, task, processor, {**config, "task": section, "form": as_stored.to_dict()})


def _refuse_unknown_form(name: str, backbone: str, where: str) -> None:
    forms = registry.load("backbones", backbone).FORMS
    if name not in forms:
        hint = f"backbone {backbone} has: {', '.join(forms)}"
        raise UserError(f"form.name is {shown(name)}, which is no form", where=where, hint=hint)


def _refuse_other_sizes(
    processor: Processor, section: Mapping[str, Any], backbone: nn.Module, file: Path
) -> None:
    """Refuse preprocessing, which may have been edited, for images or texts that the model cannot take."""
    image_size = getattr(registry.options("backbones", section), "image_size", None)
    size, longest = processor.preprocess.size, processor.max_text_length
    if image_size not in (None, size):
        raise UserError(f"size is {size}, but the model takes images of {image_size} pixels", where=str(file))
    positions = min(map(_rows, _position_embeddings(backbone)), default=longest)
    if positions < longest:
        raise UserError(
            f"max_text_length is {longest}, but the text encoder has {positions} positions", where=str(file)
        )


def _position_embeddings(backbone: nn.Module) -> list[nn.Embedding]:
    """Those of text encoders and decoders, by the name that all of transformers' have."""
    return [
        module
        for name, module in backbone.named_modules()
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding)
    ]


def _rows(positions: nn.Embedding) -> int:
    """How many tokens have a position; RoBERTa's start behind its padding index."""
    return positions.num_embeddings - (0 if positions.padding_idx is None else positions.padding_idx + 1)


@contextmanager
def as_described(where: str) -> Iterator[None]:
    """Errors of building what a file or the section of a recipe says as those of ``where`` it is said."""
    try:
        yield
    except SmartTrimError:
        raise
    except ValidationError as error:
        found = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False)]
        raise UserError(f"cannot be used: {some(found)}", where=where) from error
    except Exception as error:  # of wrong values the parts raise anything, from KeyError to ZeroDivisionError
        raise UserError(f"cannot be used: {type(error).__name__}: {error}", where=where) from error


def build_backbone(section: Mapping[str, Any], form: Form) -> nn.Module:
    """A backbone from its recipe section, with random weights, in the form that a task needs."""
    options = registry.options("backbones", section)
    return registry.load("backbones", section["name"], whole=True).build(options, form)


def build_task(section: Mapping[str, Any], backbone: str, log: Any) -> Task:
    """A task from its recipe section, for the way in which a backbone answers it.

    Raises:
        UserError: The backbone has no form for the task.
    """
    plugin = registry.load("tasks", section["name"], whole=True)
    forms = registry.load("backbones", backbone, whole=True).FORMS
    if plugin.FORM not in forms:
        raise UserError(
            f"backbone {backbone} has no form for task {section['name']!r}",
            where="task.name",
            hint=f"it has: {', '.join(forms)}",
        )
    return plugin.build(registry.options("tasks", section), log, forms[plugin.FORM])


def parameter_count(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())

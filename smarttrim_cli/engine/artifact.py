"""Model folders: what ``finetune`` saves, ``export`` ships and ``load`` opens.

``config.json`` says how to build the model; ``model.safetensors`` holds the backbone under the host's own
names; ``trimmers.safetensors`` only what trimming added, so that it can be attached to a freshly loaded host;
beside them tokenizer, preprocessing and label vocabulary. No pickles.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

import smarttrim_cli
from smarttrim_cli import registry
from smarttrim_cli.data.files import read_json
from smarttrim_cli.data.processor import PREPROCESSING, Processor
from smarttrim_cli.engine.files import write_json
from smarttrim_cli.errors import SmartTrimError, UserError, some
from smarttrim_cli.forms import Form
from smarttrim_cli.pruning.model import TrimmedModel, build_trimmers
from smarttrim_cli.tasks.base import Task
from smarttrim_cli.tensors import save_tensors
from smarttrim_cli.trimmers.base import SiteInfo, Trimmer

CONFIG, WEIGHTS, TRIMMERS = "config.json", "model.safetensors", "trimmers.safetensors"
FORMAT = "smarttrim-model"
_KEYS = ("backbone", "task", "form", "trimmers", "threshold")
_DIVERGED = "the file may be damaged, or its training diverged"
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
        raise MissingCheckpoint(
            f"no model there: {CONFIG} is missing", where=name, hint="give a model folder or a run folder"
        )
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a model folder.

    Raises:
        UserError: It is missing, damaged or of another format.
    """
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise UserError(f"not the configuration of a {FORMAT}", where=str(folder / CONFIG))
    missing = [key for key in _KEYS if key not in config]
    if missing:
        raise UserError(f"incomplete: it lacks {', '.join(missing)}", where=str(folder / CONFIG))
    try:
        Form.from_dict(config["form"])
        TrimmerConfig(**config["trimmers"])
        for section in ("backbone", "task"):
            config[section]["name"]
        float(config["threshold"])
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"damaged: {error}", where=str(folder / CONFIG)) from error
    return config


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
        UserError: Keys are missing or unused, shapes differ, or values are nan.
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
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise UserError(f"the weights do not fit the model ({len(problems)} problems): {shown}", where=where)
    broken = next((name for name in own if tensors[name].isnan().any()), None)
    if broken is not None:
        raise UserError(f"{broken} has values that are not numbers (nan)", where=where, hint=_DIVERGED)
    module.load_state_dict(tensors)


def trimmers_for(backbone: Any, config: TrimmerConfig) -> dict[str, Trimmer]:
    """Fresh trimmers for every site of the configured groups, without those that were removed."""

    def builder(section: dict[str, Any] | None, scores: str) -> Any:
        if section is None:
            return None
        plugin = registry.load("trimmers", section["name"])
        if scores != plugin.SCORES:
            raise UserError(
                f"trimmer {section['name']!r} scores {plugin.SCORES}s, not {scores}s", where="pruning"
            )
        options = registry.options("trimmers", section)

        def build(site: SiteInfo) -> Trimmer | None:
            return plugin.build(options, site)

        return build

    token, head = builder(config.token, "token"), builder(config.head, "head")
    trimmers = build_trimmers(backbone.architecture(), config.groups, token, head)
    return {name: trimmer for name, trimmer in trimmers.items() if name not in config.removed}


def save_model(folder: Path, bundle: Bundle) -> None:
    """Write a model folder (which exists and is empty)."""
    config = {"format": FORMAT, "version": 1, "smarttrim_version": smarttrim_cli.__version__, **bundle.config}
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


def load_model(folder: Path, task_options: Mapping[str, Any] | None = None, log: Any = print) -> Bundle:
    """Open a model folder.

    Args:
        folder: Written by :func:`save_model`.
        task_options: Recipe section of the task instead of the stored one (another data set, say).
        log: Receives messages.

    Raises:
        UserError: Something is missing, damaged or does not fit.
    """
    config = read_config(folder)
    section = dict(task_options) if task_options is not None else config["task"]
    form = Form.from_dict(config["form"])
    with _as_described(folder):
        task = build_task(section, config["backbone"]["name"], log)
    if task.form_name != form.name:
        raise UserError(
            f"the model is for {form.name}, task {section['name']!r} needs one for {task.form_name}",
            where="task.name",
        )
    task.prepare_labels(folder)
    with _as_described(folder):
        as_stored = dataclasses.replace(
            task.form, num_labels=form.num_labels, candidate_tokens=form.candidate_tokens
        ).with_steps(form.new_tokens)
        backbone = build_backbone(config["backbone"], as_stored)
        trimmers = trimmers_for(backbone, TrimmerConfig(**config["trimmers"]))
    load_into(backbone, read_tensors(folder / WEIGHTS), str(folder / WEIGHTS))
    model = TrimmedModel(backbone, trimmers)
    if model.sites:
        load_trimmers(model, folder)
    model.eval()
    if task.form.num_labels != form.num_labels:
        raise UserError(
            f"the label vocabulary has {task.form.num_labels} entries, the model {form.num_labels}",
            where=str(folder),
        )
    processor = Processor.load(folder)
    _refuse_other_sizes(processor, config["backbone"], backbone, folder / PREPROCESSING)
    return Bundle(model, task, processor, config)


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
def _as_described(folder: Path) -> Iterator[None]:
    """Errors of building what ``config.json`` says, which somebody may have edited, as its own."""
    where = str(folder / CONFIG)
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
    return registry.load("backbones", section["name"]).build(options, form)


def build_task(section: Mapping[str, Any], backbone: str, log: Any) -> Task:
    """A task from its recipe section, for the way in which a backbone answers it.

    Raises:
        UserError: The backbone has no form for the task.
    """
    plugin = registry.load("tasks", section["name"])
    forms = registry.load("backbones", backbone).FORMS
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

"""Where a model starts: at random, from a model folder, an official checkpoint or a Hugging Face folder.

``backbone.checkpoint`` names it. A model folder (of ``finetune``, ``export`` or the package) brings sizes,
tokenizer and preprocessing; of another task it brings all but that task's head, and a word-level tokenizer
learns the words that are new. An official checkpoint is a file; its sizes are those of the recipe. A Hugging
Face folder brings sizes and tokenizer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from smarttrim_cli import registry
from smarttrim_cli.data.files import read_json
from smarttrim_cli.engine.artifact import (
    CONFIG,
    WEIGHTS,
    load_into,
    read_config,
    read_tensors,
    resolve_checkpoint,
)
from smarttrim_cli.errors import UserError
from smarttrim_cli.forms import Form
from smarttrim_cli.recipe import Recipe

Log = Callable[[str], None]
RANDOM, FOLDER, OFFICIAL, HUGGING_FACE = "random", "folder", "official", "huggingface"
_FREE = ("max_text_length", "image_size", "keep_layers")
"""What a recipe may ask for although a model folder brings sizes: positions are resized, layers chosen."""


@dataclass(frozen=True)
class Start:
    """Where a run starts.

    Attributes:
        kind: ``RANDOM``, ``FOLDER``, ``OFFICIAL`` or ``HUGGING_FACE``.
        path: The folder or file; None for ``RANDOM``.
        config: ``config.json`` of a model folder.
    """

    kind: str = RANDOM
    path: Path | None = None
    config: dict[str, Any] | None = None

    @property
    def form(self) -> Form | None:
        """What the model in a model folder is for."""
        return None if self.config is None else Form.from_dict(self.config["form"])

    def labels_folder(self, form_name: str) -> Path | None:
        """The folder if its labels are those of a task of this form."""
        return self.path if self.form is not None and self.form.name == form_name else None


def start_of(recipe: Recipe) -> Start:
    """What ``backbone.checkpoint`` names.

    Raises:
        UserError: There is no such thing.
    """
    name = recipe.backbone.options_dict().get("checkpoint")
    return Start() if name is None else start_named(name)


def start_named(name: str) -> Start:
    """What a ``checkpoint`` key names: an official file, a Hugging Face folder or a model folder.

    Raises:
        UserError: There is no such thing.
    """
    path = Path(name)
    if path.is_file():
        _refuse_other_files(path)
        return Start(OFFICIAL, path)
    if _is_hugging_face(path):
        return Start(HUGGING_FACE, path)
    folder = resolve_checkpoint(name)
    return Start(FOLDER, folder, read_config(folder))


def _refuse_other_files(path: Path) -> None:
    """Say at once, before anything is built, that a file holds no weights."""
    with path.open("rb") as file:
        start = file.read(9)
    if not (start.startswith((b"PK", b"\x80")) or start[8:] == b"{"):  # PyTorch, old PyTorch, safetensors
        raise UserError(
            "not a checkpoint: neither a PyTorch nor a safetensors file",
            where=str(path),
            hint="give an official checkpoint, a model folder or a Hugging Face folder",
        )


def _is_hugging_face(path: Path) -> bool:
    config = path / CONFIG
    if not config.is_file():
        return False
    content = read_json(config)
    return isinstance(content, dict) and "model_type" in content


def backbone_section(asked: dict[str, Any], start: Start) -> dict[str, Any]:
    """The backbone's recipe section; sizes in a checkpoint are not to be contradicted.

    Raises:
        UserError: The recipe names another backbone, or other sizes, than the checkpoint has.
    """
    if start.kind in (RANDOM, OFFICIAL):
        return asked
    if start.kind == HUGGING_FACE:
        plugin = registry.load("backbones", asked["name"])
        if not hasattr(plugin, "section_from_hf"):
            raise UserError(
                f"backbone {asked['name']} does not read Hugging Face folders", where="backbone.checkpoint"
            )
        found = plugin.section_from_hf(start.path)
        _refuse_contradictions(asked, {**asked, **found}, keys=found.keys() - {"image_size", "tokenizer"})
        return {**found, **asked}
    assert start.config is not None
    stored = {**start.config["backbone"], "checkpoint": None}
    if asked["name"] != stored["name"]:
        raise UserError(
            f"the checkpoint is of backbone {stored['name']!r}, the recipe of {asked['name']!r}",
            where="backbone.name",
        )
    _refuse_contradictions(asked, stored, keys=asked.keys() - set(_FREE))
    return stored | {key: asked[key] for key in _FREE if key in asked}


def _refuse_contradictions(asked: dict[str, Any], stored: dict[str, Any], keys: Any) -> None:
    wanted, known = (registry.options("backbones", section).model_dump() for section in (asked, stored))
    for key in sorted((asked.keys() & set(keys) & wanted.keys()) - {"checkpoint"}):
        if not _agree(wanted[key], known[key]):
            raise UserError(
                f"{key} is {wanted[key]!r} in the recipe but {known[key]!r} in the checkpoint",
                where=f"backbone.{key}",
                hint="leave it out: with a checkpoint, sizes come from there",
            )


def _agree(wanted: Any, known: Any) -> bool:
    """Whether values are the same; of sections what is named, since a stored one may say more."""
    if isinstance(wanted, dict) and isinstance(known, dict):
        return all(name in known and _agree(value, known[name]) for name, value in wanted.items())
    return bool(wanted == known)


def load_start(name: str, model: Any, start: Start, log: Log) -> None:
    """Load the weights of a start into a backbone.

    Raises:
        UserError: They do not fit; every problem is named.
    """
    plugin = registry.load("backbones", name)
    vision = getattr(model.options, "vision_checkpoint", None)
    if start.kind == RANDOM and vision is not None:
        file = Path(vision) if Path(vision).is_file() else resolve_checkpoint(vision) / WEIGHTS
        plugin.load_vision(model, read_tensors(file), str(file))
    elif start.kind == OFFICIAL:
        if not hasattr(plugin, "load_official"):
            raise UserError(
                f"backbone {name} does not read official checkpoints", where="backbone.checkpoint"
            )
        plugin.load_official(model, start.path, log)
    elif start.kind == HUGGING_FACE:
        plugin.load_hf(model, start.path, log)
    elif start.kind == FOLDER:
        assert start.path is not None
        file = start.path / WEIGHTS
        tensors = read_tensors(file)
        same_task = start.form is not None and start.form.name == model.form.name
        if not same_task and hasattr(plugin, "carry_vocabulary"):
            assert start.config is not None
            before = registry.options("backbones", start.config["backbone"])
            tensors = plugin.carry_vocabulary(model, tensors, before)
        adapt: Any = getattr(plugin, "adapt", lambda model, tensors: (tensors, []))
        tensors, changes = adapt(model, tensors)
        for change in changes:
            log(f"resized {change}")
        if not same_task:
            fresh = getattr(plugin, "may_be_fresh", lambda name: model.part_of(name) == "head")
            tensors = carried_over(model, tensors, fresh, log)
        load_into(model, tensors, str(file))


def carried_over(
    model: nn.Module, tensors: Mapping[str, Tensor], may_be_fresh: Callable[[str], bool], log: Log
) -> dict[str, Tensor]:
    """Weights of a model for another task, completed for this one.

    What ``may_be_fresh`` (the head) starts at random where the file lacks it or has another shape. Embeddings
    that have more rows here keep those of the file and get new ones: words start at random, a further token
    type (a name with ``token_type``) as a copy of the last.
    """
    own, tables = model.state_dict(), _embeddings(model)
    result = {
        name: _grown(name, tensor, own[name]) if name in tables else tensor
        for name, tensor in tensors.items()
        if name in own
    }
    fresh = [
        name
        for name in own
        if may_be_fresh(name) and (name not in result or result[name].shape != own[name].shape)
    ]
    result |= {name: own[name] for name in fresh}
    left = [name for name in tensors if name not in own or name in fresh]
    if left:
        log(f"not used, being of the other task's head: {_in_short(left)}")
    if fresh:
        log(f"new, from random values: {_in_short(fresh)}")
    return result


def _in_short(names: list[str]) -> str:
    """The modules that weights are in, with their numbers."""
    modules = Counter(name.split(".")[0] for name in names)
    return ", ".join(f"{module} ({count} tensors)" for module, count in modules.items())


def _embeddings(model: nn.Module) -> set[str]:
    """Names of the tables that rows are looked up in."""
    modules = model.named_modules()
    return {f"{name}.weight" for name, module in modules if isinstance(module, nn.Embedding)}


def _grown(name: str, tensor: Tensor, own: Tensor) -> Tensor:
    if tensor.dim() != 2 or own.shape[1:] != tensor.shape[1:] or len(own) <= len(tensor):
        return tensor
    grown = own.clone()
    if "token_type" in name:
        grown[len(tensor) :] = tensor[-1]
    grown[: len(tensor)] = tensor
    return grown

"""Export: a folder that runs elsewhere, compared with its source before success is reported.

On demand the backbone is also written in its official layout, for the code that it was published with.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from smarttrim_cli import registry
from smarttrim_cli.data.processor import PREPROCESSING, TOKENIZER_FILES
from smarttrim_cli.engine.artifact import (
    CONFIG,
    TRIMMERS,
    WEIGHTS,
    Bundle,
    build_backbone,
    load_model,
    parameter_count,
    read_config,
    save_model,
)
from smarttrim_cli.engine.build import section_of
from smarttrim_cli.engine.card import call_of, model_card
from smarttrim_cli.engine.files import check_writable, new_folder, write_text
from smarttrim_cli.engine.inference import batches
from smarttrim_cli.engine.report import Reporter, SilentReporter
from smarttrim_cli.engine.runs import find_subject, require_model, warn_of_unused
from smarttrim_cli.errors import CheckFailed, UserError, some
from smarttrim_cli.forms import Form

COMPARED_INSTANCES = 8
TOLERANCE = 1e-5
OFFICIAL_FILE = "official.pth"
"""Name of the file in the official layout, for backbones that have no ``OFFICIAL_FILE`` of their own."""

_OF_DATA = ("data", "splits", "on_bad_sample")
"""Keys of a task that change no answer."""

_MODEL_FILES = (CONFIG, WEIGHTS, TRIMMERS, PREPROCESSING, *TOKENIZER_FILES, "answers.json")
_EXPORTED = {*_MODEL_FILES, "recipe.yaml", "README.md", OFFICIAL_FILE, "official.ckpt"}
"""What exports write, of whichever model and with whichever options."""


def export(
    target: str | None,
    *,
    out: Path,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    official: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Write a self-contained model folder.

    Args:
        target: Run directory or recipe; None for the newest run.
        out: The folder.
        overrides: ``key=value`` for the recipe, such as another place of the data; what they say of the task
            holds for the folder, too.
        overwrite: Replace it if it exists.
        official: Also write the backbone in its official layout.
        reporter: Receives messages.

    Returns:
        ``path``, ``files``, ``parameters``, and ``largest_difference`` between source and reloaded model on
        ``compared`` instances; with ``official`` the path of that file.

    Raises:
        UserError: ``out`` exists or, with ``overwrite``, holds other things than a model; there is no
            model, or it has no official layout.
        CheckFailed: The reloaded model answers differently from its source, or on nothing at all, or the file
            in the official layout does not give back its weights.
    """
    reporter = reporter or SilentReporter()
    check_writable(out, "--out", folder=True)
    _refuse_taken(out, overwrite)
    subject = find_subject(target, overrides)
    run = require_model(subject, target)
    _refuse_loss(out, run.model)
    warn_of_unused(overrides, reporter)
    read = run.model_identity()
    bundle = load_model(run.model, section_of(subject.recipe.task), reporter.message)
    with new_folder(out) as folder:
        save_model(folder, bundle)
        shutil.copy(run.recipe_file, folder / "recipe.yaml")
        file = write_official(folder, bundle) if official else None
        changed = _changed(read_config(run.model)["task"], bundle.config["task"])
        write_text(folder / "README.md", model_card(out.name, bundle, run, file, changed))
        reloaded = load_model(folder, log=reporter.message)
        compared, difference = _compare(bundle, reloaded)
        if compared == 0:
            raise CheckFailed("no instance to compare the exported model on could be read", where=str(out))
        if difference > TOLERANCE:
            raise CheckFailed(
                f"the exported model differs from its source by {difference:.2e}", where=str(out)
            )
        files = sorted(path.name for path in folder.iterdir())
        run.refuse_other_model(read)
        _refuse_taken(out, overwrite)  # again: another process may have written there meanwhile
        _refuse_loss(out, run.model)
    reporter.message(f"reloaded and compared on {compared} instances: largest difference {difference:.1e}")
    result = {
        "path": str(out),
        "files": files,
        "parameters": parameter_count(bundle.model),
        "compared": compared,
        "largest_difference": difference,
        "load": f'smarttrim_cli.load("{out}").{call_of(bundle.config["form"]["name"])}',
    }
    if file is not None:
        reporter.message(f"{file} read back: every weight of the backbone is the same bit for bit")
        result["official"] = str(out / file)
    return result


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Keys of the task in which two sections differ, but for those of its data."""
    fields = registry.load("tasks", now["name"]).Options.model_fields.items()
    usual = {key: field.get_default(call_default_factory=True) for key, field in fields}
    old, new = {**usual, **before}, {**usual, **now}
    return [key for key in new if key not in _OF_DATA and new[key] != old.get(key)]


@torch.inference_mode()
def _compare(bundle: Bundle, reloaded: Bundle) -> tuple[int, float]:
    """Number of instances that both models answered, and the largest difference (of nan: infinite)."""
    count, difference = 0, 0.0
    for batch in batches(bundle, bundle.task.split_name("test"), 4, COMPARED_INSTANCES):
        before = bundle.model(batch.inputs, "packed").output
        after = reloaded.model(batch.inputs, "packed").output
        count += len(batch)
        apart = (before - after).abs().masked_fill(before == after, 0.0)  # unranked candidates: -inf in both
        difference = max(difference, float(apart.nan_to_num(nan=torch.inf).max()))
    return count, difference


def write_official(folder: Path, bundle: Bundle) -> str:
    """Write a model's backbone in its official layout, without the trimmers, and read it back.

    Args:
        folder: Where to; the file's name is the backbone's ``OFFICIAL_FILE``.
        bundle: The model.

    Returns:
        The file's name.

    Raises:
        UserError: The backbone, or this variant of it, has no official layout.
        CheckFailed: A fresh model does not get the same weights from the file, bit for bit.
    """
    section, backbone = bundle.config["backbone"], bundle.model.backbone
    plugin = registry.load("backbones", section["name"])
    if not hasattr(plugin, "save_official"):
        raise UserError(
            f"backbone {section['name']} has no official layout",
            where="--official",
            hint="without it, model.safetensors has all weights under the host's own names",
        )
    name = _official_file(section)
    plugin.save_official(backbone, folder / name)
    fresh = build_backbone(section, Form.from_dict(bundle.config["form"]))
    for value in fresh.state_dict().values():
        if value.is_floating_point():
            value.fill_(torch.nan)  # what the file does not bring will be seen
    plugin.load_official(fresh, folder / name, lambda text: None)
    own, found = backbone.state_dict(), fresh.state_dict()
    wrong = [key for key, value in own.items() if key not in found or not torch.equal(found[key], value)]
    if wrong:
        raise CheckFailed(f"{name} does not give back {len(wrong)} weights, such as {wrong[0]}", where=name)
    return name


def _official_file(section: Mapping[str, Any]) -> str:
    """Name of the file in the official layout of the backbone in a recipe section."""
    return str(getattr(registry.load("backbones", section["name"]), "OFFICIAL_FILE", OFFICIAL_FILE))


def _refuse_taken(out: Path, overwrite: bool) -> None:
    if out.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise UserError(
            "the command runs in this folder, so it cannot be replaced",
            where=f"--out {out}",
            hint="name a new folder",
        )
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() and not overwrite:
        raise UserError("the folder exists already", where=str(out), hint="--overwrite replaces it")
    if out.exists():
        try:
            read_config(out)
        except UserError as error:
            raise UserError(
                f"holds other things than a model of ours, so it is not replaced ({error})",
                where=str(out),
                hint="choose another folder",
            ) from error


def _refuse_loss(out: Path, model: Path) -> None:
    """Refuse to replace a folder that holds more than exports write; plug-ins have names of their own."""
    own = {_official_file(read_config(model)["backbone"]), *(path.name for path in model.iterdir())}
    found = {path.name for path in out.iterdir()} if out.is_dir() else set()
    lost = sorted(found - _EXPORTED - own)
    if lost:
        raise UserError(
            f"holds other things than a model, so it is not replaced: {some(lost)}",
            where=str(out),
            hint="move them elsewhere, or choose another folder",
        )

"""Export: a folder that runs elsewhere, compared with its source before success is reported."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from smarttrim_cli.engine.artifact import CONFIG, load_model, parameter_count, save_model
from smarttrim_cli.engine.build import section_of
from smarttrim_cli.engine.card import model_card
from smarttrim_cli.engine.files import check_writable, new_folder, write_text
from smarttrim_cli.engine.inference import batches
from smarttrim_cli.engine.report import Reporter, SilentReporter
from smarttrim_cli.engine.runs import find_subject, require_model
from smarttrim_cli.errors import CheckFailed, UserError

COMPARED_INSTANCES = 8
TOLERANCE = 1e-5


def export(
    target: str | None,
    *,
    out: Path,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Write a self-contained model folder.

    Args:
        target: Run directory or recipe; None for the newest run.
        out: The folder.
        overrides: ``key=value`` for the recipe, such as another place of the data.
        overwrite: Replace it if it exists.
        reporter: Receives messages.

    Returns:
        ``path``, ``files``, ``parameters`` and ``largest_difference`` between source and reloaded model.

    Raises:
        UserError: ``out`` exists, or there is no model.
        CheckFailed: The reloaded model answers differently from its source.
    """
    reporter = reporter or SilentReporter()
    _refuse_taken(out, overwrite)
    check_writable(out, "--out")
    subject = find_subject(target, overrides)
    run = require_model(subject, target)
    bundle = load_model(run.model, section_of(subject.recipe.task), reporter.message)
    with new_folder(out) as folder:
        save_model(folder, bundle)
        shutil.copy(run.recipe_file, folder / "recipe.yaml")
        write_text(folder / "README.md", model_card(out.name, bundle, run))
        split = bundle.task.split_name("test")
        difference = 0.0
        reloaded = load_model(folder, section_of(subject.recipe.task), reporter.message)
        with torch.inference_mode():
            for batch in batches(bundle, split, 4, COMPARED_INSTANCES):
                before = bundle.model(batch.inputs, "packed").output
                after = reloaded.model(batch.inputs, "packed").output
                apart = (before - after).nan_to_num()  # candidates that were not ranked are -inf in both
                difference = max(difference, float(apart.abs().max()))
        if difference > TOLERANCE:
            raise CheckFailed(
                f"the exported model differs from its source by {difference:.2e}", where=str(out)
            )
        files = sorted(path.name for path in folder.iterdir())
    reporter.message(
        f"reloaded and compared on {COMPARED_INSTANCES} instances: largest difference {difference:.1e}"
    )
    return {
        "path": str(out),
        "files": files,
        "parameters": parameter_count(bundle.model),
        "largest_difference": difference,
        "load": f'smarttrim_cli.load("{out}").predict(image, text)',
    }


def _refuse_taken(out: Path, overwrite: bool) -> None:
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() and not overwrite:
        raise UserError("the folder exists already", where=str(out), hint="--overwrite replaces it")
    if out.exists() and not (out / CONFIG).exists():
        raise UserError(
            f"holds other things than a model (it has no {CONFIG}), so it is not replaced",
            where=str(out),
            hint="choose another folder",
        )

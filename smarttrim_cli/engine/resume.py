"""Which checkpoint a run goes on from, and whether it is one of the same training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from smarttrim_cli.engine.checkpoint import latest
from smarttrim_cli.engine.runs import Run
from smarttrim_cli.errors import UserError, some
from smarttrim_cli.recipe import Recipe, load_recipe, resolved_yaml
from smarttrim_cli.recipe.flat import BESIDE_TRAINING, flat, is_in

_MAY_CHANGE = (
    *BESIDE_TRAINING,
    "output_dir",
    "backbone.checkpoint",  # the weights of the checkpoint take the place of these
    "pruning.calibrate",
    "train.max_steps",  # the number of steps is compared when the checkpoint is loaded
    "train.num_train_epochs",
)
"""Keys and sections that training itself does not depend on; places of data, besides."""


def checkpoint_to_resume(run: Run, resume: str | None) -> Path | None:
    """The folder that ``--resume`` means; None to begin at the first step.

    Args:
        run: The run directory.
        resume: ``auto`` (the newest checkpoint of the run, if there is one) or the path of a checkpoint.

    Raises:
        UserError: It is no checkpoint, or the run has ended without leaving one.
    """
    if resume is None:
        return None
    if resume == "auto":
        newest = latest(run)
        if newest is None and run.model.exists():
            raise UserError(
                "this run has ended, and left no checkpoint to go on from",
                where=str(run.path),
                hint="--overwrite trains it anew, output_dir=... goes elsewhere",
            )
        return newest
    path = Path(resume)
    if not (path / "state.json").exists():
        raise UserError(
            "not a checkpoint: state.json is missing", where=resume, hint="give a checkpoints/step-N folder"
        )
    return path


def refuse_other_recipe(checkpoint: Path, recipe: Recipe, warn: Callable[[str], None]) -> None:
    """Refuse to go on with another recipe than the one that a checkpoint was trained by.

    Args:
        checkpoint: A ``checkpoints/step-N`` folder; its run's ``recipe.yaml`` is two folders above.
        recipe: As it will be stored.
        warn: Told that there is none, so that nothing was compared.

    Raises:
        UserError: The run's recipe cannot be read, or a key that training depends on has another value; it
            names the keys and both values.
    """
    file = checkpoint.absolute().parent.parent / "recipe.yaml"
    if not file.exists():
        warn(f"{file} is missing, so whether the recipe is the same is not known")
        return
    stored = load_recipe(file)  # with the defaults of keys that it was too old to have
    before, now = (dict(flat(yaml.safe_load(resolved_yaml(one)))) for one in (stored, recipe))
    changed = [
        f"{key} is {_text(now.get(key, _ABSENT))} and was {_text(before.get(key, _ABSENT))}"
        for key in sorted(before.keys() | now.keys())
        if now.get(key, _ABSENT) != before.get(key, _ABSENT) and not _may_change(key)
    ]
    if changed:
        raise UserError(
            f"the checkpoint is of another recipe: {some(changed, '; ')}",
            where=str(checkpoint),
            hint=f"resume with the interrupted run's own: smarttrim finetune {file} --resume ...",
        )


_ABSENT = "not given"


def _may_change(key: str) -> bool:
    return key.endswith("_dir") or is_in(key, _MAY_CHANGE)


def _text(value: Any) -> str:
    return "null" if value is None else str(value)

"""The log of a training: lines in the run directory's history, and TensorBoard if the recipe asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator

from smarttrim_cli.engine.progress import Progress
from smarttrim_cli.engine.runs import Run
from smarttrim_cli.errors import UserError
from smarttrim_cli.recipe import Recipe


class TrainingLog:
    """Writes what a training reports; the first process's alone.

    Args:
        recipe: Its ``logging``.
        run: Where the history is.
        accelerator: Of the training.

    Raises:
        UserError: TensorBoard is asked for and not installed.
    """

    def __init__(self, recipe: Recipe, run: Run, accelerator: Accelerator) -> None:
        self.run, self.accelerator = run, accelerator
        self._writer = _tensorboard(recipe) if accelerator.is_main_process else None
        self._tracker: Any = None

    def open(self, step: int) -> None:
        """Begin to write after a step; what TensorBoard has of later ones is forgotten."""
        if self._writer is not None:
            self._tracker = self._writer(str(self.run.path / "tensorboard"), purge_step=step + 1)

    def training(self, progress: Progress, more: Mapping[str, float]) -> dict[str, float]:
        """The losses since the last time, and more of the present step; what was written."""
        record = self.over_processes(progress.take_means()) | dict(more)
        self._write({"step": progress.step}, progress, record)
        self._track("", record, progress.step)
        return record

    def warmup(self, progress: Progress) -> dict[str, float]:
        """The losses of a warm start since the last time."""
        record = self.over_processes(progress.take_means())
        place = {"step": progress.step, "phase": "warmup", "warmup_step": progress.warmup_step}
        self._write(place, progress, record)
        self._track("warmup/", record, progress.warmup_step)
        return record

    def evaluation(self, step: int, scores: Mapping[str, Any], warning: str | None) -> None:
        """Scores on the evaluation split."""
        if self.accelerator.is_main_process:
            self.run.log({"step": step, "eval": scores} | ({"warning": warning} if warning else {}))

    def _write(self, place: dict[str, Any], progress: Progress, record: dict[str, float]) -> None:
        if self.accelerator.is_main_process:
            self.run.log({**place, "seconds": round(progress.seconds, 2), **record})

    def _track(self, prefix: str, record: dict[str, float], step: int) -> None:
        if self._tracker is not None:
            for name, value in record.items():
                self._tracker.add_scalar(f"{prefix}{name}", value, step)

    def over_processes(self, own: dict[str, float]) -> dict[str, float]:
        """The numbers of every process, each of which has seen batches of its own, as their means."""
        if self.accelerator.num_processes == 1 or not own:
            return own
        numbers = [own[name] for name in sorted(own)]
        values = torch.tensor(numbers, dtype=torch.float64, device=self.accelerator.device)
        means = self.accelerator.reduce(values, reduction="mean").tolist()
        return dict(zip(sorted(own), means, strict=True))


def _tensorboard(recipe: Recipe) -> Any:
    if "tensorboard" not in recipe.logging.report_to:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            "tensorboard is not installed",
            where="logging.report_to",
            hint="pip install 'smarttrim-cli[track]'",
        ) from error
    return SummaryWriter

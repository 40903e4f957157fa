"""Checkpoints that a run resumes from exactly. A folder has its name only when it is complete."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from smarttrim_cli.data.files import read_json
from smarttrim_cli.engine.artifact import load_into, read_tensors
from smarttrim_cli.engine.files import is_number, new_folder, remove, write_json
from smarttrim_cli.engine.progress import Progress
from smarttrim_cli.engine.runs import Run
from smarttrim_cli.errors import UserError
from smarttrim_cli.tensors import save_tensors

if TYPE_CHECKING:
    from smarttrim_cli.engine.trainer import Trainer


_DAMAGED = (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError)
_OTHER_CHECKPOINT = "resume from another one: --resume .../checkpoints/step-N, or start anew with --overwrite"


def latest(run: Run) -> Path | None:
    """The newest complete checkpoint of a run."""
    found = [path for path in run.checkpoints() if (path / "state.json").exists()]
    return found[-1] if found else None


def checkpoint_name(progress: Progress) -> str:
    """Of the folder, by how far training is."""
    return f"step-{progress.step}" if progress.step else f"warmup-{progress.warmup_step}"


def save_checkpoint(trainer: Trainer) -> None:
    """Write everything that ``load_checkpoint`` restores; every process writes its own random state."""
    accelerator = trainer.accelerator
    progress = trainer.progress
    path = trainer.run.path / "checkpoints" / checkpoint_name(progress)
    states = accelerator.gather(_random_bytes().to(accelerator.device)[None]).cpu()
    stored = {**asdict(progress), "sums": trainer.log.over_processes(progress.sums)}
    if not accelerator.is_main_process:
        return
    with new_folder(path) as folder:
        save_tensors(trainer.objective.state_dict(), folder / "weights.safetensors")
        state = {
            "optimizer": trainer.optimizer.state_dict(),
            "scheduler": trainer.scheduler.state_dict(),
            "random": states,
            "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
        }
        with (folder / "state.pt").open("wb") as file:  # a path would hide that the disk is full
            torch.save(state, file)
        beside = {"total_steps": trainer.total_steps, "data": trainer.fingerprint}
        write_json(folder / "state.json", {**stored, **beside, "meaning": trainer.meaning})


def load_checkpoint(path: Path, trainer: Trainer) -> dict[str, Any]:
    """Restore a checkpoint into a trainer; returns its progress.

    Raises:
        UserError: The checkpoint is damaged, or is of another model or length of training.
    """
    progress = _read_progress(path / "state.json", trainer)
    total, data, meant = (progress.pop(name) for name in ("total_steps", "data", "meaning"))
    if data != trainer.fingerprint:
        raise UserError(
            f"the checkpoint is of other training data: {_samples(data)} then, "
            f"{_samples(trainer.fingerprint)} now",
            where=str(path),
            hint="resume with the data of the interrupted run, or start anew with --overwrite",
        )
    if total != trainer.total_steps:
        raise UserError(
            f"the checkpoint is from a run of {total} steps, this one has {trainer.total_steps}",
            where=str(path),
            hint="resume with the recipe, batch size and number of processes of the interrupted run",
        )
    _check_meaning(meant, trainer, path)
    _check_warmup(progress, trainer, path)
    with _damage_named(path / "state.pt"):
        state = torch.load(path / "state.pt", weights_only=True, map_location="cpu")
        processes = len(state["random"])
    _check_processes(processes, trainer, path)
    weights = path / "weights.safetensors"
    load_into(trainer.objective, read_tensors(weights), str(weights))
    with _damage_named(path / "state.pt"):
        trainer.optimizer.load_state_dict(state["optimizer"])
        trainer.scheduler.load_state_dict(state["scheduler"])
        if trainer.accelerator.scaler is not None and state["scaler"] is not None:
            trainer.accelerator.scaler.load_state_dict(state["scaler"])
        _restore_random(state, trainer.accelerator.process_index)
    return progress


@contextmanager
def _damage_named(file: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGED as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"the checkpoint is damaged: {reason}", where=str(file), hint=_OTHER_CHECKPOINT
        ) from error


def _check_meaning(before: dict[str, str], trainer: Trainer, path: Path) -> None:
    """Refuse a checkpoint whose classes, words or pixels stand for something else than now."""
    now = trainer.meaning
    changed = [name for name in now if before.get(name, now[name]) != now[name]]
    if changed:
        raise UserError(
            f"the checkpoint was trained with other {' and '.join(changed)}",
            where=str(path),
            hint="restore what task.answers, backbone.tokenizer or backbone.checkpoint names, or start anew "
            "with --overwrite",
        )


def _check_warmup(progress: dict[str, Any], trainer: Trainer, path: Path) -> None:
    """Refuse a checkpoint from a run with another warm start."""
    planned = trainer.warmup.steps if trainer.warmup is not None else 0
    done, before = progress["warmup_step"], trainer.targets.first_trimmed_step
    too_few = progress["step"] > before and done != planned
    too_many = done > planned or (done > 0 and progress["step"] < before)
    if too_few or too_many:
        raise UserError(
            f"the checkpoint has {done} warm-up steps behind it, this run has {planned}",
            where=str(path),
            hint="resume with the strategy.guidance_warmup of the interrupted run",
        )


def _check_processes(before: int, trainer: Trainer, path: Path) -> None:
    """Refuse a checkpoint of another number of processes: batches would be others."""
    now = trainer.accelerator.num_processes
    if before != now:
        raise UserError(
            f"the checkpoint is from a run of {before} processes, this one has {now}",
            where=str(path),
            hint="resume with as many (torchrun --nproc-per-node)",
        )


def _read_progress(file: Path, trainer: Trainer) -> dict[str, Any]:
    progress = read_json(file)
    names = {field.name for field in fields(trainer.progress)} | {"total_steps", "data", "meaning"}
    if isinstance(progress, dict):
        progress.setdefault("meaning", {})  # checkpoints of older versions have none
    if not isinstance(progress, dict) or set(progress) != names or not _sound(progress, file.parent.name):
        raise UserError("not the state of a checkpoint", where=str(file), hint=_OTHER_CHECKPOINT)
    return progress


def _samples(data: Any) -> str:
    text = str(data)
    return f"{text.partition(' ')[0]} samples ({text[-8:]})"


def _sound(progress: dict[str, Any], folder: str) -> bool:
    """Whether the values are of the kinds that they are written as, and the step is the folder's."""
    counts = [progress["step"], progress["warmup_step"], progress["total_steps"]]
    numbers = [
        progress["seconds"],
        *(v for v in (progress["best_score"], progress["best_step"]) if v is not None),
    ]
    return (
        all(type(value) is int and value >= 0 for value in counts)
        and progress["step"] <= progress["total_steps"]
        and folder.rpartition("-")[2] == str(progress["step"] or progress["warmup_step"])
        and all(isinstance(value, int | float) for value in numbers)
        and all(isinstance(progress[name], dict) for name in ("sums", "counts", "meaning"))
        and all(is_number(value) for value in progress["sums"].values())
        and all(type(value) is int and value > 0 for value in progress["counts"].values())
    )


def prune_checkpoints(run: Run, limit: int, best_step: int | None) -> None:
    """Remove the oldest checkpoints beyond a limit, and what killed processes left half written."""
    for kind in ("step", "warmup"):
        for leftover in (run.path / "checkpoints").glob(f".{kind}-*"):
            shutil.rmtree(leftover, ignore_errors=True)
    for path in run.checkpoints()[:-limit]:
        if path.name != f"step-{best_step}":
            with suppress(OSError):  # one too many is no reason to lose the training
                remove(path)


def _random_bytes() -> torch.Tensor:
    """States of torch's generators: CPU, then the current GPU if there is one, as bytes (length-prefixed)."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_available():
        states.append(torch.cuda.get_rng_state())
    return torch.cat(states)


def _restore_random(state: dict[str, Any], rank: int) -> None:
    own = state["random"][rank].clone()  # of a part of another tensor torch crashes
    size = len(torch.get_rng_state())
    torch.set_rng_state(own[:size])
    if torch.cuda.is_available() and len(own) > size:
        torch.cuda.set_rng_state(own[size:].clone())

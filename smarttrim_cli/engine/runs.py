"""Run directories: where a run keeps its recipe, checkpoints, model and results.

::

    runs/quickstart/
      recipe.yaml          the resolved recipe
      metrics.jsonl        one line per logging step and per evaluation
      checkpoints/step-N/  what --resume needs
      best/, tensorboard/  where the recipe asks for them
      model/               the final model folder
      summary.json         results: full, trimmed, speedup
      predictions.jsonl    what evaluate answered, where it was asked for
      figures/             pictures of visualize
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from smarttrim_cli.data.files import read_json
from smarttrim_cli.engine.files import (
    alone_in,
    finite,
    identity,
    is_number,
    mend_folder,
    remove,
    write_json,
    write_text,
)
from smarttrim_cli.engine.report import Reporter
from smarttrim_cli.engine.result_keys import check_result
from smarttrim_cli.errors import UserError, naming
from smarttrim_cli.recipe import Recipe, load_recipe, resolved_yaml
from smarttrim_cli.recipe.shipped import shipped_paths

DEFAULT_RECIPE = "quickstart"
_OF_TRAINING = ("backbone", "pruning", "strategy", "optimizer")
_TRAINED = ("metrics.jsonl", "checkpoints", "best", "tensorboard", "model")
_LOCK = ".lock"
_LOGGED_WORDS = ("phase", "warning")
_MOST_STEPS = 2**53
"""What a float counts exactly."""
_RESULTS = ("summary.json", "predictions.jsonl", "figures")


@dataclass(frozen=True)
class Run:
    """A run directory."""

    path: Path

    @property
    def recipe_file(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def model(self) -> Path:
        """Folder of the final model."""
        return self.path / "model"

    @property
    def metrics(self) -> Path:
        """Log of the training."""
        return self.path / "metrics.jsonl"

    @property
    def figures(self) -> Path:
        """Folder of pictures."""
        return self.path / "figures"

    @property
    def summary_file(self) -> Path:
        """Results."""
        return self.path / "summary.json"

    def checkpoints(self) -> list[Path]:
        """Checkpoints by step, oldest first; those of a warm start come before the others."""
        found = []
        for phase in ("warmup", "step"):
            numbers = [path.name.removeprefix(f"{phase}-") for path in self._checkpoints_of(phase)]
            steps = sorted(int(number) for number in numbers if number.isdigit())
            found += [self.path / "checkpoints" / f"{phase}-{step}" for step in steps]
        return found

    def _checkpoints_of(self, phase: str) -> Iterator[Path]:
        return (self.path / "checkpoints").glob(f"{phase}-*")

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other processes out of the directory while it is written.

        Raises:
            UserError: Another one is at work there.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / _LOCK, blocking=False)
        try:
            lock.acquire()
        except Timeout:
            raise UserError(
                "another process is training there",
                where=str(self.path),
                hint="wait for it, or output_dir=... goes elsewhere",
            ) from None
        except NotImplementedError:  # a file system without locks
            yield
            return
        for folder in (self.model, self.path / "best"):
            mend_folder(folder)
        try:
            yield
        finally:
            with suppress(OSError):  # Windows keeps what is open
                (self.path / _LOCK).unlink()
            lock.release()

    def start(self, recipe: Recipe) -> None:
        """Create the directory and store the resolved recipe."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.metrics.touch()  # first: a recipe alone may be somebody's own
        write_text(self.recipe_file, resolved_yaml(recipe))

    def foreign(self) -> list[str]:
        """Names of what is in the directory and was not written by a run.

        A ``recipe.yaml`` without metrics beside it is foreign, too: a user's own, or a model folder's.
        """
        if not self.path.is_dir():
            return []
        ours = {_LOCK, *_TRAINED, *_RESULTS} | ({"recipe.yaml"} if self.metrics.is_file() else set())
        return sorted(
            path.name
            for path in self.path.iterdir()
            if path.name not in ours and not _is_leftover(path.name, {*ours, "recipe.yaml"})
        )

    def clear(self) -> None:
        """Remove everything that a run writes, and nothing else."""
        foreign = set(self.foreign())
        for path in self.path.iterdir() if self.path.is_dir() else ():
            if path.name not in foreign and path.name != _LOCK:
                remove(path)

    def forget_results(self) -> None:
        """Remove the results of the model that is about to be replaced."""
        for name in _RESULTS:
            remove(self.path / name)

    def forget_best(self) -> None:
        """Remove the model with the best score."""
        remove(self.path / "best")

    def model_identity(self) -> tuple[int, int] | None:
        """What tells the final model from one that takes its place; None if there is none."""
        return identity(self.model / "config.json")

    def refuse_other_model(self, before: tuple[int, int] | None) -> None:
        """Refuse to take results of a model for those of another.

        Args:
            before: Of :meth:`model_identity`, when the model was read.

        Raises:
            UserError: Meanwhile a training has replaced or removed it.
        """
        if self.model_identity() != before:
            raise UserError(
                "the model was replaced meanwhile: another process trains there",
                where=str(self.path),
                hint="run the command again when the training has ended",
            )

    def recipe(self, overrides: Sequence[str] = ()) -> Recipe:
        """The stored recipe, with overrides."""
        return load_recipe(self.recipe_file, overrides)

    def log(self, record: dict[str, Any]) -> None:
        """Append a line to the metrics."""
        with naming(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(record)) + "\n")

    def history(self) -> Iterator[dict[str, Any]]:
        """Lines of the metrics; one cut short by a crash, and what else a run does not log, is left out."""
        if not self.metrics.exists():
            return
        for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if _is_logged(record):
                yield record

    def rewind(self, step: int, warmup_step: int = 0, ended: bool = False) -> None:
        """Drop metrics of what a resumed run does again, and a line cut short by a crash.

        Args:
            step: The last step that it does not do again.
            warmup_step: The same of the warm start.
            ended: That step was the last, whose evaluation comes after its checkpoint.
        """
        if self.metrics.exists():
            kept = [
                record
                for record in self.history()
                if record["step"] <= step
                and record.get("warmup_step", 0) <= warmup_step
                and not (ended and record["step"] == step and "eval" in record)
            ]
            write_text(self.metrics, "".join(json.dumps(record) + "\n" for record in kept))

    def drop_later_checkpoints(self, step: int, warmup_step: int) -> list[str]:
        """Remove checkpoints of steps that a resumed run does anew; their names."""
        last = {"step": step, "warmup": warmup_step}
        later = []
        for path in self.checkpoints():
            phase, _, number = path.name.rpartition("-")
            if int(number) > last[phase]:
                remove(path)
                later.append(path.name)
        return later

    def summary(self) -> dict[str, Any]:
        """Results so far.

        Raises:
            UserError: The file is damaged, or holds something else.
        """
        if not self.summary_file.exists():
            return {}
        content = read_json(self.summary_file)
        if not isinstance(content, dict):
            hint = "remove it, and evaluate the run again"
            raise UserError("not a summary: expected an object", where=str(self.summary_file), hint=hint)
        check_result(content, str(self.summary_file))
        return content

    @contextmanager
    def storing(self, reporter: Reporter) -> Iterator[None]:
        """While results are added to the summary: what fails is a warning, so that they are still shown."""
        try:
            yield
        except (OSError, UserError) as error:
            reason = error.strerror if isinstance(error, OSError) else error.message
            reporter.warn(f"the results are not stored in {self.summary_file}: {reason}")

    def merge_summary(
        self, result: dict[str, Any], kept: Callable[[dict[str, Any]], dict[str, Any]] = dict
    ) -> None:
        """Add results to the summary; nested ``full``, ``trimmed`` and ``speedup`` are merged key by key.

        Args:
            result: What is added.
            kept: What of the summary so far stays; all of it by default.
        """
        with alone_in(self.path):  # an evaluation and a profile may end at once
            summary = kept(self.summary())
            for key, value in result.items():
                if isinstance(value, dict) and isinstance(summary.get(key), dict):
                    summary[key] = {**summary[key], **value}
                else:
                    summary[key] = value
            write_json(self.summary_file, summary)


def _is_logged(record: Any) -> bool:
    """Whether it is what ``Run.log`` was given: whole steps, and numbers that can be drawn."""
    if not isinstance(record, dict) or not isinstance(record.get("eval", {}), dict):
        return False
    steps = (record.get("step"), record.get("warmup_step", 0))
    others = [value for key, value in record.items() if key not in ("eval", *_LOGGED_WORDS)]
    return all(type(step) is int and 0 <= step < _MOST_STEPS for step in steps) and all(
        value is None or is_number(value) for value in others
    )


def _is_leftover(name: str, of: set[str]) -> bool:
    """Whether a name is that of a file or folder which a killed process left half written."""
    return name.startswith(".") and name.endswith((".tmp", ".old")) and name[1:].rsplit(".", 2)[0] in of


def is_run(path: Path) -> bool:
    """Whether a path is a run directory; an exported model has the recipe it was trained by, too."""
    return (path / "recipe.yaml").is_file() and not is_exported(path)


def is_exported(path: Path) -> bool:
    """Whether a path is what ``smarttrim export`` writes."""
    return (path / "recipe.yaml").is_file() and (path / "config.json").is_file()


def not_a_run(path: Path) -> UserError:
    """What to say of a folder that a command cannot work with."""
    if is_exported(path):
        return UserError(
            "an exported model, not a run directory",
            where=str(path),
            hint="give the run it came from; backbone.checkpoint trains it on, smarttrim_cli.load opens it",
        )
    return UserError("not a run directory: it has no recipe.yaml", where=str(path))


def newest_run(root: Path = Path("runs")) -> Run | None:
    """The run with a model that changed last."""
    runs = [path.parent.parent for path in root.glob("**/model/config.json") if is_run(path.parent.parent)]
    return Run(max(runs, key=lambda path: (path / "model").stat().st_mtime)) if runs else None


@dataclass(frozen=True)
class Subject:
    """What a command acts on: a run directory, or a recipe without one."""

    recipe: Recipe
    run: Run | None


def find_subject(target: str | None, overrides: Sequence[str] = ()) -> Subject:
    """A run directory, a recipe, or by default the newest run, else the quick-start recipe.

    Raises:
        UserError: The target is neither.
    """
    if target is None:
        run = newest_run()
        return (
            Subject(run.recipe(overrides), run)
            if run
            else Subject(load_recipe(DEFAULT_RECIPE, overrides), None)
        )
    path = Path(target)
    if is_run(path):
        return Subject(Run(path).recipe(overrides), Run(path))
    if path.is_dir():
        raise not_a_run(path)
    if not path.exists() and path.suffix not in (".yaml", ".yml") and target not in shipped_paths():
        found = ", ".join(sorted(str(file.parent) for file in Path("runs").glob("*/recipe.yaml")))
        hint = f"runs here: {found or 'none'}; recipes: {', '.join(shipped_paths())}"
        raise UserError("no such run directory or recipe", where=target, hint=hint)
    return Subject(load_recipe(target, overrides), None)


def warn_of_unused(overrides: Sequence[str], reporter: Reporter) -> None:
    """Say which overrides are of training, and change nothing about a model that is trained."""
    unused = [text for text in overrides if text.split("=", 1)[0].split(".")[0] in _OF_TRAINING]
    if unused:
        reporter.warn(f"of training, so without effect on the trained model: {', '.join(unused)}")


def require_model(subject: Subject, target: str | None) -> Run:
    """The run of a subject, which must have a trained model; a recipe stands for the run in its output_dir.

    Raises:
        UserError: Nothing has been trained there.
    """
    run = subject.run or Run(Path(subject.recipe.output_dir))
    if not (run.model / "config.json").exists():
        raise UserError(
            "no trained model there yet",
            where=str(run.path),
            hint=f"train one first: smarttrim finetune {_how_to_train(run, target)}",
        )
    return run


def _how_to_train(run: Run, target: str | None) -> str:
    if not is_run(run.path):
        return target or DEFAULT_RECIPE
    return f"{run.recipe_file} {'--resume auto' if run.checkpoints() else '--overwrite'}"

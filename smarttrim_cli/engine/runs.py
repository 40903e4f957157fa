"""Run directories: where a run keeps its recipe, checkpoints, model and results.

::

    runs/quickstart/
      recipe.yaml          the resolved recipe
      metrics.jsonl        one line per logging step and per evaluation
      checkpoints/step-N/  what --resume needs
      model/               the final model folder
      summary.json         results: full, trimmed, speedup
      figures/             pictures of visualize
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smarttrim_cli.data.files import read_json
from smarttrim_cli.engine.files import finite, write_json, write_text
from smarttrim_cli.errors import UserError
from smarttrim_cli.recipe import Recipe, load_recipe, resolved_yaml
from smarttrim_cli.recipe.shipped import shipped_paths

DEFAULT_RECIPE = "quickstart"


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

    def start(self, recipe: Recipe) -> None:
        """Create the directory and store the resolved recipe."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.recipe_file, resolved_yaml(recipe))

    def recipe(self, overrides: Sequence[str] = ()) -> Recipe:
        """The stored recipe, with overrides."""
        return load_recipe(self.recipe_file, overrides)

    def log(self, record: dict[str, Any]) -> None:
        """Append a line to the metrics."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(record)) + "\n")

    def history(self) -> Iterator[dict[str, Any]]:
        """Lines of the metrics; one cut short by a crash is left out."""
        if not self.metrics.exists():
            return
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue

    def rewind(self, step: int, warmup_step: int = 0) -> None:
        """Drop metrics of later steps (a resumed run makes those again) and a line cut short by a crash."""
        if self.metrics.exists():
            kept = [
                record
                for record in self.history()
                if record["step"] <= step and record.get("warmup_step", 0) <= warmup_step
            ]
            write_text(self.metrics, "".join(json.dumps(record) + "\n" for record in kept))

    def summary(self) -> dict[str, Any]:
        """Results so far."""
        return dict(read_json(self.summary_file)) if self.summary_file.exists() else {}

    def merge_summary(self, result: dict[str, Any]) -> None:
        """Add results to the summary; nested ``full``, ``trimmed`` and ``speedup`` are merged key by key."""
        summary = self.summary()
        for key, value in result.items():
            if isinstance(value, dict) and isinstance(summary.get(key), dict):
                summary[key] = {**summary[key], **value}
            else:
                summary[key] = value
        write_json(self.summary_file, summary)


def is_run(path: Path) -> bool:
    """Whether a path is a run directory."""
    return (path / "recipe.yaml").is_file()


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
        raise UserError("not a run directory: it has no recipe.yaml", where=target)
    if not path.exists() and path.suffix not in (".yaml", ".yml") and target not in shipped_paths():
        found = ", ".join(sorted(str(file.parent) for file in Path("runs").glob("*/recipe.yaml")))
        hint = f"runs here: {found or 'none'}; recipes: {', '.join(shipped_paths())}"
        raise UserError("no such run directory or recipe", where=target, hint=hint)
    return Subject(load_recipe(target, overrides), None)


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
            hint=f"train one first: smarttrim finetune {target or DEFAULT_RECIPE}",
        )
    return run

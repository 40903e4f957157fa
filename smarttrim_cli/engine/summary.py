"""What a run gave: results from its summary and the paths of its pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from smarttrim_cli.engine.runs import Run, is_run, newest_run, not_a_run
from smarttrim_cli.errors import UserError


def summary(target: str | None) -> dict[str, Any]:
    """Results of a run, with ``pictures``.

    Args:
        target: Run directory; None for the newest run.

    Raises:
        UserError: There is no run, or it has no results yet.
    """
    run = newest_run() if target is None else Run(Path(target))
    if run is None:
        raise UserError("there is no run yet", where="runs/", hint="smarttrim finetune quickstart")
    if not is_run(run.path):
        raise not_a_run(run.path)
    result = run.summary()
    if not result:
        raise UserError("no results there yet", where=str(run.path), hint=f"smarttrim evaluate {run.path}")
    page = run.figures / "index.html"
    pictures = sorted(str(path) for path in run.figures.glob("*.png"))
    return {**result, "run_dir": str(run.path), "pictures": ([str(page)] if page.exists() else []) + pictures}

"""``smarttrim evaluate``: score the full and the trimmed model on the same instances."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from smarttrim_cli.cli import render
from smarttrim_cli.cli.common import (
    AsJson,
    Output,
    Require,
    TargetAndOverrides,
    check_apart,
    check_output,
    deliver,
    split_target,
)
from smarttrim_cli.cli.console import Console
from smarttrim_cli.cli.require import enforce, parse_requirements


def evaluate(
    console: Console,
    arguments: TargetAndOverrides = None,
    split: Annotated[str | None, typer.Option(help="Split of the data; default: the recipe's.")] = None,
    max_instances: Annotated[int | None, typer.Option(min=1, help="At most this many instances.")] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Also score this way of trimming at equal MACs: random, tome, saliency, grad_all, "
            "grad_layer. Repeatable.",
        ),
    ] = None,
    predictions_out: Annotated[Path | None, typer.Option(help="Write the predictions as JSONL.")] = None,
    from_predictions: Annotated[
        Path | None, typer.Option(help="Score the predictions of this JSONL; run no model.")
    ] = None,
    submission_out: Annotated[
        Path | None,
        typer.Option(help="Write the predictions in the task's submission format."),
    ] = None,
    require: Require = None,
    as_json: AsJson = False,
    output: Output = None,
) -> None:
    """Score the full and the trimmed model.

    Example: smarttrim evaluate runs/quickstart --require 'trimmed.accuracy>=0.93'
    """
    target, overrides = split_target(arguments)
    requirements = parse_requirements(require)
    check_output(output)
    check_apart(output=output, predictions_out=predictions_out, submission_out=submission_out)
    from smarttrim_cli.engine.devices import first_process
    from smarttrim_cli.engine.evaluate import evaluate as run

    result = run(
        target,
        overrides=overrides,
        split=split,
        max_instances=max_instances,
        baselines=baseline or (),
        predictions_out=predictions_out,
        from_predictions=from_predictions,
        submission_out=submission_out,
        reporter=console,
    )
    if not first_process() or not result:  # another process has it
        return
    deliver(console, result, render.comparison(result), as_json=as_json, output=output)
    enforce(requirements, result)

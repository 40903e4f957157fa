"""``smarttrim finetune``: train a recipe."""

from __future__ import annotations

from typing import Annotated

import typer

from smarttrim_cli.cli import render
from smarttrim_cli.cli.common import AsJson, Output, check_output, deliver
from smarttrim_cli.cli.console import Console


def finetune(
    console: Console,
    recipe: Annotated[str, typer.Argument(help="A recipe: path, or name of a shipped one.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Overrides of recipe keys, such as seed=1."),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="auto|PATH", help="Continue from the newest checkpoint of the run, or from this one."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Stop before training; show the plan and its predicted cost.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier run in output_dir.")
    ] = False,
    as_json: AsJson = False,
    output: Output = None,
) -> None:
    """Fine-tune a model as a recipe says.

    Example: smarttrim finetune quickstart seed=1 optimizer.learning_rate=1e-4
    """
    check_output(output)
    from smarttrim_cli.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    from smarttrim_cli.engine.devices import first_process
    from smarttrim_cli.engine.finetune import finetune as run

    result = run(loaded, resume=resume, dry_run=dry_run, overwrite=overwrite, reporter=console)
    if not first_process():
        return
    text = render.plan(result) if dry_run else render.comparison(result)
    deliver(console, result, text, as_json=as_json, output=output)

"""``smarttrim data``: make data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from smarttrim_cli.cli import render
from smarttrim_cli.cli.common import AsJson, Output, check_output, deliver, new_app, subcommand
from smarttrim_cli.cli.console import Console

app = new_app("Make data sets.")


@app.callback()
def _group() -> None:
    """Make data sets."""


def scenes(
    console: Console,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Options, such as num_images.train=100."),
    ] = None,
    task: Annotated[
        str,
        typer.Option(help="What is said about them: for vqa, nlvr2, snli_ve, retrieval or captioning."),
    ] = "vqa",
    seed: Annotated[int | None, typer.Option(help="Seed; the same seed gives the same files.")] = None,
    as_json: AsJson = False,
    output: Output = None,
) -> None:
    """Write synthetic scenes for a task.

    They have the layout of its official data set.

    Example: smarttrim data scenes --task nlvr2 --out scenes num_images.train=100
    """
    check_output(output)
    from smarttrim_cli import registry
    from smarttrim_cli.recipe import load_options

    plugin = registry.load("data", "scenes")
    chosen = [*(overrides or ()), *([f"seed={seed}"] if seed is not None else [])]
    counts = plugin.build(out, load_options(plugin.Options, chosen), log=console.message, task=task)
    deliver(console, counts, render.comparison(counts), as_json=as_json, output=output)


subcommand(app, scenes)

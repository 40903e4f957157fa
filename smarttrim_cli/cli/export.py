"""``smarttrim export``: a folder that runs elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from smarttrim_cli.cli import render
from smarttrim_cli.cli.common import (
    AsJson,
    Output,
    TargetAndOverrides,
    check_output,
    deliver,
    split_target,
)
from smarttrim_cli.cli.console import Console


def export(
    console: Console,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write.")],
    arguments: TargetAndOverrides = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace an older model folder; one with other files is refused."),
    ] = False,
    official: Annotated[
        bool,
        typer.Option("--official", help="Also write the backbone in its official layout, for other code."),
    ] = False,
    as_json: AsJson = False,
    output: Output = None,
) -> None:
    """Write a folder that runs elsewhere.

    From Python, smarttrim_cli.load(DIR) opens it.

    Example: smarttrim export runs/quickstart --out exported
    """
    target, overrides = split_target(arguments)
    check_output(output)
    from smarttrim_cli.engine.export import export as run

    result = run(
        target, out=out, overrides=overrides, overwrite=overwrite, official=official, reporter=console
    )
    deliver(console, result, render.comparison(result), as_json=as_json, output=output)

"""``smarttrim summary``: what a run gave."""

from __future__ import annotations

from typing import Annotated

import typer

from smarttrim_cli.cli import render
from smarttrim_cli.cli.common import AsJson, Output, Require, check_output, deliver
from smarttrim_cli.cli.console import Console
from smarttrim_cli.cli.require import enforce, parse_requirements


def summary(
    console: Console,
    run: Annotated[str | None, typer.Argument(help="A run directory; default: the newest run.")] = None,
    require: Require = None,
    as_json: AsJson = False,
    output: Output = None,
) -> None:
    """Show what a run gave, and its pictures.

    Example: smarttrim summary runs/quickstart
    """
    requirements = parse_requirements(require)
    check_output(output)
    from smarttrim_cli.engine.summary import summary as read

    result = read(run)
    deliver(console, result, render.comparison(result), as_json=as_json, output=output)
    enforce(requirements, result)

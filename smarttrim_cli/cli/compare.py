"""``smarttrim compare``: runs side by side, and score against cost."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from smarttrim_cli.cli.common import AsJson, Require, check_apart, check_output, print_and_write
from smarttrim_cli.cli.console import Console
from smarttrim_cli.cli.require import enforce, parse_requirements
from smarttrim_cli.errors import UserError


class Format(str, Enum):
    """How the table is written."""

    TEXT = "text"
    MARKDOWN = "markdown"
    CSV = "csv"
    JSON = "json"


def compare(
    console: Console,
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]RUN",
            help="Run directories, JSON result files, or folders of them; NAME= names the method. "
            "Runs that differ in their seed only become one row.",
        ),
    ],
    reference: Annotated[
        str, typer.Option(metavar="METHOD", help="Method that the others are compared with.")
    ] = "full",
    method: Annotated[
        list[str] | None, typer.Option(metavar="METHOD", help="Only this one and the reference. Repeatable.")
    ] = None,
    form: Annotated[Format | None, typer.Option("--format", help="Form of the table; default: text.")] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw score against MACs and latency: a .png or .svg file."),
    ] = None,
    published: Annotated[
        bool, typer.Option("--published", help="Add the paper's points of the same tasks.")
    ] = False,
    require: Require = None,
    as_json: AsJson = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Also write the table; .txt, .md, .csv or .json says in which form.",
        ),
    ] = None,
) -> None:
    """Put runs side by side.

    Example: smarttrim compare ours=runs/a trips=runs/b --reference trips --plot pareto.png
    """
    if as_json and form not in (None, Format.JSON):
        raise UserError(f"--json and --format {form.value} contradict each other", hint="give one of them")
    from smarttrim_cli.cli import render_compare

    chosen = "json" if as_json else (form or Format.TEXT).value
    requirements = parse_requirements(require)
    check_output(output)
    endings = render_compare.ENDINGS
    if output is not None and output.suffix.lower() not in endings and not (form or as_json):
        raise UserError(
            "its ending says no form of the table",
            where=f"--output {output}",
            hint=f"{', '.join(endings)}; or --format",
        )
    check_output(plot, "--plot")
    check_apart(output=output, plot=plot)
    from smarttrim_cli.engine.compare import compare as run

    result = run(
        runs,
        reference=reference,
        methods=method or (),
        plot=plot,
        published=published,
        reporter=console,
    )
    written = chosen if output is None else render_compare.ENDINGS.get(output.suffix.lower(), chosen)
    text, content = (render_compare.FORMATS[name](result) for name in (chosen, written))
    print_and_write(console, text, output, content)
    enforce(requirements, render_compare.required(result))

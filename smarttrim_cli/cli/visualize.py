"""``smarttrim visualize``: pictures of what was dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from smarttrim_cli.cli.common import AsJson, Output, TargetAndOverrides, check_output, deliver, split_target
from smarttrim_cli.cli.console import Console


def visualize(
    console: Console,
    arguments: TargetAndOverrides = None,
    instance: Annotated[
        list[int] | None, typer.Option(min=0, metavar="INDEX", help="Show this instance. Repeatable.")
    ] = None,
    num_instances: Annotated[int, typer.Option(min=1, help="How many instances, if none is named.")] = 4,
    image: Annotated[
        Path | None, typer.Option(help="Show this picture instead of the recipe's data.")
    ] = None,
    question: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="A question about --image. Repeatable.")
    ] = None,
    similarity: Annotated[
        bool, typer.Option("--similarity", help="Also how alike the full model's tokens and heads are.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the pictures go; default: the run directory.")
    ] = None,
    as_json: AsJson = False,
    output: Output = None,
) -> None:
    """Draw what is kept, layer by layer.

    Example: smarttrim visualize runs/quickstart --num-instances 8
    """
    target, overrides = split_target(arguments)
    check_output(output)
    from smarttrim_cli.engine.visualize import visualize as run

    pictures = run(
        target,
        overrides=overrides,
        instances=instance or (),
        num_instances=num_instances,
        image=image,
        questions=question or (),
        similarity=similarity,
        out=out,
        reporter=console,
    )
    text = "\n".join(str(path) for path in pictures)
    deliver(console, {"pictures": list(pictures)}, text, as_json=as_json, output=output)

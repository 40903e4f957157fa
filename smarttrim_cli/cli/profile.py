"""``smarttrim profile``: MACs, latency and memory of the full and the trimmed model."""

from __future__ import annotations

from typing import Annotated

import typer

from smarttrim_cli.cli import render
from smarttrim_cli.cli.common import (
    AsJson,
    Output,
    Require,
    TargetAndOverrides,
    check_output,
    deliver,
    split_target,
)
from smarttrim_cli.cli.console import Console
from smarttrim_cli.cli.require import enforce, parse_requirements
from smarttrim_cli.errors import UserError


def profile(
    console: Console,
    arguments: TargetAndOverrides = None,
    single_instance: Annotated[
        bool, typer.Option("--single-instance", help="One instance at a time, without padding.")
    ] = False,
    num_instances: Annotated[int, typer.Option(min=1, help="How many instances are measured.")] = 50,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Instances per forward pass.")] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Load no weights; trim at random to the target sparsity.")
    ] = False,
    sparsity_from: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="With random weights: the kept fractions measured in this run."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Such as cpu or cuda; default: the best there is.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    host_kernels: Annotated[
        bool, typer.Option("--host-kernels", help="On a CPU: leave the weights as they are.")
    ] = False,
    by_layer: Annotated[bool, typer.Option("--by-layer", help="A table of all layers.")] = False,
    counts: Annotated[
        bool, typer.Option("--counts", help="MACs of single instances by three ways of counting.")
    ] = False,
    require: Require = None,
    as_json: AsJson = False,
    output: Output = None,
) -> None:
    """Measure MACs, latency and memory, full and trimmed.

    Example: smarttrim profile runs/quickstart --single-instance --require 'speedup.macs>=2'
    """
    target, overrides = split_target(arguments)
    requirements = parse_requirements(require)
    check_output(output)
    if counts and not single_instance and batch_size != 1:
        raise UserError("--counts is for single instances", where="--counts", hint="add --single-instance")
    from smarttrim_cli.engine.profile import profile as run

    result = run(
        target,
        overrides=overrides,
        single_instance=single_instance,
        num_instances=num_instances,
        batch_size=batch_size,
        random_weights=random_weights,
        sparsity_from=sparsity_from,
        device=device,
        threads=threads,
        host_kernels=host_kernels,
        by_layer=by_layer,
        reporter=console,
    )
    shown = {name: value for name, value in result.items() if counts or name != "macs_counts"}
    deliver(console, result, render.comparison(shown), as_json=as_json, output=output)
    enforce(requirements, result)

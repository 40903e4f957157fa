"""The ``smarttrim`` command: puts the subcommands together."""

from __future__ import annotations

import os
import signal
import sys

import typer

from smarttrim_cli.cli import data, recipes
from smarttrim_cli.cli.common import Debug, Quiet, Version, new_app, subcommand
from smarttrim_cli.cli.compare import compare
from smarttrim_cli.cli.console import Console
from smarttrim_cli.cli.evaluate import evaluate
from smarttrim_cli.cli.export import export
from smarttrim_cli.cli.finetune import finetune
from smarttrim_cli.cli.profile import profile
from smarttrim_cli.cli.streams import ignore_warnings_of_size, make_streams_usable
from smarttrim_cli.cli.summary import summary
from smarttrim_cli.cli.visualize import visualize

app = new_app("Trim vision-language models: fine-tune, evaluate, profile, visualize, export.")


@app.callback()
def _common(ctx: typer.Context, quiet: Quiet = False, debug: Debug = False, version: Version = False) -> None:
    """Trim vision-language models: fine-tune, evaluate, profile, visualize, export."""
    ctx.obj = Console(quiet, debug)


for _function in (finetune, evaluate, profile, visualize, export, summary, compare):
    subcommand(app, _function)
app.add_typer(recipes.app, name="recipes")
app.add_typer(data.app, name="data")


def main() -> None:
    """Run the command line."""
    make_streams_usable()
    ignore_warnings_of_size()
    os.environ["MPLBACKEND"] = "agg"  # a notebook's, which its commands inherit, need not be installed here
    try:
        app(prog_name="smarttrim")
    except KeyboardInterrupt:  # before a subcommand has begun
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except SystemExit as ending:
        if ending.code == 130:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is left to do is to end
        raise

"""``smarttrim recipes``: list, show and validate recipes; print their JSON schema."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from smarttrim_cli.cli import render
from smarttrim_cli.cli.common import AsJson, Output, check_output, deliver, is_override, new_app, subcommand
from smarttrim_cli.cli.console import Console
from smarttrim_cli.errors import UserError

app = new_app("List, show and validate recipes.")


@app.callback()
def _group() -> None:
    """List, show and validate recipes."""


def list_(console: Console, as_json: AsJson = False, output: Output = None) -> None:
    """List the recipes that come with the package.

    Example: smarttrim recipes list
    """
    check_output(output)
    from smarttrim_cli.recipe import recipes_list

    found = [{"name": r.name, "path": str(r.path), "description": r.description} for r in recipes_list()]
    width = max((len(entry["name"]) for entry in found), default=0)
    text = "\n".join(f"{entry['name']:{width}}  {entry['description']}".rstrip() for entry in found)
    deliver(console, found, text or "no recipes", as_json=as_json, output=output)


def show(
    console: Console,
    recipe: Annotated[str, typer.Argument(help="A recipe: path, or name of a shipped one.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides; they imply --resolved.")
    ] = None,
    resolved: Annotated[bool, typer.Option("--resolved", help="With every default filled in.")] = False,
) -> None:
    """Print a recipe.

    Example: smarttrim recipes show quickstart --resolved
    """
    from smarttrim_cli.recipe import find_recipe, load_recipe, resolved_yaml
    from smarttrim_cli.recipe.source import read_recipe_text

    if resolved or overrides:
        console.result(resolved_yaml(load_recipe(recipe, overrides or ())))
    else:
        console.result(read_recipe_text(find_recipe(recipe)))


def validate(
    console: Console,
    arguments: Annotated[
        list[str], typer.Argument(metavar="FILE|KEY=VALUE", help="Recipes: paths, patterns or names.")
    ],
    as_json: AsJson = False,
    output: Output = None,
) -> None:
    """Check recipes, and predict their cost.

    Prints target_sparsity (the fraction removed) beside the kept fraction, and MACs of the full and
    the trimmed model.

    Example: smarttrim recipes validate 'recipes/**/*.yaml'
    """
    check_output(output)
    overrides = [text for text in arguments if is_override(text)]
    files = _expand([text for text in arguments if text not in overrides])
    reports = [_validate(file, overrides) for file in files]
    text = "\n\n".join(_report_text(report) for report in reports)
    deliver(console, reports, text, as_json=as_json, output=output)
    wrong = [report["file"] for report in reports if not report["valid"]]
    if wrong:
        raise UserError(f"{len(wrong)} of {len(reports)} recipes not valid: {', '.join(wrong)}")


def schema(console: Console, output: Output = None) -> None:
    """Print the JSON schema of recipes, for editors.

    Example: smarttrim recipes schema --output recipe.schema.json
    """
    check_output(output)
    from smarttrim_cli.recipe import recipe_schema

    deliver(console, recipe_schema(), "", as_json=True, output=output)


def _expand(patterns: Sequence[str]) -> list[str]:
    """Files of patterns such as ``recipes/**/*.yaml``; files and other texts as they are."""
    files: list[str] = []
    for pattern in patterns:
        is_pattern = glob.has_magic(pattern) and not os.path.exists(pattern)
        found = sorted(glob.glob(pattern, recursive=True)) if is_pattern else [pattern]
        if not found:
            raise UserError("no file matches", where=pattern)
        files += found
    if not files:
        raise UserError("no recipe to validate", hint="`smarttrim recipes list` names the shipped ones")
    return list(dict.fromkeys(files))


def _validate(file: str, overrides: Sequence[str]) -> dict[str, Any]:
    from smarttrim_cli.engine.artifact import MissingCheckpoint
    from smarttrim_cli.engine.plan import plan
    from smarttrim_cli.recipe import RecipeError, load_recipe

    try:
        recipe = load_recipe(file, overrides)
        return {"file": file, "valid": True, "problems": [], "plan": plan(recipe, check=True)}
    except MissingCheckpoint as error:  # not a fault of the recipe
        return {"file": file, "valid": True, "problems": [f"costs not predicted: {error}"], "plan": None}
    except RecipeError as error:
        return {"file": file, "valid": False, "problems": [str(problem) for problem in error.problems]}
    except UserError as error:
        return {"file": file, "valid": False, "problems": [str(error)]}


def _report_text(report: dict[str, Any]) -> str:
    if report["valid"] and report["plan"] is None:
        return "\n".join([f"{report['file']}: valid", *report["problems"]])
    if report["valid"]:
        return f"{report['file']}: valid\n{render.plan(report['plan'])}"
    return "\n".join([f"{report['file']}: NOT valid", *report["problems"]])


subcommand(app, list_, "list")
subcommand(app, show)
subcommand(app, validate)
subcommand(app, schema)

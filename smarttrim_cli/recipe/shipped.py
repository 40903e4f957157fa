"""Finds recipe files: those of the user, and by name those shipped with the package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from smarttrim_cli import registry
from smarttrim_cli.errors import UserError
from smarttrim_cli.recipe.source import read_source

_PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe that comes with the package."""

    name: str
    path: Path
    description: str


def shipped_folder() -> Path:
    """The folder of the shipped recipes: in an installed package, or in a checkout."""
    installed = _PACKAGE / "_recipes"
    return installed if installed.is_dir() else _PACKAGE.parent / "recipes"


def shipped_paths() -> dict[str, Path]:
    """The shipped recipes by name (path below the folder, without ``.yaml``)."""
    folder = shipped_folder()
    return {_name(path.relative_to(folder)): path for path in sorted(folder.rglob("*.yaml"))}


def recipes_list() -> list[ShippedRecipe]:
    """The shipped recipes with their descriptions."""
    return [
        ShippedRecipe(name, path, str(read_source(path).data.get("description", "")))
        for name, path in shipped_paths().items()
    ]


def find_recipe(path_or_name: str | Path) -> Path:
    """The file of a recipe: a path, or the name of a shipped one.

    Raises:
        UserError: There is no such file and no such name, or it is a directory.
    """
    path = Path(path_or_name)
    if path.is_file():
        return path
    shipped = shipped_paths()
    name = _name(path).removeprefix("recipes/")
    if name in shipped:
        return _from_here(shipped[name])
    if path.is_dir():
        inside = path / "recipe.yaml"
        hint = f"its recipe is {inside}" if inside.is_file() else "give the path of a .yaml file in it"
        raise UserError("is a directory, not a recipe", where=str(path), hint=hint)
    if path.exists():
        raise UserError("is not a regular file", where=str(path))
    nearest = registry.did_you_mean(name, shipped)
    question = f"; did you mean {nearest}?" if nearest else ""
    raise UserError(
        f"no such recipe{question}", where=str(path), hint=f"shipped recipes: {', '.join(shipped) or 'none'}"
    )


def _name(path: Path) -> str:
    return path.as_posix().removesuffix(".yaml")


def _from_here(path: Path) -> Path:
    """The path as a user in the current directory would write it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path

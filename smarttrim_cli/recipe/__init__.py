"""The recipe of a run: its schema, loading with overrides, and errors that say where they are."""

from smarttrim_cli.recipe.load import RecipeError, load_options, load_recipe, resolved_yaml
from smarttrim_cli.recipe.plugins import recipe_schema, resolved_dict
from smarttrim_cli.recipe.schema import Plugin, Pruning, Recipe, TargetSparsity
from smarttrim_cli.recipe.shipped import ShippedRecipe, find_recipe, recipes_list

__all__ = [
    "Plugin",
    "Pruning",
    "Recipe",
    "RecipeError",
    "ShippedRecipe",
    "TargetSparsity",
    "find_recipe",
    "load_options",
    "load_recipe",
    "recipe_schema",
    "recipes_list",
    "resolved_dict",
    "resolved_yaml",
]

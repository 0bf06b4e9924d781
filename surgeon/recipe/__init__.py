"""YAML ⇄ expression: native recipes, mergekit's YAML, and back."""

from surgeon.recipe.dump import dump_recipe
from surgeon.recipe.load import LoadedRecipe, load, load_recipe, parse
from surgeon.recipe.schema import json_schema
from surgeon.recipe.search import Searched, searched

__all__ = ["LoadedRecipe", "Searched", "dump_recipe", "json_schema", "load", "load_recipe", "parse", "searched"]

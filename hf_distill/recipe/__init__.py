"""Recipes: one YAML file that says everything about a run. Here, and only here, a recipe's strings become objects."""

from __future__ import annotations

from .checking import load_recipe, look_at_recipe
from .sections import Recipe
from .setup import Setup

__all__ = ["Recipe", "Setup", "load_recipe", "look_at_recipe"]

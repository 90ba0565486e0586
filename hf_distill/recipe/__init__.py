"""Recipes: one YAML file that says everything about a run. Here, and only here, a recipe's strings become objects."""

from __future__ import annotations

from .building import build_arguments, build_baseline, build_cache, build_trainer, evaluate_recipe, label_plan
from .loading import evaluation_split, load_data
from .reading import load_recipe
from .sections import Recipe

__all__ = [
    "Recipe",
    "build_arguments",
    "build_baseline",
    "build_cache",
    "build_trainer",
    "evaluate_recipe",
    "evaluation_split",
    "label_plan",
    "load_data",
    "load_recipe",
]

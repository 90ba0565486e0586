"""Recipes: one YAML file that says everything about a run. Here, and only here, a recipe's strings become objects."""

from __future__ import annotations

from .attention import attention_recipe
from .auditing import audit_recipe
from .building import build_arguments, build_baseline, build_cache, build_trainer, evaluate_recipe, label_plan
from .exporting import export_run
from .loading import evaluation_split, load_data
from .reading import load_recipe
from .searching import search_recipe
from .sections import Recipe

__all__ = [
    "Recipe",
    "attention_recipe",
    "audit_recipe",
    "build_arguments",
    "build_baseline",
    "build_cache",
    "build_trainer",
    "evaluate_recipe",
    "evaluation_split",
    "export_run",
    "label_plan",
    "load_data",
    "load_recipe",
    "search_recipe",
]

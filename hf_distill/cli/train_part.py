"""`hf-distill train-part`, which a verdict starts in processes of their own."""

from __future__ import annotations

from ..runs.verdict.judgement import train_verdict_part
from .shared import Overrides, RecipeFile, load, reporting


def train_part(recipe: RecipeFile, part: str, seed: int, key: str, overrides: Overrides = None) -> None:
    """Train one of the other trainings of a verdict; `train` starts this in processes of their own."""
    with reporting():
        train_verdict_part(load(recipe, overrides), part, seed, key)

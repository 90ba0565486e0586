"""`hf-distill train-part`, which a verdict starts in processes of their own."""

from __future__ import annotations

from .shared import Overrides, RecipeFile, Trust, load


def train_part(
    recipe: RecipeFile, part: str, seed: int, key: str, overrides: Overrides = None, trust: Trust = None
) -> None:
    """Train one of the other trainings of a verdict; `train` starts this in processes of their own."""
    from ..runs.verdict.judgement import train_verdict_part

    train_verdict_part(load(recipe, overrides, trust), part, seed, key)

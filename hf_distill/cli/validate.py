"""`hf-distill validate`."""

from __future__ import annotations

from typing import Annotated

import typer

from .shared import Overrides, RecipeFile, load


def validate(
    recipe: RecipeFile,
    overrides: Overrides = None,
    with_data: Annotated[
        bool,
        typer.Option("--load", help="Also load data and teachers, and print how their labels are matched."),
    ] = False,
) -> None:
    """Check a recipe, all problems at once, and print what would run. Loads no model and no data."""
    from ..runs.validate import validate_recipe

    validate_recipe(load(recipe, overrides), load=with_data)

"""`hf-distill validate`."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from .shared import Overrides, RecipeFile, Trust, reach_own_modules


def validate(
    recipe: RecipeFile,
    overrides: Overrides = None,
    with_data: Annotated[
        bool,
        typer.Option("--load", help="Also load data and teachers, and print how their labels are matched."),
    ] = False,
    trust: Trust = None,
) -> None:
    """Check a recipe, all problems at once, and print what would run and what it would take. Loads no model, and nobody's
    own code but what is trusted; of data, local files alone are read."""
    from ..recipe import Setup, look_at_recipe
    from ..runs.validate import validate_recipe

    reach_own_modules()
    looked = look_at_recipe(recipe, overrides or [], trust=trust or ())
    validate_recipe(
        Setup(looked.recipe, trust=frozenset(trust or ())),
        load=with_data,
        unchecked=looked.unchecked,
        command=shlex.join(["hf-distill", "train", str(recipe), *(overrides or [])]),
    )

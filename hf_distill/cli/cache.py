"""`hf-distill cache`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigurationError
from ..evaluation.terminal import fitted
from ..processes import say
from .shared import Overrides, Trust, load


def cache(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    info: Annotated[
        Path | None, typer.Option(metavar="DIR", help="List what a cache holds instead.", show_default=False)
    ] = None,
    trust: Trust = None,
) -> None:
    """Run every teacher once over every row of a recipe's data and keep the outputs in teachers.cache_dir."""
    from ..runs.cache import cache_recipe, cache_table

    if (recipe is None) == (info is None):
        raise ConfigurationError("Name either a recipe or, with --info, the folder of a cache.")
    say(fitted(cache_recipe(load(recipe, overrides, trust)) if info is None else cache_table(info)))

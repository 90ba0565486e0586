"""`hf-distill search`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..evaluation.terminal import fitted
from ..files import refuse_file
from ..processes import say
from .shared import Overrides, RecipeFile, Trust, load


def search(
    recipe: RecipeFile,
    overrides: Overrides = None,
    trials: Annotated[int, typer.Option(min=1, help="How many trainings in all.")] = 20,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The folder of the search; by default the run's and -search.",
            show_default=False,
        ),
    ] = None,
    trust: Trust = None,
) -> None:
    """Try temperatures, weights, fusions and learning rates, and write the recipe with the best. Goes on where it was left."""
    from ..runs.search.searching import search_folder, search_recipe

    if output is not None:
        refuse_file(output, "--output")
    setup = load(recipe, overrides, trust)
    folder = search_folder(setup) if output is None else output
    report = search_recipe(setup, trials=trials, output=folder)
    best = folder / "best.yaml"
    command = " ".join(
        ["hf-distill train", str(best), *(f"--trust {name}" for name in sorted(setup.trusted))]
    )
    say(f"\n{fitted(str(report))}\n\nThe figure is in {folder / 'search.png'}. The best recipe: {command}")

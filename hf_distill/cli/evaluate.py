"""`hf-distill evaluate`."""

from __future__ import annotations

from typing import Annotated

import typer

from ..processes import say
from .shared import Overrides, RecipeFile, Trust, load


def evaluate(
    recipe: RecipeFile,
    overrides: Overrides = None,
    split: Annotated[
        str | None,
        typer.Option(help="train, validation or test; instead of evaluation.split.", show_default=False),
    ] = None,
    trust: Trust = None,
) -> None:
    """Evaluate the trained student, every teacher and their ensemble, and write the report."""
    from ..runs.evaluate import evaluate_recipe, evaluation_folder

    setup = load(recipe, [*(overrides or []), *([f"evaluation.split={split}"] if split else [])], trust)
    report = evaluate_recipe(setup)
    say(f"\n{report}\n\nThe report is in {evaluation_folder(setup.folder) / 'report.md'}")

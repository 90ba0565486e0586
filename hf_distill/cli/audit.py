"""`hf-distill audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..evaluation.terminal import fitted
from ..files import refuse_file
from ..processes import process, say
from .shared import Overrides, RecipeFile, Trust, load


def audit(
    recipe: RecipeFile,
    overrides: Overrides = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="train, validation or test; by default validation, if the report is made on test.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The folder of the audit; by default audit/ in the run's.", show_default=False
        ),
    ] = None,
    trust: Trust = None,
) -> None:
    """Say what the teachers are worth before any training: which to keep, how to fuse them, whether one is enough."""
    from ..runs.audit import audit_recipe

    if output is not None:
        refuse_file(output, "--output")
    setup = load(recipe, overrides, trust)
    report = audit_recipe(setup, split)
    folder = setup.folder / "audit" if output is None else output
    if process() == 0:
        report.save(folder)
    beside = ", with figures beside it" if any(folder.glob("*.png")) else ""
    say(f"\n{fitted(str(report))}\n\nThe audit is in {folder / 'audit.md'}{beside}")

"""`hf-distill train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from .shared import Overrides, RecipeFile, Trust, load


class Command(TyperCommand):
    """`--resume` takes a value or none, which typer's options cannot; the value is put in before it parses."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Write `--resume [CHECKPOINT]` as `--resume=…`."""
        rewritten: list[str] = []
        rest = list(args)
        while rest:
            word = rest.pop(0)
            if word == "--resume":
                # The recipe and overrides may follow the option too; a checkpoint is a folder, they are not.
                named = bool(rest) and "=" not in rest[0] and not rest[0].startswith("-")
                named = named and Path(rest[0]).suffix not in (".yaml", ".yml")
                word = f"--resume={rest.pop(0) if named else 'last'}"
            rewritten.append(word)
        return super().parse_args(ctx, rewritten)


def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="[CHECKPOINT]",
            help="Continue from a checkpoint folder; without one, from the newest in the output folder that is whole.",
            show_default=False,
        ),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD",
            help="With --resume: what may differ from the interrupted run, as its refusal names it: data, losses, …",
            show_default=False,
        ),
    ] = None,
    unverified: Annotated[
        bool,
        typer.Option(
            "--unverified",
            help="With --resume CHECKPOINT: also one without a manifest, or with other files than were saved.",
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run of another recipe in the output folder.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Load all there is, train three steps on a few rows into no folder, and say what it would take.",
        ),
    ] = False,
    trust: Trust = None,
) -> None:
    """Train the student and, without teachers, its baseline; save it, and say whether distillation was worth it."""
    from ..runs.train import dry_run_recipe, train_recipe

    setup = load(recipe, overrides, trust)
    if dry_run:
        dry_run_recipe(setup, overwrite=overwrite or resume is not None)
        return
    train_recipe(setup, resume=resume, allow=allow or (), unverified=unverified, overwrite=overwrite)

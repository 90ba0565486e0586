"""`hf-distill init`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ..processes import say


def init(
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA…",
            help="Files of rows, a folder of them, or the id of a data set.",
            show_default=False,
        ),
    ],
    teacher: Annotated[
        list[str] | None,
        typer.Option(help="Folder or id of a fine-tuned checkpoint; once for each.", show_default=False),
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(
            help="Folder or id of the student; by default half the layers of the first teacher.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="The recipe.")] = Path("recipe.yaml"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a recipe that is there.")] = False,
) -> None:
    """Look at data and teachers, and write a commented recipe: splits, columns, pairs and label names as they were found."""
    from ..recipe import Setup, load_recipe
    from ..runs.init import init_recipe
    from ..runs.validate import validate_recipe

    path = init_recipe(data, teacher or [], student=student, output=output, overwrite=overwrite)
    say(f"{path} is written:\n\n{path.read_text(encoding='utf-8')}")
    validate_recipe(Setup(load_recipe(path)), command=shlex.join(["hf-distill", "train", str(path)]))

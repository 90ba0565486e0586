"""What all commands share: their arguments, one voice, and errors that end with their exit code."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import HfDistillError
from ..processes import process

if TYPE_CHECKING:
    from ..recipe import Setup

RecipeFile = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SECTION.KEY=VALUE",
        help="Replace values of the recipe: training.num_train_epochs=1 teachers.models.0.name=bert",
        show_default=False,
    ),
]


def load(path: Path, overrides: list[str] | None) -> Setup:
    """What the checked recipe means, with a user's own modules in reach."""
    from ..recipe import Setup, load_recipe

    # `python -m` finds a user's own module in the working directory; the installed command does likewise, but last,
    # so that no file lying there replaces an installed package.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    if process() > 0:
        _hide_bars()
    return Setup(load_recipe(path, overrides or []))


def _hide_bars() -> None:
    """Without the bars of those who load models and data: the main process has the same."""
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.disable_progress_bar()


@contextmanager
def reporting() -> Iterator[None]:
    """Turn our errors into their message and exit code; any other keeps its traceback."""
    try:
        yield
    except HfDistillError as error:
        if process() > 0:
            # The main process most likely says the same; its launcher then ends this one while it waits.
            time.sleep(10)
            typer.echo(f"process {process()}:", err=True)
        typer.echo(str(error), err=True)
        raise typer.Exit(error.exit_code) from None

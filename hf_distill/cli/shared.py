"""What all commands share: their arguments, one voice, and errors that end with their exit code."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import explained, hide_tokens
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
Trust = Annotated[
    list[str] | None,
    typer.Option(
        metavar="MODULE:NAME",
        help="What a run's stored files may name beside built-ins, letter by letter; once for each.",
        show_default=False,
    ),
]


def load(path: Path, overrides: list[str] | None, trust: list[str] | None = None) -> Setup:
    """What the checked recipe means, with a user's own modules in reach."""
    from ..recipe import Setup, load_recipe

    reach_own_modules()
    recipe = load_recipe(path, overrides or [], trust=trust or ())
    return Setup(recipe, trust=frozenset(trust or ()))


def reach_own_modules() -> None:
    """Let a user's own modules be found, and other processes than the first be silent."""
    # `python -m` finds a user's own module in the working directory; the installed command does likewise, but last,
    # so that no file lying there replaces an installed package.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    if process() > 0:
        _hide_bars()


def _hide_bars() -> None:
    """Without the bars of those who load models and data: the main process has the same."""
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.disable_progress_bar()


def reporting(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose errors end in their sentence and exit code, and in the whole traceback with `--debug`."""

    @functools.wraps(command)
    def reported(*args: Any, debug: bool = False, **options: Any) -> None:
        try:
            command(*args, **options)
        except (typer.Exit, typer.Abort):  # they end a command, and are no errors
            raise
        except Exception as error:
            sentence, code = explained(error)
            if process() > 0:
                # The main process most likely says the same; its launcher then ends this one while it waits.
                time.sleep(10)
                typer.echo(f"process {process()}:", err=True)
            if debug:
                typer.echo(hide_tokens(traceback.format_exc()), err=True)
            typer.echo(sentence, err=True)
            raise typer.Exit(code) from None

    # typer makes the options out of the signature.
    option = Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")]
    own = inspect.signature(command, eval_str=True)
    added = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=option)
    reported.__signature__ = own.replace(parameters=[*own.parameters.values(), added])
    reported.__annotations__ = {
        name: given.annotation for name, given in reported.__signature__.parameters.items()
    }
    return reported

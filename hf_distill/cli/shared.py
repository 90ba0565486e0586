"""What all commands share: their arguments, one voice, and errors that end with their exit code."""

from __future__ import annotations

import errno
import functools
import inspect
import os
import shlex
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import StoppedError, StorageError, explained, hide_tokens
from ..files import TROUBLE
from ..processes import Terminated, process, terminated, told

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
    """A command whose errors and signals end in their sentence and exit code, and in the whole traceback with `--debug`."""

    @functools.wraps(command)
    def reported(*args: Any, debug: bool = False, **options: Any) -> None:
        try:
            with terminated():
                command(*args, **options)
        except (typer.Exit, typer.Abort):  # they end a command, and are no errors
            raise
        except (Exception, KeyboardInterrupt, Terminated) as error:
            sentence, code = _told(error)
            if process() > 0:
                if isinstance(error, (StoppedError, KeyboardInterrupt, Terminated)):
                    raise typer.Exit(code) from None
                # The main process most likely says the same; its launcher then ends this one while it waits. Where that has
                # told it to stop already, as when another process died, nothing more will come.
                if not told():
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


def _told(error: BaseException) -> tuple[str, int]:
    """What ended a command, in a sentence with the command that goes on, and the exit code."""
    if isinstance(error, StoppedError):
        sentence = f"{str(error).partition(', and train(')[0]}. Go on with: {_command(resume=True)}"
        return sentence, error.exit_code
    if isinstance(error, (KeyboardInterrupt, Terminated)):
        number = signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM
        return (
            f"Stopped by {number.name}: what was finished is kept, and the same command goes on from there: "
            f"{_command(resume=False)}"
        ), 128 + number
    if isinstance(error, OSError) and error.errno not in (errno.EACCES, errno.EPERM):
        why = TROUBLE.get(error.errno or 0)
        if why is not None:
            free = f"{shutil.disk_usage(_standing(error.filename)).free:,} bytes are free"
            return (
                f"{error.filename or 'A file'} cannot be written, since {why} ({free}): make room and run the same "
                "command again; what was finished is kept."
            ), StorageError.exit_code
    return explained(error)


def _standing(name: str | None) -> Path:
    """The folder nearest to a file that is there."""
    path = Path(name or ".").absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _command(*, resume: bool) -> str:
    """This command, as it goes on from the newest checkpoint or as it was given."""
    words = sys.argv[1:]
    if resume:
        at = next((i for i, word in enumerate(words) if word.partition("=")[0] == "--resume"), len(words))
        named = at + 1 < len(words) and Path(words[at + 1]).is_dir()
        words = [*words[:at], *words[at + 1 + named :], "--resume"]
        words = [word for word in words if word != "--unverified"]
    return shlex.join(["hf-distill", *words])

"""What all commands share: their arguments, one voice, and errors that end with their exit code."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import HfDistillError, StoppedError, StorageError
from ..files import TROUBLE
from ..processes import process
from ..stopping import Terminated, terminated

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
    """Turn our errors, a full disk and signals into a message and an exit code; any other error keeps its traceback."""
    try:
        with terminated():
            yield
    except StoppedError as error:
        if process() == 0:
            typer.echo(
                f"{str(error).partition(', and train(')[0]}. Go on with: {_command(resume=True)}", err=True
            )
        raise typer.Exit(error.exit_code) from None
    except HfDistillError as error:
        if process() > 0:
            # The main process most likely says the same; its launcher then ends this one while it waits.
            time.sleep(10)
            typer.echo(f"process {process()}:", err=True)
        typer.echo(str(error), err=True)
        raise typer.Exit(error.exit_code) from None
    except (KeyboardInterrupt, Terminated) as stopped:
        number = signal.SIGINT if isinstance(stopped, KeyboardInterrupt) else signal.SIGTERM
        if process() == 0:
            typer.echo(
                f"Stopped by {number.name}: what was finished is kept, and the same command goes on from there: "
                f"{_command(resume=False)}",
                err=True,
            )
        raise typer.Exit(128 + number) from None
    except OSError as error:
        why = TROUBLE.get(error.errno or 0) if error.errno not in (errno.EACCES, errno.EPERM) else None
        if why is None:
            raise
        free = f"{shutil.disk_usage(_standing(error.filename)).free:,} bytes are free"
        typer.echo(
            f"{error.filename or 'A file'} cannot be written, since {why} ({free}): make room and run the same command "
            "again; what was finished is kept.",
            err=True,
        )
        raise typer.Exit(StorageError.exit_code) from None


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

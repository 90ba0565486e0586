"""The command line. Heavy packages are imported by the commands that need them, so that `--help` answers at once."""

from __future__ import annotations

from typing import Annotated

import typer

from .looking import attention, audit, compare
from .running import TrainCommand, cache, evaluate, train, train_part, validate
from .using import demo, export, push, search

app = typer.Typer(
    name="hf-distill",
    help="Distils several fine-tuned checkpoints into one small student, and says what it gained.",
    no_args_is_help=True,
    add_completion=False,
    # A traceback is for errors of ours; Python's own says more than a box with every local variable.
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from .. import __version__

        typer.echo(f"hf-distill {__version__}")
        raise typer.Exit


app.command()(validate)
app.command()(audit)
app.command()(cache)
app.command(cls=TrainCommand)(train)
app.command(name="train-part", hidden=True)(train_part)
app.command()(evaluate)
app.command()(compare)
app.command()(search)
app.command()(attention)
app.command()(export)
app.command()(push)
app.command()(demo)

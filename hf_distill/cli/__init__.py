"""The command line. Heavy packages are imported by the commands that need them, so that `--help` answers at once."""

from __future__ import annotations

import importlib
from typing import Annotated

import typer

from .. import __version__
from ..processes import end_with_parent
from .shared import reporting

# Each is a function of its own name in a file of that name; in the order of `--help`.
COMMANDS = [
    "init",
    "validate",
    "audit",
    "cache",
    "train",
    "train_part",
    "evaluate",
    "predict",
    "compare",
    "search",
    "attention",
    "export",
    "card",
    "push",
    "demo",
]

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
    end_with_parent()
    if version:
        typer.echo(f"hf-distill {__version__}")
        raise typer.Exit


for name in COMMANDS:
    command = importlib.import_module(f".{name}", __name__)
    declare = app.command(cls=getattr(command, "Command", None), hidden=name == "train_part")
    declare(reporting(getattr(command, name)))

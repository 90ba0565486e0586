"""`hf-distill card`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..processes import say


def card(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="The folder of a run, its training.output_dir.", show_default=False
        ),
    ],
    repo: Annotated[
        str | None,
        typer.Option(metavar="USER/NAME", help="The repository that it names.", show_default=False),
    ] = None,
) -> None:
    """Write the model card of a run, README.md in its folder, and show it; one that you have edited stays as it is."""
    from ..publishing.push import card_of_run

    path = card_of_run(run, repo)
    say(f"{path.read_text(encoding='utf-8')}\nThe card is {path}")

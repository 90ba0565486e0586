"""`hf-distill attention`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigurationError
from ..files import refuse_file
from ..processes import process, say
from .shared import Overrides, RecipeFile, Trust, load


def attention(
    recipe: RecipeFile,
    overrides: Overrides = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="Whose attention to show; twice for a pair. By default the first row of the split.",
            show_default=False,
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="1,3,-1",
            help="Layers from 1 on, or from -1, the last, back; by default first, middle and last.",
            show_default=False,
        ),
    ] = None,
    head: Annotated[
        int | None,
        typer.Option(help="Its number from 1; by default the mean over the heads.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The folder of the pictures; by default the run's.", show_default=False
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="train, validation or test; by default validation, or else test.", show_default=False
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=3, help="On how many rows to compare layers.")] = 200,
    trust: Trust = None,
) -> None:
    """Draw what student and teachers attend to, and how alike their layers are before and after training."""
    from ..runs.attention import attention_recipe

    if output is not None:
        refuse_file(output, "--output")
    setup = load(recipe, overrides, trust)
    texts = tuple(text or ())
    report = attention_recipe(
        setup,
        (texts[0] if len(texts) == 1 else texts) or None,
        layers=_numbers(layers),
        head=head,
        split=split,
        rows=rows,
    )
    folder = setup.folder if output is None else output
    if process() == 0:
        report.save(folder, report=setup.folder / "report.md")
    for note in report.notes:
        say(note)
    say(f"The pictures are in {folder / 'attention.md'}, attention.png and similarity.png")


def _numbers(layers: str | None) -> list[int] | None:
    try:
        return None if layers is None else [int(number) for number in layers.split(",")]
    except ValueError:
        raise ConfigurationError(
            f"--layers: expected numbers with commas between them, as 1,3 or 1,-1, found {layers!r}"
        ) from None

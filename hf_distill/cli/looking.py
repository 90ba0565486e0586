"""Commands that look at teachers and runs, and train nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigurationError
from .shared import Overrides, RecipeFile, load, process, reporting, say


def audit(
    recipe: RecipeFile,
    overrides: Overrides = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="train, validation or test; by default validation, if the report is made on test.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The folder of the audit; by default audit/ in the run's.", show_default=False
        ),
    ] = None,
) -> None:
    """Say what the teachers are worth before any training: which to keep, how to fuse them, whether one is enough."""
    with reporting():
        from ..runs.audit import audit_recipe

        checked = load(recipe, overrides)
        report = audit_recipe(checked, split)
        folder = Path(checked.training["output_dir"], "audit") if output is None else output
        if process() == 0:
            report.save(folder)
        say(f"\n{report}\n\nThe audit is in {folder / 'audit.md'}, with figures beside it")


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
) -> None:
    """Draw what student and teachers attend to, and how alike their layers are before and after training."""
    with reporting():
        from ..runs.attention import attention_recipe

        checked = load(recipe, overrides)
        texts = tuple(text or ())
        report = attention_recipe(
            checked,
            (texts[0] if len(texts) == 1 else texts) or None,
            layers=_numbers(layers),
            head=head,
            split=split,
            rows=rows,
        )
        run = Path(checked.training["output_dir"])
        folder = run if output is None else output
        if process() == 0:
            report.save(folder, report=run / "report.md")
        for note in report.notes:
            say(note)
        say(f"The pictures are in {folder / 'attention.md'}, attention.png and similarity.png")


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN…", help="Folders of runs with a verdict.", show_default=False),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write comparison.json, comparison.md and comparison.html there; of one run, its report.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Say whose student is better beyond chance: runs on the same rows, each compared with the first and with its own
    fine-tuning. Of one run, show its verdict again."""
    with reporting():
        from ..verdict.comparing import compare_runs
        from ..verdict.finding import saved_verdict

        report = saved_verdict(runs[0]) if len(runs) == 1 else compare_runs(runs)
        page = None if output is None else report.save(output)
        say(str(report))
        if page is not None:
            say(f"\nThe page is {page}")


def _numbers(layers: str | None) -> list[int] | None:
    try:
        return None if layers is None else [int(number) for number in layers.split(",")]
    except ValueError:
        raise ConfigurationError(
            f"--layers: expected numbers with commas between them, as 1,3 or 1,-1, found {layers!r}"
        ) from None

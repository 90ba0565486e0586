"""`hf-distill compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..files import refuse_file
from ..processes import say


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
    fine-tuning. Of runs on different data sets, say what distillation gains on average over sets. Of one run, show its
    verdict again."""
    from ..verdict.comparing import compare_runs
    from ..verdict.finding import find_run, saved_verdict
    from ..verdict.over_sets import of_several_sets, over_sets

    if output is not None:
        refuse_file(output, "--output")
    if len(runs) == 1:
        report = saved_verdict(runs[0])
    else:
        found = [find_run(run) for run in runs]
        report = over_sets(found) if of_several_sets(found) else compare_runs(runs)
    page = None if output is None else report.save(output)
    say(str(report))
    where = "--output DIR writes it." if page is None else f"It is {page}"
    say(f"\n{where}")

"""`hf-distill export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..evaluation.terminal import fitted
from ..processes import say
from .shared import Trust, reach_own_modules


def export(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The folder of a trained student.", show_default=False)
    ],
    format: Annotated[str, typer.Option(help="onnx (float32) or int8; both for onnxruntime.")] = "onnx",
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where to write; by default RUN/onnx or RUN/int8.", show_default=False
        ),
    ] = None,
    trust: Trust = None,
) -> None:
    """Write a student for onnxruntime, compare it with the student itself, and measure both."""
    from ..runs.export import export_run

    reach_own_modules()
    report = export_run(run, format=format, output=output, trust=trust or ())
    folder = run / format if output is None else output
    say(
        f"\n{fitted(str(report))}\n\nThe exported student is {folder / report.file}, the report {folder / 'export.md'}"
    )

"""`hf-distill predict`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigurationError
from .shared import Trust, reach_own_modules


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.", show_default=False)],
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="A text, or the path of an image; once for each. For pairs, an object of JSON.",
            show_default=False,
        ),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="csv, tsv, json, jsonl (each also .gz) or parquet; - for lines of standard input, texts or objects of JSON.",
            show_default=False,
        ),
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Ask what `export` wrote, float32.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Ask what `export --format int8` wrote.")] = False,
    with_teachers: Annotated[
        bool, typer.Option("--with-teachers", help="Ask the run's teachers and their ensemble too.")
    ] = False,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Rows per forward; by default 32, and of standard input 1.", show_default=False
        ),
    ] = None,
    trust: Trust = None,
) -> None:
    """Ask a run's student: a line of JSON per text, with its probabilities, as texts come."""
    from ..runs.predict import Predictor, file_rows, line_rows, refuse_no_rows

    if (not text) == (file is None):
        raise ConfigurationError(
            "Say what is to be predicted: --text …, or --file FILE, or --file - for standard input."
        )
    if text and not all(one.strip() for one in text):
        raise ConfigurationError("--text: found an empty one, of which nothing can be said.")
    if onnx and int8:
        raise ConfigurationError("--onnx and --int8 are two students: ask one.")
    if file is not None and file != "-":
        refuse_no_rows(file)
    reach_own_modules()
    format = "onnx" if onnx else "int8" if int8 else None
    predictor = Predictor(run, format=format, with_teachers=with_teachers, trust=trust or ())
    if text:
        rows = line_rows(text, predictor.columns)
    elif file == "-":
        rows = line_rows(sys.stdin, predictor.columns)
    else:
        rows = file_rows(str(file), predictor.columns, predictor.content)
    size = batch_size or (1 if file == "-" else 32)
    try:
        for prediction in predictor(rows, batch_size=size):
            print(prediction.to_json(), flush=file == "-")
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has enough; what is left of the buffer has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

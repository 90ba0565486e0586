"""`hf-distill demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    output: Annotated[Path, typer.Option(help="The folder of checkpoints and report.")] = Path("runs/demo"),
) -> None:
    """Make three teachers, write a recipe that distils them into a small student, and run it: offline, in a few minutes."""
    from ..runs.demo.run import run_demo

    run_demo(output)

"""What a model card says of a distillation, as it really ran."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .fusion import FusionChoice, summary
from .table import markdown_table


def distillation_section(teachers: Sequence[Any], fusion: FusionChoice) -> str:
    """A section of Markdown: the teachers, how they were fused, and why so.

    Args:
        teachers: Sources with ``name`` and, where they have them, ``source``, ``revision`` and ``num_parameters``.
        fusion: The fusion and where it comes from.

    Example:
        >>> from hf_distill.fusion import LinearPool
        >>> print(distillation_section([teacher], FusionChoice(LinearPool(), "uniform linear_pool, because I say so")))
        ## Distillation
        <BLANKLINE>
        This model learnt from 1 teacher with hf_distill.
        <BLANKLINE>
        | teacher | source | revision | parameters |
        |---------|--------|----------|------------|
        | bert    | bert   | –        | 20,770     |
        <BLANKLINE>
        Fusion: uniform linear_pool, because I say so. `linear_pool()`
        <BLANKLINE>
    """
    rows = [
        [
            escaped(teacher.name),
            escaped(_whereabouts(getattr(teacher, "source", None))),
            escaped(getattr(teacher, "revision", None) or "–"),
            f"{parameters:,}" if (parameters := getattr(teacher, "num_parameters", None)) else "–",
        ]
        for teacher in teachers
    ]
    parts = [
        "## Distillation",
        f"This model learnt from {len(rows)} teacher{'s' if len(rows) > 1 else ''} with hf_distill.",
        markdown_table(["teacher", "source", "revision", "parameters"], rows),
        f"Fusion: {escaped(fusion.reason or 'as given')}. `{escaped(summary(fusion.fusion))}`",
        *(f"Warning: {escaped(warning)}" for warning in fusion.warnings),
    ]
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """A text that stays inside its table cell, line and paragraph, whatever characters it has.

    Example:
        >>> escaped("a|b <i>`")
        "a\\\\|b &lt;i>'"
    """
    line = " ".join(str(text).split())
    return line.replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


def _whereabouts(source: str | None) -> str:
    """A Hub id, or the last part of a folder: where a run's files lay is nobody's concern."""
    if source is None:
        return "–"
    return Path(source).name if Path(source).is_dir() or source.startswith(("/", ".", "~")) else source

"""What an evaluation found, as numbers and as a table."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import write_json, write_text
from ..markdown import markdown_table
from .formats import as_json


@dataclass(frozen=True)
class SystemResult:
    """One row of a report.

    Attributes:
        metrics: Values by metric name.
        parameters: How many parameters answer one row; None where unknown.
    """

    metrics: dict[str, float]
    parameters: int | None


@dataclass(frozen=True)
class EvaluationReport:
    """What `evaluate_ensemble` found; ``str()`` is a table.

    Attributes:
        task: The task's name.
        dataset: What the rows are called.
        rows: How many rows were evaluated.
        systems: Results by name: ``student``, ``ensemble``, ``student+teachers``, ``baseline``, ``teacher:<name>``.
        labels: The label names.
        fusion: How the ensemble was fused.
        notes: What a reader must know to trust the figures.

    Example:
        >>> report = EvaluationReport("text-classification", "test", 2, {"student": SystemResult({"accuracy": 0.5}, 9)})
        >>> print(report)
        text-classification on test: 2 rows
        <BLANKLINE>
        | system  | accuracy | parameters |
        |---------|----------|------------|
        | student | 0.5000   | 9          |
    """

    task: str
    dataset: str
    rows: int
    systems: Mapping[str, SystemResult]
    labels: tuple[str, ...] = ()
    fusion: str = ""
    notes: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and texts, as in report.json; a value that is not finite is None."""
        return as_json(self)

    def table(self) -> str:
        """The systems as a Markdown table."""
        names = list(dict.fromkeys(name for system in self.systems.values() for name in system.metrics))
        rows = [
            [
                system,
                *(f"{result.metrics[name]:.4f}" if name in result.metrics else "–" for name in names),
                f"{result.parameters:,}" if result.parameters is not None else "–",
            ]
            for system, result in self.systems.items()
        ]
        return markdown_table(["system", *names, "parameters"], rows)

    def __str__(self) -> str:
        head = f"{self.task} on {self.dataset}: {self.rows} rows" + (
            f"; fusion: {self.fusion}" if self.fusion else ""
        )
        return "\n".join([head, "", self.table(), *(f"\nNote: {note}" for note in self.notes)])

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write report.json and report.md.

        Args:
            folder: Made if missing.

        Returns:
            The path of report.md.
        """
        folder = Path(folder)
        write_json(folder / "report.json", self.to_dict(), indent=2)
        write_text(folder / "report.md", f"# Evaluation\n\n{self}\n")
        return folder / "report.md"

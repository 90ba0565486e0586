"""What an evaluation found, as numbers and as a table."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CorruptStateError
from ..files import write_json, write_text
from ..markdown import escaped, markdown_table
from .formats import as_json
from .terminal import prose, table


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
    """What `evaluate_ensemble` found; ``str()`` is a table that fits the terminal.

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
        system   accuracy  parameters
        ──────────────────────────────
        student    0.5000           9
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

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        """The systems, as header and rows."""
        names = list(dict.fromkeys(name for system in self.systems.values() for name in system.metrics))
        rows = [
            [
                system,
                *(f"{result.metrics[name]:.4f}" if name in result.metrics else "–" for name in names),
                f"{result.parameters:,}" if result.parameters is not None else "–",
            ]
            for system, result in self.systems.items()
        ]
        return ["system", *names, "parameters"], rows

    def table(self) -> str:
        """The systems as a Markdown table."""
        return markdown_table(*self._cells())

    def _head(self) -> str:
        fusion = f"; fusion: {self.fusion}" if self.fusion else ""
        return f"{self.task} on {self.dataset}: {self.rows} rows{fusion}"

    def __str__(self) -> str:
        notes = [f"\n{prose(f'Note: {note}')}" for note in self.notes]
        return "\n".join([prose(self._head()), "", table(*self._cells()), *notes])

    def markdown(self) -> str:
        """All of it, for report.md; nothing that somebody else has named changes what is around it."""
        header, rows = self._cells()
        made = markdown_table([*map(escaped, header)], [[*map(escaped, row)] for row in rows])
        notes = [f"\nNote: {escaped(note)}" for note in self.notes]
        return "\n".join(["# Evaluation", "", escaped(self._head()), "", made, *notes])

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write report.json and report.md.

        Args:
            folder: Made if missing.

        Returns:
            The path of report.md.
        """
        folder = Path(folder)
        write_json(folder / "report.json", self.to_dict(), indent=2)
        write_text(folder / "report.md", f"{self.markdown()}\n")
        return folder / "report.md"


def read_evaluation(content: Mapping[str, Any], where: str | os.PathLike[str]) -> EvaluationReport:
    """The report of an evaluation from what its report.json holds; whatever else it holds is left there.

    Args:
        content: Of report.json.
        where: The file, for messages.

    Raises:
        CorruptStateError: It is no such report.

    Example:
        >>> content = {"task": "t", "dataset": "d", "rows": 2, "systems": {"student": {"metrics": {"nll": None}, "parameters": 9}}}
        >>> read_evaluation(content, "report.json").systems["student"]
        SystemResult(metrics={'nll': nan}, parameters=9)
    """
    try:
        systems = {
            str(name): SystemResult(
                {
                    str(key): math.nan if value is None else float(value)
                    for key, value in own["metrics"].items()
                },
                None if own.get("parameters") is None else int(own["parameters"]),
            )
            for name, own in content["systems"].items()
        }
        return EvaluationReport(
            task=str(content.get("task", "")),
            dataset=str(content["dataset"]),
            rows=int(content["rows"]),
            systems=systems,
            labels=tuple(map(str, content.get("labels", ()))),
            fusion=str(content.get("fusion", "")),
            notes=tuple(map(str, content.get("notes", ()))),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        said = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise CorruptStateError(
            f"{where} is no report of an evaluation ({' '.join(said.split())[:200]}): evaluate again, or remove it."
        ) from error

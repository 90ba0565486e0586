"""Finished runs compared on the same rows: whose student is better, beyond chance?

Shapes: S seeds of a run, N rows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..audit.text import number
from ..data import UNLABELLED
from ..errors import ConfigurationError, DataError
from ..table import markdown_table
from .report import plain
from .rows import FOLDER, Answers, SavedRows, in_order, load_rows
from .sentences import interval, signed_points
from .statistics import Difference, difference, spread
from .systems import STUDENT, Measured, means, measure, metric_modules, student_systems


@dataclass(frozen=True)
class RunComparison:
    """The students of some runs on the same rows; ``str()`` is two tables and a sentence.

    Attributes:
        split: What the rows are called.
        rows: How many labelled ones.
        seeds: How many students each run has.
        metrics: Means over each run's seeds, by run.
        spread: Standard deviations over seeds, by run; empty where there is one.
        differences: Each later run minus the first.
        sentence: What came of it.
    """

    split: str
    rows: int
    seeds: Mapping[str, int]
    metrics: Mapping[str, Mapping[str, float]]
    spread: Mapping[str, Mapping[str, float]]
    differences: tuple[Difference, ...]
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and texts, as in comparison.json."""
        return plain(
            {
                "version": 1,
                "split": self.split,
                "rows": self.rows,
                "runs": {
                    run: {"seeds": self.seeds[run], "metrics": values, "std": self.spread[run]}
                    for run, values in self.metrics.items()
                },
                "differences": [
                    {**d._asdict(), "beyond_chance": d.value.beyond_chance} for d in self.differences
                ],
                "verdict": self.sentence,
            }
        )

    def __str__(self) -> str:
        names = list(next(iter(self.metrics.values())))
        rows = [
            [
                run,
                str(self.seeds[run]),
                *(
                    number(values[name])
                    + (f" ± {number(self.spread[run][name])}" if name in self.spread[run] else "")
                    for name in names
                ),
            ]
            for run, values in self.metrics.items()
        ]
        compared = []
        for d in self.differences:
            points = d.measure == "accuracy"
            shown = signed_points(d.value) if points else [number(part, sign="+") for part in d.value]
            seen = f"{100 * d.detectable:.1f}" if points else number(d.detectable)
            compared.append(
                [
                    d.measure + (", points" if points else ""),
                    d.first,
                    d.second,
                    f"{shown[0]} ({shown[1]} to {shown[2]})",
                    seen,
                    ", ".join(f"{p:.2g}" for p in d.mcnemar) or "–",
                    "better" if d.better else "worse" if d.worse else "no different",
                ]
            )
        header = [
            "measure",
            "of",
            "minus",
            "difference (95 % interval)",
            "detectable from",
            "McNemar p",
            "the first is",
        ]
        return "\n\n".join(
            [
                f"Students on {self.split}: {self.rows:,} labelled rows",
                markdown_table(["run", "seeds", *names], rows),
                markdown_table(header, compared),
                self.sentence,
            ]
        )

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write comparison.json and comparison.md, and return the path of the latter."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = f"# Comparison\n\n{self}\n"
        for name, content in (
            ("comparison.json", json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"),
            ("comparison.md", text),
        ):
            unfinished = folder / f".{name}.unfinished"
            unfinished.write_text(content, encoding="utf-8")
            unfinished.replace(folder / name)
        return folder / "comparison.md"


def compare_runs(runs: Sequence[str | os.PathLike[str]]) -> RunComparison:
    """Compare the students of runs with the first run's, on rows that all were evaluated on.

    Rows are paired by what is in them, so runs may have read the data in other orders and named the classes in others.
    Seeds of different runs are drawn independently of each other; McNemar's test is of the first seeds.

    Args:
        runs: Output folders of `hf-distill train` with a verdict; at least two.

    Raises:
        ConfigurationError: Fewer than two runs, or one named twice.
        DataError: A run has no rows, or other rows than the first.
    """
    folders = [Path(run) for run in runs]
    if len(folders) < 2:
        raise ConfigurationError("One run has nothing to be compared with: name at least two.")
    names = [str(folder) for folder in folders]
    if len(set(names)) < len(names):
        raise ConfigurationError(f"A run is named twice, and would equal itself: {', '.join(names)}.")
    saved = {name: _students(folder) for name, folder in zip(names, folders, strict=True)}
    first = saved[names[0]][0]
    found: dict[str, Measured] = {}
    for name, own in saved.items():
        if own[0].split != first.split:
            raise DataError(
                f"{name} was evaluated on other rows: on its {own[0].split} split, {names[0]} on {first.split}; evaluate both "
                "on the same split of the same data."
            )
        answers = [in_order(rows, first.rows.example_ids, first.label_names, name) for rows in own]
        _refuse_other_labels(answers, first, name, names[0])
        found[name] = measure(
            student_systems(STUDENT, answers, [None], STUDENT)[0],
            first.rows.labels,
            None,
            metric_modules(["accuracy", "f1"]),
        )
    differences = [
        difference(
            kind,
            (name, names[0]),
            found[name].values(kind),
            found[names[0]].values(kind),
            paired_seeds=False,
        )
        for name in names[1:]
        for kind in ("accuracy", "nll", "brier")
    ]
    rows = int((first.rows.labels != UNLABELLED).sum())
    return RunComparison(
        split=first.split,
        rows=rows,
        seeds={name: len(own.metrics) for name, own in found.items()},
        metrics={name: means(own.metrics) for name, own in found.items()},
        spread={name: _spreads(own) for name, own in found.items()},
        differences=tuple(differences),
        sentence=_sentence(found, differences, rows),
    )


def _students(folder: Path) -> list[SavedRows]:
    """The students of a run, its own first."""
    files = sorted(
        (folder / FOLDER).glob("rows-student-*.npz"), key=lambda path: int(path.stem.rpartition("-")[2])
    )
    if not files:
        raise DataError(
            f"{folder} has no {FOLDER}/rows-student-*.npz, which `hf-distill train` writes with evaluation.verdict=true: "
            "name the output folder of such a run."
        )
    loaded = [load_rows(path) for path in files]
    # Files of an earlier recipe may lie beside the last run's: all of one run have one key.
    newest = max(files, key=lambda path: path.stat().st_mtime)
    key = loaded[files.index(newest)].key
    return [rows for rows in loaded if rows.key == key]


def _refuse_other_labels(answers: Sequence[Answers], first: SavedRows, name: str, other: str) -> None:
    for own in answers:
        if apart := int((own.labels != first.rows.labels).sum()):
            raise DataError(
                f"{name} and {other} have the same rows, but {apart} of them with other labels: evaluate both on the same "
                "version of the data."
            )
    if not (first.rows.labels != UNLABELLED).any():
        raise DataError(
            f"None of the {len(first.rows.labels)} rows has a label, so runs cannot be compared on them."
        )


def _spreads(own: Measured) -> dict[str, float]:
    values = {name: spread([each[name] for each in own.metrics]) for name in own.metrics[0]}
    return {name: value for name, value in values.items() if value is not None}


def _sentence(found: Mapping[str, Measured], differences: Sequence[Difference], rows: int) -> str:
    sentences = []
    for d in differences:
        if d.measure != "accuracy":
            continue
        points = f"accuracy {signed_points(d.value)[0]} points ({interval(d.value)})"
        if d.better or d.worse:
            sentences.append(f"{d.first} is {'better' if d.better else 'worse'} than {d.second}: {points}.")
        else:
            sentences.append(
                f"{d.first} and {d.second}: no difference beyond chance on these {rows:,} rows: {points}; detectable from "
                f"{100 * d.detectable:.1f} points."
            )
    if any(len(own.metrics) == 1 for own in found.values()):
        sentences.append("A run of one seed says nothing of its other trainings.")
    if len(differences) > 3:
        sentences.append("With several comparisons, one may leave zero out by chance.")
    return " ".join(sentences)

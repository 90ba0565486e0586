"""The audit's report: tables, words, files and figures."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...files import write_json, write_text
from ..document import Section, listed, rendered
from ..formats import as_json, grouped, nats, number, percent, points
from ..plots import agreement_heat_map, reliability_diagram, rule_scores, save_figure
from .numbers import BEST_TEACHER, Advice, Gains, LeaveOneOut, PairFigures, RuleFigures, TeacherFigures

# Tables of a terminal; audit.md has all rows.
_MOST_ROWS = 15


@dataclass(frozen=True)
class AuditReport:
    """What `audit_teachers` found; ``str()`` is tables and a verdict, `save` adds figures.

    Attributes:
        task: The task's name.
        dataset: What the rows are called.
        rows: How many labelled rows were used, N.
        halves: How many of them each half has.
        labels: The C label names.
        label_rows: How many rows each class has.
        alignment: How the teachers' labels were matched, as a table.
        conditions: Under what the throughput was measured; empty where it was not.
        teachers: Each alone.
        pairs: Each pair of them.
        oracle: Share of rows where some teacher is right.
        rules: The ensemble of all teachers under every rule.
        left_out: Why a rule was not scored, by its name.
        leave_one_out: What each teacher adds or costs.
        advice: What to do; None where no teacher is usable.
        verdict: The same in words.
        warnings: What is suspicious.
        notes: What a reader must know to trust the figures.
    """

    task: str
    dataset: str
    rows: int
    halves: tuple[int, int]
    labels: tuple[str, ...]
    label_rows: tuple[int, ...]
    alignment: str
    conditions: str
    teachers: tuple[TeacherFigures, ...]
    pairs: tuple[PairFigures, ...]
    oracle: float
    rules: tuple[RuleFigures, ...]
    left_out: Mapping[str, str]
    leave_one_out: tuple[LeaveOneOut, ...]
    advice: Advice | None
    verdict: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and texts, as in audit.json; a number that is not finite is None."""
        content = {"version": 1, **as_json(self)}
        for teacher in content["teachers"]:
            parameters, size, *_, pace = teacher["cost"].values()
            teacher["cost"] = {"parameters": parameters, "bytes": size, "rows_per_second": pace}
        return content

    def __str__(self) -> str:
        """The tables, shortened where they are long, and the verdict last, where a terminal ends."""
        return "\n\n".join([self._head(), *rendered(self._sections(_MOST_ROWS), str), *self._words()])

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write audit.json, audit.md and the figures reliability.png, agreement.png and rules.png.

        Args:
            folder: Made if missing.

        Returns:
            The path of audit.md.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        shown = [f"![{path.stem}]({path.name})" for path in self._figures(folder)]
        text = "\n\n".join(
            [
                "# Teacher audit",
                self._head(),
                *self._words(),
                *rendered(self._sections(None), str),
                "## Figures",
                *shown,
            ]
        )
        write_json(folder / "audit.json", self.to_dict(), indent=2)
        write_text(folder / "audit.md", text + "\n")
        return folder / "audit.md"

    def _figures(self, folder: Path) -> list[Path]:
        names = [teacher.name for teacher in self.teachers]
        bins = {teacher.name: teacher.reliability for teacher in self.teachers if teacher.reliability}
        if self.advice is not None:
            bins[f"ensemble: {self.advice.fusion}"] = self.advice.reliability
        written = [save_figure(reliability_diagram, folder / "reliability.png", bins)] if bins else []
        if self.pairs:
            agreement = np.eye(len(names))
            for pair in self.pairs:
                i, j = names.index(pair.first), names.index(pair.second)
                agreement[i, j] = agreement[j, i] = pair.agreement
            written.append(save_figure(agreement_heat_map, folder / "agreement.png", names, agreement))
        if self.rules:
            scores = {rule.name: (rule.accuracy, rule.nll) for rule in self.rules}
            one = self.rules[0]
            best = (
                one.accuracy.value - one.over_best_teacher.accuracy.value,
                one.nll.value - one.over_best_teacher.nll.value,
            )
            written.append(save_figure(rule_scores, folder / "rules.png", scores, best, self.oracle))
        return written

    def _head(self) -> str:
        teachers = "1 teacher" if len(self.teachers) == 1 else f"{len(self.teachers)} teachers"
        return f"{self.task} on {self.dataset}: {self.rows:,} labelled rows, {len(self.labels)} classes, {teachers}"

    def _sections(self, most: int | None) -> list[Section]:
        halves = (
            f"each half ({self.halves[0]} and {self.halves[1]} rows) scored by what was fitted on the other"
        )
        kept = () if self.advice is None else self.advice.rules
        return [
            self._teachers(),
            *self._classes(most),
            Section("How labels were matched", (), (), _first_lines(self.alignment, most)),
            *(self._pairs(most) if self.pairs else []),
            _rules(f"Fusion rules: {halves}", self.rules, self._legend()),
            *([_rules("Fusion rules, of the teachers that are kept", kept)] if kept else []),
            *([self._without()] if self.leave_one_out else []),
        ]

    def _words(self) -> list[str]:
        told = {"Warnings": self.warnings, "Notes": self.notes, "Verdict": self.verdict}
        parts = [part for title, lines in told.items() for part in listed(lines, str, title)]
        if self.advice is not None:
            parts += ["To paste into the recipe:", f"```yaml\n{self.advice.lines}\n```"]
            if self.advice.alternative:
                parts += ["Or the best teacher alone:", f"```yaml\n{self.advice.alternative}\n```"]
        return parts

    def _teachers(self) -> Section:
        columns = {
            "teacher": [t.name for t in self.teachers],
            "accuracy %": [percent(t.accuracy) for t in self.teachers],
            "macro-F1 %": [percent(t.f1) for t in self.teachers],
            "NLL": [number(t.nll) for t in self.teachers],
            "Brier": [number(t.brier) for t in self.teachers],
            "ECE": [number(t.ece) for t in self.teachers],
            "fitted T": [number(t.temperature, 2) for t in self.teachers],
            "parameters": [grouped(t.cost.parameters) for t in self.teachers],
            "MB": [grouped(t.cost.bytes and t.cost.bytes / 1e6, 1) for t in self.teachers],
            "rows/s": [grouped(t.cost.throughput) for t in self.teachers],
        }
        known = {name: cells for name, cells in columns.items() if set(cells) != {"–"}}
        bound = f"Some teacher is right on {percent(self.oracle)} % of the rows: no choice between them does better."
        note = "\n\n".join(filter(None, [bound, self.conditions]))
        return Section("Teachers", list(known), list(zip(*known.values(), strict=True)), note)

    def _classes(self, most: int | None) -> list[Section]:
        order, lead = range(len(self.labels)), ""
        if most is not None and len(self.labels) > most:
            weakest = [[v for v in column if v is not None] for column in self._f1()]
            order = sorted(order, key=lambda c: float(np.mean(weakest[c])) if weakest[c] else math.inf)[:most]
            lead = f"The {most} weakest of {len(self.labels)} classes; audit.md has all."
        rows = [
            [
                self.labels[c],
                str(self.label_rows[c]),
                *(percent(value) if value is not None else "–" for value in self._f1()[c]),
            ]
            for c in order
        ]
        return [
            Section("F1 by class, %", (), (), lead),
            Section("", ["class", "rows", *(t.name for t in self.teachers)], rows),
        ]

    def _f1(self) -> list[tuple[float | None, ...]]:
        return list(zip(*(teacher.f1_by_class for teacher in self.teachers), strict=True))

    def _pairs(self, most: int | None) -> list[Section]:
        pairs = sorted(self.pairs, key=lambda pair: -pair.agreement)
        cut = most is not None and len(pairs) > most
        lead = f"The {most} most alike of {len(pairs)} pairs; audit.md has all." if cut else ""
        rows = [
            [
                f"{pair.first} – {pair.second}",
                *(percent(pair.agreement), percent(pair.disagreement), number(pair.q, 2)),
                *(percent(pair.both_wrong), percent(pair.same_wrong)),
            ]
            for pair in pairs[:most]
        ]
        header = ["pair", "same answer %", "different %", "Q", "both wrong %", "same wrong answer %"]
        legend = "Q: 1 where both err on the same rows, 0 where independently, −1 where never on the same."
        return [Section("Pairs", (), (), lead), Section("", header, rows, legend)]

    def _legend(self) -> str:
        parts = ["± half of the 95 % paired bootstrap interval; * a difference beyond chance."] * bool(
            self.rules
        )
        for reason in dict.fromkeys(self.left_out.values()):
            names = ", ".join(name for name, why in self.left_out.items() if why == reason)
            parts.append(f"Not scored: {names}: {reason.rstrip('.')}.")
        return "\n\n".join(parts)

    def _without(self) -> Section:
        rules = list(dict.fromkeys(rule for entry in self.leave_one_out for rule in entry.gains))
        header = [f"{measure}, {rule}" for rule in rules for measure in ("accuracy", "NLL")]
        rows = [
            [entry.teacher] + [text for rule in rules for text in _gain_cells(entry.gains.get(rule))]
            for entry in self.leave_one_out
        ]
        return Section("Without one teacher: what the ensemble gains", ["without", *header], rows)


def _rules(title: str, rules: Sequence[RuleFigures], note: str = "") -> Section:
    """The rules, lowest NLL first; what is compared with itself gets a dash."""
    order = sorted(rules, key=lambda rule: rule.nll.value if math.isfinite(rule.nll.value) else math.inf)
    rows = [
        [
            rule.name,
            points(rule.accuracy, sign=""),
            nats(rule.nll, sign=""),
            number(rule.ece),
            *(_gain_cells(rule.over_linear_pool if rule.name != "linear_pool" else None)),
            *(_gain_cells(rule.over_best_teacher if rule.name != BEST_TEACHER else None)),
        ]
        for rule in order
    ]
    header = [
        *("rule", "accuracy %", "NLL", "ECE", "accuracy − linear_pool", "NLL − linear_pool"),
        *("accuracy − best teacher", "NLL − best teacher"),
    ]
    return Section(title, header if rules else (), rows, note)


def _gain_cells(gains: Gains | None) -> tuple[str, str]:
    return ("–", "–") if gains is None else (points(gains.accuracy), nats(gains.nll))


def _first_lines(table: str, most: int | None) -> str:
    lines = table.splitlines()
    if most is None or len(lines) <= most + 2:
        return table
    return "\n".join([*lines[: most + 2], "", f"{len(lines) - most - 2} more rows are in audit.md."])

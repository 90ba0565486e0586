"""What a comparison of runs found: numbers for programs, tables and words for people, and the files of both."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..evaluation.cost import Cost
from ..evaluation.document import Document, Picture, Section, write_files
from ..evaluation.formats import as_json
from ..evaluation.plots import shortened
from ..evaluation.statistics import Difference, Interval
from .numbers import Group
from .pictures import Point, class_gains, quality_against_latency
from .report import COSTS, cost_cells, differences_section, groups_section, with_spread
from .systems import CALIBRATED, ENSEMBLE, STUDENT, Role

VERSION = 2
"""Of comparison.json; raised whenever a key changes its meaning or goes away."""

JSON, MARKDOWN, HTML = "comparison.json", "comparison.md", "comparison.html"
"""For programs, for people, and the page beside them."""

QUALITY, CLASSES = PICTURE_FILES = (
    "figures/compared_quality_against_latency.png",
    "figures/compared_gains_by_class.png",
)
"""Every name that a picture may have; a comparison has those that it has numbers for."""


class ComparedRun(NamedTuple):
    """One of the runs.

    Attributes:
        folder: Where it lies.
        seeds: Of student and baseline, the run's own first.
        baseline: The more accurate of its baselines; None where there is none.
        costs: Of student, ensemble and best teacher, as the run itself measured them.
        conditions: Under what it did.
    """

    folder: str
    seeds: tuple[int, ...]
    baseline: str | None
    costs: Mapping[str, Cost]
    conditions: str


class Compared(NamedTuple):
    """A system of one run, or one that several runs have in common.

    Attributes:
        name: What tables and sentences call it; with its runs, unless all have it.
        system: Its name in the runs' own verdicts.
        role: What it is.
        runs: Which have it.
        seeds: How many trainings; None for ensemble and teachers.
        metrics: Means over the seeds.
        spread: Standard deviations over seeds; empty where there is one.
        accuracy: With its interval over rows and seeds.
    """

    name: str
    system: str
    role: Role
    runs: tuple[str, ...]
    seeds: int | None
    metrics: Mapping[str, float]
    spread: Mapping[str, float]
    accuracy: Interval


@dataclass(frozen=True)
class RunComparison:
    """Students of several runs, their baselines, ensembles and best teachers on the same rows; ``str()`` is the tables.

    Attributes:
        split: What the rows are called.
        rows: How many labelled ones.
        left_out: How many rows besides fitted the fusion of one of the runs.
        labels: The classes.
        runs: By what tables call them, the first being the one that others are compared with.
        systems: Students, baselines, ensembles, teachers.
        differences: Each later run's student minus the first's, then each student minus its own baseline.
        per_class: Of two runs, what the second's student gains over the first's.
        notes: What a reader must know to trust the figures.
        sentences: What came of it, the sentence to quote first.
    """

    split: str
    rows: int
    left_out: int
    labels: tuple[str, ...]
    runs: Mapping[str, ComparedRun]
    systems: tuple[Compared, ...]
    differences: tuple[Difference, ...]
    per_class: tuple[Group, ...]
    notes: tuple[str, ...]
    sentences: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and texts, as in comparison.json; a number that is not finite is None."""
        return as_json(
            {
                "version": VERSION,
                "split": self.split,
                "rows": self.rows,
                "left_out": self.left_out,
                "labels": self.labels,
                "runs": self.runs,
                "systems": self.systems,
                "differences": [{**d._asdict(), "beyond_chance": d.beyond_chance} for d in self.differences],
                "per_class": self.per_class,
                "notes": self.notes,
                "verdict": self.sentences[0],
                "sentences": self.sentences,
            }
        )

    def __str__(self) -> str:
        """The tables, and what came of it last, where a terminal ends."""
        return self.document().text()

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write comparison.json, comparison.md with its figures, and comparison.html, which needs no other file.

        Args:
            folder: Made if missing; figures of an older comparison that this one does not have go.

        Returns:
            The path of comparison.html.
        """
        write_files(folder, self.document().files(JSON, MARKDOWN, self.to_dict()), PICTURE_FILES)
        return Path(folder, HTML)

    def document(self) -> Document:
        """What it says."""
        gain = self.differences[0] if len(self.runs) == 2 else None
        return Document(
            kind="Comparison",
            window=f"Comparison: {', '.join(self.runs)}",
            head=f"{len(self.runs)} runs on {self.split}: {self.rows:,} labelled rows, {len(self.labels)} classes",
            outcome="gain" if gain and gain.better else "loss" if gain and gain.worse else "no",
            sentences=self.sentences,
            sections=self.sections(),
            pictures=self.pictures(),
            notes=self.notes,
            page=HTML,
        )

    def sections(self) -> list[Section]:
        """The tables."""
        return [
            self._systems(),
            self._differences(),
            *([self._costs()] if any(run.costs for run in self.runs.values()) else []),
            *([self._classes()] if self.per_class else []),
        ]

    def pictures(self) -> list[Picture]:
        """The figures that there are numbers for; nothing is drawn yet."""
        made = []
        points = [
            Point(self._label(system), 1000 * seconds, system.accuracy, system.role.kind)
            for system in self.systems
            if self._drawn(system) and (seconds := self._latency(system)) is not None
        ]
        if len(points) > 1:
            apart = "" if len(self._conditions()) == 1 else ", not under the same conditions"
            caption = (
                "Bars: 95 % interval over rows and seeds. Dotted: what no other system beats in both. Left and up is better. "
                f"Latencies as each run measured them{apart}; the notes say what keeps them from comparing."
            )
            made.append(
                Picture("Quality against latency", QUALITY, caption, quality_against_latency, (points,))
            )
        gains = [group for group in self.per_class if group.gain is not None]
        if gains:
            first, second = (shortened(name, 28) for name in self.runs)
            caption = "Coloured where the gain is beyond chance, corrected for the number of classes (Holm)."
            made.append(
                Picture("Gains by class", CLASSES, caption, class_gains, (gains, f"{second} minus {first}"))
            )
        return made

    def _drawn(self, system: Compared) -> bool:
        """Whether it stands in the picture: the students, the more accurate baseline of each run, and the ensembles."""
        return system.system in (STUDENT, ENSEMBLE, *{self.runs[run].baseline for run in system.runs})

    def _label(self, system: Compared) -> str:
        """A short name: which run it is must be read, and which step of its fine-tuning is in the table."""
        what = "fine-tuned" if system.role.kind == "baseline" else system.system
        return what if self._everywhere(system) else f"{shortened(', '.join(system.runs), 14)}: {what}"

    def _everywhere(self, system: Compared) -> bool:
        return len(system.runs) == len(self.runs)

    def _latency(self, system: Compared) -> float | None:
        """Of one row, in seconds: of several runs' figures the least, which other work disturbed least."""
        costs = (self.runs[run].costs.get(system.role.costs, Cost()) for run in system.runs)
        return min((cost.p50 for cost in costs if cost.p50 is not None), default=None)

    def _conditions(self) -> dict[str, list[str]]:
        """Under what costs were measured, and by which runs."""
        found: dict[str, list[str]] = {}
        for name, run in self.runs.items():
            if run.costs:
                found.setdefault(run.conditions, []).append(name)
        return found

    def _systems(self) -> Section:
        names = list(dict.fromkeys(metric for system in self.systems for metric in system.metrics))
        rows = [
            [
                system.system,
                "all" if self._everywhere(system) else ", ".join(system.runs),
                *(with_spread(system.metrics.get(metric), system.spread.get(metric)) for metric in names),
            ]
            for system in self.systems
        ]
        seeds = ", ".join(f"{len(run.seeds)} of {name}" for name, run in self.runs.items())
        note = (
            f"Mean ± standard deviation over seeds: {seeds}. NLL in nats; brier summed over the classes; ece over 15 bins; "
            "agreement with the first answer of the run's own ensemble, and KL(its ensemble ‖ system) in nats: none where runs "
            "share a system and not the ensemble. Of the fine-tuned students those that are hardest to beat, in accuracy or, "
            f"{CALIBRATED} on the validation rows or not, in NLL or Brier score."
        )
        return Section("Systems", ["system", "run", *names], rows, note, words=2, marked=STUDENT)

    def _differences(self) -> Section:
        by_name = {system.name: system for system in self.systems}

        def second(d: Difference) -> str:
            own, other = by_name[d.first], by_name[d.second]
            return other.system if own.runs == other.runs else other.name

        note = (
            "Intervals over rows, the same for both systems, and over seeds: those of different runs independently of each other, "
            "student and baseline of one run together; of one seed over rows alone, for these very models. McNemar's exact test: "
            "between runs of the first seeds, within a run one per seed. Each is judged by itself: not corrected for their number. Where only one "
            "run has one seed, its trainings are taken to vary as much as the other's."
        )
        return differences_section([(d, second(d)) for d in self.differences], note)

    def _costs(self) -> Section:
        rows = [
            [name, called, *cost_cells(run.costs[name], run.costs.get(ENSEMBLE, Cost()).p50)]
            for name in dict.fromkeys(name for run in self.runs.values() for name in run.costs)
            for called, run in self.runs.items()
            if name in run.costs
        ]
        header = ["system", "run", *COSTS, "latency / own ensemble"]
        conditions = self._conditions()
        if len(conditions) == 1:
            note = f"As each run measured them when it was judged. {next(iter(conditions))}"
        else:
            each = " ".join(f"{', '.join(runs)}: {text}" for text, runs in conditions.items())
            note = f"Measured under different conditions, so that latencies of different runs do not compare. {each}"
        note += " A fine-tuned student costs what the distilled one does."
        return Section("Cost", header, rows, note, words=2, marked=STUDENT)

    def _classes(self) -> Section:
        first, second = self.runs
        note = f"Gain: the student of {second} minus that of {first}, with the 95 % interval of each by itself; p is corrected for the number of classes (Holm)."
        return groups_section("By class", "class", self.per_class, note)

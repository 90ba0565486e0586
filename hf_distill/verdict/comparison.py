"""What a comparison of runs found: numbers for programs, tables and words for people, and the files of both."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..evaluation.cost import Cost
from ..evaluation.document import Document, Picture, Section, write_files
from ..evaluation.formats import as_json
from ..evaluation.plots import BLUE, GREEN, GREY, ORANGE, PURPLE
from ..evaluation.statistics import Difference, Interval
from ..markdown import shortened
from ..tasks import known_family
from .numbers import TRAINED, Group, Training
from .pictures import Curve, Point, bars, curves_picture, gains_picture, measures_of, quality_picture
from .recipes_apart import RecipeDifference
from .report import COSTS, cost_cells, differences_section, groups_section
from .systems import CALIBRATED, ENSEMBLE, STUDENT, Role
from .wording import metric_name, metric_value, outputs_of, score_explained, system_name, told_first

VERSION = 2
"""Of comparison.json; raised whenever a key changes its meaning or goes away."""

JSON, MARKDOWN, HTML = "comparison.json", "comparison.md", "comparison.html"
"""For programs, for people, and the page beside them."""

QUALITY, LEARNING, CLASSES = PICTURE_FILES = (
    "figures/compared_quality_against_latency.png",
    "figures/compared_learning_curves.png",
    "figures/compared_gains_by_class.png",
)
"""Every name that a picture may have; a comparison has those that it has numbers for."""

# Of the runs, one after another; what was trained without teachers is dashed.
_COLOURS = (ORANGE, BLUE, GREEN, PURPLE, GREY)

# A cell of the table of recipes has so many characters at most.
_LONGEST_VALUE = 60


class ComparedRun(NamedTuple):
    """One of the runs.

    Attributes:
        folder: Where it lies.
        seeds: Of student and baseline, the run's own first.
        baseline: The more accurate of its baselines; None where there is none.
        costs: Of student, ensemble and best teacher, as the run itself measured them.
        conditions: Under what it did.
        trainings: How they went.
    """

    folder: str
    seeds: tuple[int, ...]
    baseline: str | None
    costs: Mapping[str, Cost]
    conditions: str
    trainings: tuple[Training, ...] = ()


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
        recipes: In what the recipes differ; None where fewer than two are there.
        task: That of all runs.
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
    recipes: tuple[RecipeDifference, ...] | None = None
    task: str = "text-classification"

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and texts, as in comparison.json; a number that is not finite is None."""
        return as_json(
            {
                "version": VERSION,
                "split": self.split,
                "rows": self.rows,
                "left_out": self.left_out,
                "labels": self.labels,
                "runs": {name: self._without_log(run) for name, run in self.runs.items()},
                "recipes": self.recipes,
                "systems": self.systems,
                "differences": [{**d._asdict(), "beyond_chance": d.beyond_chance} for d in self.differences],
                "per_class": self.per_class,
                "notes": self.notes,
                "verdict": self.sentences[0],
                "sentences": self.sentences,
            }
        )

    def __str__(self) -> str:
        """What a terminal shows: what came of it first; the files have the rest."""
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
            head=f"{len(self.runs)} runs on {self.split}: {self.rows:,} labelled rows, {outputs_of(self.task, len(self.labels))}",
            outcome="gain" if gain and gain.better else "loss" if gain and gain.worse else "no",
            advice=self.sentences[0],
            about=[
                (
                    name,
                    f"{run.folder}, {'seeds' if len(run.seeds) > 1 else 'seed'} {', '.join(map(str, run.seeds))}",
                )
                for name, run in self.runs.items()
            ],
            sentences=self.sentences,
            sections=self.sections(),
            pictures=self.pictures(),
            notes=self.notes,
            page=HTML,
        )

    def sections(self) -> list[Section]:
        """The tables."""
        return [
            self._glance(),
            *([] if self.recipes is None else [self._recipes(self.recipes)]),
            self._systems(),
            self._differences(),
            *([self._costs()] if any(run.costs for run in self.runs.values()) else []),
            *([self._classes()] if self.per_class else []),
        ]

    @staticmethod
    def _without_log(run: ComparedRun) -> dict[str, Any]:
        """A run as in comparison.json: how its trainings went is in its own report.json."""
        return {name: value for name, value in run._asdict().items() if name != "trainings"}

    def pictures(self) -> list[Picture]:
        """The figures that there are numbers for; nothing is drawn yet."""
        made, family = [], known_family(self.task)
        measure = "accuracy" if family is None else family.measures[0]
        points = [
            Point(self._label(system), 1000 * seconds, system.accuracy, system.role.kind, measure)
            for system in self.systems
            if self._drawn(system) and (seconds := self._latency(system)) is not None
        ]
        if len(points) > 1:
            apart = "" if len(self._conditions()) == 1 else ", not under the same conditions"
            caption = (
                f"{bars(points)} Dotted: what no other system beats in both. Left is faster, up is more often right. "
                f"Latencies as each run measured them{apart}; the notes say what keeps them from comparing."
            )
            made.append(quality_picture(points, caption, QUALITY))
        trainings = [training for run in self.runs.values() for training in run.trainings]
        if measures := measures_of(trainings):
            caption = (
                "A colour for each run; what was trained without teachers is dashed. One line per training."
            )
            made.append(curves_picture(self._curves(), measures, caption, LEARNING))
        gains = [group for group in self.per_class if group.gain is not None]
        if gains:
            first, second = (shortened(name, 28) for name in self.runs)
            made.append(gains_picture(gains, f"{second} minus {first}", CLASSES))
        return made

    def _curves(self) -> list[Curve]:
        """The trainings of all runs: their students first, so that the legend begins with them."""
        made = [
            Curve(
                f"{shortened(name, 20)}: {TRAINED.get(training.part, training.part)}",
                training.log,
                _COLOURS[i % len(_COLOURS)],
                dashed=training.part != "student",
            )
            for i, (name, run) in enumerate(self.runs.items())
            for training in run.trainings
        ]
        return sorted(made, key=lambda curve: curve.dashed)

    def _drawn(self, system: Compared) -> bool:
        """Whether it stands in the picture: the students, the more accurate baseline of each run, and the ensembles."""
        return system.system in (STUDENT, ENSEMBLE, *{self.runs[run].baseline for run in system.runs})

    def _label(self, system: Compared) -> str:
        """A short name: which run it is must be read, and which step of its fine-tuning is in the table."""
        what = "fine-tuned" if system.role.kind == "baseline" else system_name(system.role)
        what = "student" if system.role.kind == "student" else what
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

    def _glance(self) -> Section:
        """Students, the baselines that they are compared with, and ensembles, with few columns."""
        told = told_first(self.systems[0].metrics)
        rows = [
            [
                self._called(system),
                *(metric_value(key, system.metrics.get(key), system.spread.get(key)) for key in told),
                "–" if (seconds := self._latency(system)) is None else f"{1000 * seconds:.3g}",
            ]
            for system in self.systems
            if self._drawn(system)
        ]
        header = ["system", *map(metric_name, told), "ms a row"]
        return Section("At a glance", header, rows, score_explained(told[1]))

    def _called(self, system: Compared) -> str:
        """What people read of a system, with its runs unless all have it."""
        what = system_name(system.role)
        return what if self._everywhere(system) else f"{', '.join(system.runs)}: {what}"

    def _recipes(self, differences: Sequence[RecipeDifference]) -> Section:
        """In what the recipes differ."""
        rows = [
            [
                own.key,
                *(
                    "–" if (value := own.values.get(run)) is None else shortened(value, _LONGEST_VALUE)
                    for run in self.runs
                ),
            ]
            for own in differences
        ]
        if not rows:
            rows = [["nothing but its folder", *("–" for _ in self.runs)]]
        title, note = (
            "How the recipes differ",
            "As the runs wrote them; –: not given. A change of rows is not seen here.",
        )
        return Section(title, ["key", *self.runs], rows, note, words=1 + len(self.runs), meaning="key by key")

    def _systems(self) -> Section:
        names = list(dict.fromkeys(metric for system in self.systems for metric in system.metrics))
        rows = [
            [
                system_name(system.role),
                "all" if self._everywhere(system) else ", ".join(system.runs),
                *(
                    metric_value(metric, system.metrics.get(metric), system.spread.get(metric))
                    for metric in names
                ),
            ]
            for system in self.systems
        ]
        seeds = ", ".join(f"{len(run.seeds)} of {name}" for name, run in self.runs.items())
        note = (
            f"Mean ± standard deviation over seeds: {seeds}. The Brier score is summed over the classes; the calibration error has "
            "15 bins; agreement is with the first answer of the run's own ensemble, divergence KL(its ensemble ‖ system): none "
            "where runs share a system and not the ensemble. Of the fine-tuned students those that are hardest to beat, in "
            f"accuracy or, {CALIBRATED} on the validation rows or not, in NLL or Brier score."
        )
        header, marked = ["system", "run", *map(metric_name, names)], system_name(Role("student"))
        meaning = "every system by every measure"
        return Section("Systems", header, rows, note, words=2, marked=marked, meaning=meaning)

    def _differences(self) -> Section:
        by_name = {system.name: system for system in self.systems}

        def second(d: Difference) -> str:
            own, other = by_name[d.first], by_name[d.second]
            return system_name(other.role) if own.runs == other.runs else self._called(other)

        note = (
            "Intervals over rows, the same for both systems, and over seeds: those of different runs independently of each other, "
            "student and baseline of one run together; of one seed over rows alone, for these very models. McNemar's exact test: "
            "between runs of the first seeds, within a run one per seed. Each is judged by itself: not corrected for their number. Where only one "
            "run has one seed, its trainings are taken to vary as much as the other's."
        )
        return differences_section(
            [(d, self._called(by_name[d.first]), second(d)) for d in self.differences], note
        )

    def _costs(self) -> Section:
        roles = {system.system: system.role for system in self.systems}
        rows = [
            [
                system_name(roles[name]),
                called,
                *cost_cells(run.costs[name], run.costs.get(ENSEMBLE, Cost()).p50),
            ]
            for name in dict.fromkeys(name for run in self.runs.values() for name in run.costs)
            for called, run in self.runs.items()
            if name in run.costs
        ]
        header = ["system", "run", *COSTS, "than own ensemble"]
        conditions = self._conditions()
        if len(conditions) == 1:
            note = f"As each run measured them when it was judged. {next(iter(conditions))}"
        else:
            each = " ".join(f"{', '.join(runs)}: {text}" for text, runs in conditions.items())
            note = f"Measured under different conditions, so that latencies of different runs do not compare. {each}"
        note += " A fine-tuned student costs what the distilled one does."
        marked = system_name(Role("student"))
        meaning = "size and speed, each model alone"
        return Section("Cost", header, rows, note, words=2, marked=marked, meaning=meaning)

    def _classes(self) -> Section:
        first, second = self.runs
        note = f"Gain: the student of {second} minus that of {first}, with the 95 % interval of each by itself; p is corrected for the number of classes (Holm)."
        return groups_section("By class", "class", self.per_class, note, {})

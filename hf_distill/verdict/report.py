"""The verdict's report: numbers for programs, tables and words for people, and the files of both."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..evaluation.cost import Cost
from ..evaluation.document import Document, Picture, Section, write_files
from ..evaluation.formats import as_json, duration, faster, grouped, number, percent, signed_points, tells
from ..evaluation.report_files import HTML, JSON, MARKDOWN, PICTURE_FILES
from ..evaluation.results import EvaluationReport
from ..evaluation.statistics import SHARES, Difference, Interval, spread
from ..tasks import known_family
from ..tasks.row_scores import ReliabilityBin
from .numbers import TRAINED, About, Claim, Disagreement, Export, Group, Training
from .pictures import Point, pictures
from .sentences import advice, p_values
from .systems import BEST, CALIBRATED, ENSEMBLE, LAST, STUDENT, Role
from .wording import metric_name, metric_value, outputs_of, score_explained, system_name, told_first

VERSION = 2
"""Of report.json; raised whenever a key changes its meaning or goes away."""


@dataclass(frozen=True)
class VerdictReport:
    """Whether distillation was worth it; ``str()`` is tables and a verdict, `save` writes files.

    Attributes:
        key: What decided the trainings whose answers were judged, as of `SavedRows`.
        evaluation: Every system's metrics, means over the seeds, as `evaluate_ensemble` reports them.
        left_out: How many rows besides fitted the fusion.
        roles: What each system is.
        seeds: Of student and baseline; the first seed's student is the one in the run's folder.
        spread: Standard deviation over seeds by system and metric; empty where there is one seed.
        by_seed: Metrics by system and seed, of the systems that have seeds.
        claim: What the first sentence says.
        sentences: The verdict in words, the sentence to quote first.
        differences: What was compared with what.
        temperatures: Fitted on the validation rows, by calibrated system, one per seed.
        costs: By system.
        conditions: Under what they were measured.
        place: Where.
        trainings: How they went.
        teachers_share: What the teachers took of it, as a sentence.
        per_class, per_length: Student, better baseline and ensemble on parts of the rows.
        reliability: Confidence against accuracy of some systems.
        accuracies: With intervals over rows and seeds, by system.
        disagreements: The rows where the first seed's student is furthest from the ensemble.
        exports: What was said later of exported students, by system.
        about: What was run; None where nobody says.
    """

    key: str
    evaluation: EvaluationReport
    left_out: int
    roles: Mapping[str, Role]
    seeds: tuple[int, ...]
    spread: Mapping[str, Mapping[str, float]]
    by_seed: Mapping[str, Mapping[int, Mapping[str, float]]]
    claim: Claim
    sentences: tuple[str, ...]
    differences: tuple[Difference, ...]
    temperatures: Mapping[str, tuple[float, ...]]
    costs: Mapping[str, Cost]
    conditions: str
    place: str
    trainings: tuple[Training, ...]
    teachers_share: str
    per_class: tuple[Group, ...]
    per_length: tuple[Group, ...]
    reliability: Mapping[str, tuple[ReliabilityBin, ...]]
    accuracies: Mapping[str, Interval]
    disagreements: tuple[Disagreement, ...]
    exports: Mapping[str, Export] = field(default_factory=dict)
    about: About | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and texts, as in report.json; a number that is not finite is None."""
        content = self.evaluation.to_dict()
        for name, system in content["systems"].items():
            system["role"] = self.roles[name]
            system["std"] = self.spread[name]
            system["by_seed"] = {str(seed): values for seed, values in self.by_seed[name].items()}
        return as_json(
            {
                "version": VERSION,
                "key": self.key,
                **content,
                "left_out": self.left_out,
                "about": self.about,
                "verdict": self.sentences[0],
                "advice": self.advice,
                "outcome": self.claim.outcome,
                "sentences": self.sentences,
                "seeds": self.seeds,
                "claim": self.claim,
                "differences": [{**d._asdict(), "beyond_chance": d.beyond_chance} for d in self.differences],
                "temperatures": self.temperatures,
                "cost": {"conditions": self.conditions, "place": self.place, "systems": self.costs},
                "trainings": self.trainings,
                "teachers_share": self.teachers_share,
                "accuracy_intervals": self.accuracies,
                "per_class": self.per_class,
                "per_length": self.per_length,
                "reliability": self.reliability,
                "disagreements": self.disagreements,
                "exports": self.exports,
            }
        )

    def __str__(self) -> str:
        """What a terminal shows: the verdict first, with few columns; the files have the rest."""
        return self.document().text()

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write report.json, report.md with its figures, and report.html, which needs no other file.

        Args:
            folder: Made if missing; figures of an older report that this one does not have go.

        Returns:
            The path of report.html.
        """
        write_files(folder, self.files(), PICTURE_FILES)
        return Path(folder, HTML)

    def files(self) -> dict[str, bytes]:
        """What `save` writes, by the names in the run's folder."""
        return self.document().files(JSON, MARKDOWN, self.to_dict())

    def without_texts(self) -> VerdictReport:
        """The report as it may be published: no row's text and no path, which may be private, only what was answered to it."""
        about = self.about
        if about is not None and about.command:
            about = about._replace(command=f"hf-distill train {RECIPE}")
        texts = tuple(row._replace(text="") for row in self.disagreements)
        return replace(self, disagreements=texts, about=about)

    @property
    def advice(self) -> str:
        """What to do, in one sentence for whoever was not there."""
        return advice(self.claim, {name: own.value for name, own in self.accuracies.items()})

    def document(self) -> Document:
        """What it says, with what was said later of exported students."""
        report, exports = self.evaluation, self.exports.values()
        which = f"({', '.join(map(str, self.seeds))})"
        seeds = f"1 seed {which}" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds {which}"
        fitted = f"{self.left_out} of {report.rows + self.left_out} rows fitted the fusion and are left out."
        return Document(
            kind="Verdict",
            window=f"Verdict: {report.dataset}, {self.claim.outcome}",
            head=f"{report.task} on {report.dataset}: {report.rows:,} rows, {outputs_of(report.task, len(report.labels))}, {seeds}",
            outcome=self.claim.outcome.split()[0],
            advice=self.advice,
            about=self._about(),
            sentences=[*self.sentences, *(export.sentence for export in exports)],
            sections=self.sections(),
            pictures=self.pictures(),
            notes=[
                *([fitted] if self.left_out else []),
                *report.notes,
                *(f"{name}: {note}" for name, export in self.exports.items() for note in export.notes),
            ],
            page=HTML,
        )

    def pictures(self) -> list[Picture]:
        """The figures that there are numbers for."""
        names = self._names()
        points = [
            Point(names[name], 1000 * cost.p50, accuracy, self.roles[name].kind, self.claim.measure)
            for name, accuracy in self.accuracies.items()
            if (cost := self.costs.get(self.roles[name].costs)) is not None and cost.p50 is not None
        ]
        bins = {names.get(name, name): own for name, own in self.reliability.items()}
        return pictures(points, bins, self.trainings, self.per_class)

    def sections(self) -> list[Section]:
        """The tables; texts of rows come last."""
        return [
            self._glance(),
            self._systems(),
            *([self._differences()] if self.differences else []),
            *([self._costs()] if self.costs else []),
            *([self._trainings()] if self.trainings else []),
            *([self._groups("By class", "class", self.per_class)] if self.per_class else []),
            *([self._groups("By length", "tokens", self.per_length)] if self.per_length else []),
            *([self._disagreements()] if self.disagreements else []),
        ]

    def _about(self) -> list[tuple[str, str]]:
        """What was run, as terms and texts."""
        name, outputs = self.evaluation.task, len(self.evaluation.labels)
        task = ("Task", f"{name}, {outputs_of(name, outputs)}")
        fusion = [("Fusion", self.evaluation.fusion)] if self.evaluation.fusion else []
        about = self.about
        if about is None:
            return [task, *fusion]
        base = f", started from {about.base}" if about.base else ", from scratch"
        return [
            ("Run", about.run),
            task,
            (
                "Data",
                f"{about.data}: {about.trained_rows:,} rows to train on, {about.labelled_rows:,} of them with a label; "
                f"{self.evaluation.rows:,} to judge by ({self.evaluation.dataset})",
            ),
            ("Student", f"{about.student}, {about.parameters:,} parameters{base}"),
            ("Teachers", ", ".join(f"{name} ({kind})" if kind else name for name, kind in about.teachers)),
            *fusion,
            ("Date", about.date),
            ("Made by", f"hf_distill {about.version}"),
            *([("Command", about.command)] if about.command else []),
        ]

    def _names(self) -> dict[str, str]:
        """What people read of each system."""
        return {name: system_name(role) for name, role in self.roles.items()}

    def _cost(self, name: str) -> Cost:
        return self.costs.get(self.roles[name].costs, Cost())

    def _glance(self) -> Section:
        """Few systems and few columns: the student, who it is compared with, and what they cost."""
        kinds = ("teacher", "given", "single")
        # An export is compared with the student of one seed, which is no system of the report.
        alone = [
            d.second
            for d in self.differences
            if d.second in self.roles and self.roles[d.second].kind in kinds
        ]
        shown = [STUDENT, *self._baselines(), ENSEMBLE, *alone]
        exported = [name for name, role in self.roles.items() if role.kind == "exported"]
        names, base = self._names(), self.costs.get(ENSEMBLE, Cost()).p50
        right, score = told_first(self.evaluation.systems[STUDENT].metrics)
        rows = []
        for name in dict.fromkeys([shown[0], *exported, *shown[1:]]):
            if name not in self.evaluation.systems:
                continue
            found, cost = self.evaluation.systems[name], self._cost(name)
            share = metric_value(right, found.metrics.get(right), self.spread[name].get(right))
            ratio = cost.p50 / base if cost.p50 and base and name != ENSEMBLE else None
            lost = metric_value(score, found.metrics.get(score))
            speed = "1×" if name == ENSEMBLE and base else faster(ratio)
            rows.append([names[name], share, lost, speed, _millions(found.parameters)])
        header = ["system", metric_name(right), metric_name(score), "speed", "size"]
        kept = [i for i in range(len(header)) if i < 3 or any(row[i] != "–" for row in rows)]
        note = f"{score_explained(score)} Speed: of one row, against the ensemble. Size: parameters."
        return Section(
            "At a glance",
            [header[i] for i in kept],
            [[row[i] for i in kept] for row in rows],
            note,
            marked=names[STUDENT],
        )

    def _baselines(self) -> list[str]:
        """Whom the student has to beat: the fine-tuned one that the claim is made against, and the one of least proper score.

        Each as it is or calibrated, whichever says more likely probabilities: those of a last step that learned its rows by heart
        would make any student look good.
        """
        systems = self.evaluation.systems
        _, score = told_first(systems[STUDENT].metrics)

        def lost(name: str) -> float:
            value = systems[name].metrics.get(score)
            return math.inf if value is None or math.isnan(value) else value

        if self.claim.baseline is None:
            return []
        own = [name for name, role in self.roles.items() if role.kind == "baseline" and name in systems]
        step = self.roles[self.claim.baseline].of
        claimed = [name for name in own if self.roles[name].of == step]
        return list(dict.fromkeys([min(claimed, key=lost), min(own, key=lost)]))

    def _systems(self) -> Section:
        systems, called = self.evaluation.systems, self._names()
        names = list(dict.fromkeys(metric for system in systems.values() for metric in system.metrics))
        rows = []
        for name, system in systems.items():
            cells = [
                metric_value(metric, system.metrics.get(metric), self.spread[name].get(metric))
                for metric in names
            ]
            temperatures = self.temperatures.get(name, ())
            mean = sum(temperatures) / len(temperatures) if temperatures else None
            rows.append([called[name], *cells, with_spread(mean, spread(temperatures), 2)])
        seeds = "" if len(self.seeds) == 1 else f"Mean ± standard deviation over {len(self.seeds)} seeds. "
        family = known_family(self.evaluation.task)
        explained = "" if family is None else family.explained
        explained = (
            f"{explained} {LAST!r} and {BEST!r}: the same student from the same "
            f"start, as many optimizer steps on the labelled rows, no teachers. {CALIBRATED!r}: divided by the "
            "temperature T that fits the validation rows."
        )
        header = ["system", *map(metric_name, names), "T"]
        meaning = "every system by every measure"
        return Section("Systems", header, rows, seeds + explained, marked=called[STUDENT], meaning=meaning)

    def _differences(self) -> Section:
        over = (
            "rows: of these very models, since there is one seed"
            if len(self.seeds) == 1
            else "rows and seeds, as wide as so few seeds make them"
        )
        note = (
            f"Intervals over {over}; the teachers are the same throughout. Detectable: the true difference that four of five such "
            "comparisons would find. The baseline is picked on these rows as the one that is hardest to beat, which favours it. "
            "The verdict's claim is the first line; each line is judged by itself, of calibrated and exported students too: not "
            "corrected for their number, so that of twenty between equals one is called different."
        )
        names = self._names()
        return differences_section(
            [(d, names.get(d.first, d.first), names.get(d.second, d.second)) for d in self.differences], note
        )

    def _costs(self) -> Section:
        base, names = self.costs.get(ENSEMBLE, Cost()).p50, self._names()
        rows = [[names.get(name, name), *cost_cells(cost, base)] for name, cost in self.costs.items()]
        note = "\n".join([self.conditions, *(export.conditions for export in self.exports.values())])
        header, meaning = ["system", *COSTS, "than ensemble"], "size and speed, each model alone"
        return Section("Cost", header, rows, note, marked=names[STUDENT], meaning=meaning)

    def _trainings(self) -> Section:
        rows = [
            [
                TRAINED.get(t.part, t.part),
                str(t.seed),
                f"{t.steps:,}",
                "–" if t.best_step is None else f"{t.best_step:,}",
                "–" if t.seconds is None else duration(t.seconds),
            ]
            for t in self.trainings
        ]
        header = ["student", "seed", "steps", "best validation step", "time"]
        shared = "Trainings after the first may have run side by side, each on its share of the machine. "
        note = shared * (len(rows) > 1) + self.teachers_share
        return Section("Trainings", header, rows, note, meaning="how long each took")

    def _groups(self, title: str, what: str, groups: Sequence[Group]) -> Section:
        note = (
            "Gain: distilled minus fine-tuned, with the 95 % interval of each by itself; p is corrected for how many there are "
            "(Holm), and a gain below 0.05 is beyond chance."
        )
        names = {name: system_name(role) for name, role in self.roles.items()}
        return groups_section(title, what, groups, note, names)

    def _disagreements(self) -> Section:
        texts = any(row.text for row in self.disagreements)
        rows = [
            [
                *([row.text] if texts else []),
                row.label or "–",
                f"{row.ensemble[0]} {row.ensemble[1]:.2f}".lstrip(),
                f"{row.student[0]} {row.student[1]:.2f}".lstrip(),
                f"{row.kl:.2f}" if math.isfinite(row.kl) else "∞",
            ]
            for row in self.disagreements
        ]
        title = "Where student and ensemble disagree most"
        family = known_family(self.evaluation.task)
        short, long = ("distance", "distance") if family is None else family.distance
        note = f"Student of seed {self.seeds[0]}; {long}."
        hidden = " Texts of rows are not published: the report in the run's own folder shows them."
        note += hidden * (not texts)
        header = [*(["text"] if texts else []), "label", "ensemble", "student", short]
        meaning = "the rows to read first"
        return Section(title, header, rows, note, words=len(header) - 1, in_files=texts, meaning=meaning)


RECIPE = "recipe.yaml"
"""Of a run's folder: what repeats it."""

COSTS = ("parameters", "MB", "latency p50, ms", "latency p95, ms", "rows/s")
"""The columns of `cost_cells`, but for the last, which says whose latency is one."""


def cost_cells(cost: Cost, base: float | None) -> list[str]:
    """What a system costs, as cells of a table.

    Args:
        cost: The system's.
        base: The latency that its own is compared with; None where nobody knows.
    """
    return [
        grouped(cost.parameters),
        grouped(None if cost.bytes is None else cost.bytes / 1e6, 1),
        _milliseconds(cost.p50),
        _milliseconds(cost.p95),
        grouped(cost.throughput, 0 if (cost.throughput or 0) >= 10 else 2),
        "–" if base is None or cost.p50 is None or cost.p50 == base else faster(cost.p50 / base),
    ]


def differences_section(differences: Sequence[tuple[Difference, str, str]], note: str) -> Section:
    """Differences as a table.

    Args:
        differences: Each with what its two systems are called there.
        note: How they were made.
    """
    rows = []
    for d, first, second in differences:
        points = d.measure in SHARES
        value = signed_points(d.value) if points else [number(part, sign="+") for part in d.value]
        in_points = points and math.isfinite(d.detectable)
        mute = points and math.isfinite(d.value.high - d.value.low) and not tells(d.value)
        name, unit = metric_name(d.measure).partition(",")[::2]
        rows.append(
            [
                f"{name}, {'points' if points else unit.strip()}".rstrip(", "),
                first,
                second,
                value[0],
                "says nothing" if mute else f"{value[1]} to {value[2]}",
                f"{100 * d.detectable:.1f}" if in_points else number(d.detectable),
                p_values(d),
                "better" if d.better else "worse" if d.worse else "no different",
            ]
        )
    header = [
        "measure", "of", "minus", "difference", "95 % interval", "detectable from", "McNemar p", "the first is",
    ]  # fmt: skip
    meaning = "with what chance may do"
    return Section("Differences", header, rows, note, words=3, meaning=meaning)


def groups_section(
    title: str, what: str, groups: Sequence[Group], note: str, names: Mapping[str, str]
) -> Section:
    """Some of the rows after others: what systems get right of them, and what one gains over another.

    Args:
        title: The table's.
        what: What tells the rows apart.
        groups: All with the same systems.
        note: What the gain is.
        names: What people read of the systems.
    """
    systems = list(groups[0].accuracy) if groups else []
    f1 = systems if groups and groups[0].f1 else []
    rows = [
        [
            group.name,
            f"{group.rows:,}",
            *(percent(group.accuracy[name]) if group.rows else "–" for name in systems),
            _gain(group.gain),
            "–" if group.p is None or math.isnan(group.p) else f"{group.p:.2g}",
            *(percent(group.f1[name]) for name in f1),
        ]
        for group in groups
    ]
    called = [names.get(name, name) for name in systems]
    heads = [f"{name}, right, %" for name in called], [f"{name}, F1, %" for name in called if f1]
    header = [what, "rows", *heads[0], "gain, points", "p", *heads[1]]
    return Section(
        title,
        header,
        rows,
        note,
        meaning=f"the same for each {what}" if what == "class" else "by tokens of the row",
    )


def _gain(gain: Interval | None) -> str:
    if gain is None:
        return "–"
    value, low, high = signed_points(gain)
    return f"{value} ({low} to {high})" if tells(gain) else f"{value} (interval says nothing)"


def teacher_share(costs: Mapping[str, Cost], rows_seen: int, cached_rows: int | None, seconds: float) -> str:
    """How much of making the student the teachers took, from their measured throughput, as a sentence.

    Args:
        costs: Of the systems.
        rows_seen: How many rows went through the student in training.
        cached_rows: How many distinct rows went through the teachers, where their outputs are cached; None: all that the
            student saw.
        seconds: The student's training, with live teachers included.

    Example:
        >>> teacher_share({"ensemble": Cost(throughput=100.0)}, 4000, 1000, 30.0)
        'Teachers: 1,000 rows once through each of them, then read from the cache: about 0:10 at the throughput above, 25 % of making the student.'
    """
    throughput = costs.get(ENSEMBLE, Cost()).throughput
    if not throughput:
        return ""
    if cached_rows is None:
        took = rows_seen / throughput
        part = min(1.0, took / seconds) if seconds else 0.0
        return (
            f"Teachers: {rows_seen:,} rows through each of them while training: about {duration(took)} at the throughput "
            f"above, {100 * part:.0f} % of the training. A cache (teachers.cache_dir) needs each row once."
        )
    took = cached_rows / throughput
    return (
        f"Teachers: {cached_rows:,} rows once through each of them, then read from the cache: about {duration(took)} at the "
        f"throughput above, {100 * took / (took + seconds):.0f} % of making the student."
    )


def with_spread(value: float | None, deviation: float | None, digits: int = 3) -> str:
    """A mean, and what it varies by over the seeds where there are several."""
    return number(value, digits) + ("" if deviation is None else f" ± {number(deviation, digits)}")


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1000 * seconds:,.{2 if seconds < 0.1 else 0}f}"


def _millions(count: int | None) -> str:
    return "–" if count is None else f"{count / 1e6:.1f} M" if count >= 1e5 else grouped(count)

"""The verdict's report: numbers for programs, tables and words for people, and the files of both."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..durations import duration
from ..evaluation.cost import Cost
from ..evaluation.formats import number, share, signed_points
from ..evaluation.results import EvaluationReport
from ..evaluation.statistics import Difference, Interval, ReliabilityBin, spread
from ..files import whole
from ..markdown import escaped, markdown_table
from .numbers import TRAINED, Claim, Disagreement, Group, Training
from .sentences import p_values
from .systems import BEST, CALIBRATED, ENSEMBLE, LAST

VERSION = 1
"""Of report.json; raised whenever a key changes its meaning or goes away."""

JSON, MARKDOWN, HTML = "report.json", "report.md", "report.html"
"""For programs, for people, and the page beside them."""

# Tables of a terminal; the files have all rows.
_MOST_ROWS = 12


class Section(NamedTuple):
    """One table of the report.

    Attributes:
        title: Its heading.
        header, rows: Its cells, as text.
        note: How to read it.
        words: How many columns hold words, from the left.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    words: int = 1


@dataclass(frozen=True)
class VerdictReport:
    """Whether distillation was worth it; ``str()`` is tables and a verdict, `save` writes files.

    Attributes:
        evaluation: Every system's metrics, means over the seeds, as `evaluate_ensemble` reports them.
        seeds: Of student and baseline; the first seed's student is the one in the run's folder.
        spread: Standard deviation over seeds by system and metric; empty where there is one seed.
        by_seed: Metrics by system and seed, of the systems that have seeds.
        claim: What the first sentence says.
        sentences: The verdict in words, the sentence to quote first.
        differences: What was compared with what.
        temperatures: Fitted on the validation rows, by calibrated system, one per seed.
        costs: By system.
        conditions: Under what they were measured.
        trainings: How they went.
        teachers_share: What the teachers took of it, as a sentence.
        per_class, per_length: Student, better baseline and ensemble on parts of the rows.
        reliability: Confidence against accuracy of some systems.
        accuracies: With intervals over rows and seeds, by system.
        disagreements: The rows where the first seed's student is furthest from the ensemble.
    """

    evaluation: EvaluationReport
    seeds: tuple[int, ...]
    spread: Mapping[str, Mapping[str, float]]
    by_seed: Mapping[str, Mapping[int, Mapping[str, float]]]
    claim: Claim
    sentences: tuple[str, ...]
    differences: tuple[Difference, ...]
    temperatures: Mapping[str, tuple[float, ...]]
    costs: Mapping[str, Cost]
    conditions: str
    trainings: tuple[Training, ...]
    teachers_share: str
    per_class: tuple[Group, ...]
    per_length: tuple[Group, ...]
    reliability: Mapping[str, tuple[ReliabilityBin, ...]]
    accuracies: Mapping[str, Interval]
    disagreements: tuple[Disagreement, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and texts, as in report.json; a number that is not finite is None."""
        content = self.evaluation.to_dict()
        for name, system in content["systems"].items():
            system["std"] = self.spread[name]
            system["by_seed"] = {str(seed): values for seed, values in self.by_seed[name].items()}
        return plain(
            {
                "version": VERSION,
                **content,
                "verdict": self.sentences[0],
                "outcome": self.claim.outcome,
                "sentences": self.sentences,
                "seeds": self.seeds,
                "claim": self.claim,
                "differences": [{**d._asdict(), "beyond_chance": d.beyond_chance} for d in self.differences],
                "temperatures": self.temperatures,
                "cost": {"conditions": self.conditions, "systems": self.costs},
                "trainings": self.trainings,
                "teachers_share": self.teachers_share,
                "accuracy_intervals": self.accuracies,
                "per_class": self.per_class,
                "per_length": self.per_length,
                "reliability": self.reliability,
                "disagreements": self.disagreements,
            }
        )

    def __str__(self) -> str:
        """The tables, shortened where they are long, and the verdict last, where a terminal ends."""
        parts = [self.head()]
        for section in self.sections():
            if section.header[0] == "text":
                continue
            rows, note = section.rows, section.note
            if len(rows) > _MOST_ROWS:
                rows, note = rows[:_MOST_ROWS], f"{len(rows) - _MOST_ROWS} more rows are in the report."
            parts += [f"## {section.title}", markdown_table(section.header, rows), *([note] if note else [])]
        if self.evaluation.notes:
            parts += ["## Notes", "\n".join(f"- {note}" for note in self.evaluation.notes)]
        return "\n\n".join([*parts, "## Verdict", self.sentences[0], *_listed(self.sentences[1:])])

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write report.json, report.md with its figures, and report.html, which needs no other file.

        Args:
            folder: Made if missing; figures of an older report that this one does not have go.

        Returns:
            The path of report.html.
        """
        from .pictures import FILES

        folder, files = Path(folder), self.files()
        write_files(folder, files, FILES)
        return folder / HTML

    def files(self) -> dict[str, bytes]:
        """What `save` writes, by the names in the run's folder."""
        from .page import page
        from .pictures import pictures

        content = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        texts = {JSON: content, MARKDOWN: self.markdown(), HTML: page(self)}
        return {
            **{picture.file: picture.png() for picture in pictures(self)},
            **{name: f"{text}\n".encode() for name, text in texts.items()},
        }

    def without_texts(self) -> VerdictReport:
        """The report as it may be published: no row's text, which may be private, only what was answered to it."""
        return replace(self, disagreements=tuple(row._replace(text="") for row in self.disagreements))

    def markdown(self) -> str:
        """The whole report."""
        from .pictures import pictures

        parts = ["# Verdict", f"**{escaped(self.sentences[0])}**", *_listed(map(escaped, self.sentences[1:]))]
        parts.append(f"{self.head()}. On one page: [{HTML}]({HTML})")
        figures = [part for picture in pictures(self) for part in picture.markdown()]
        for section in self.sections():
            rows = [[escaped(cell) for cell in row] for row in section.rows]
            parts += [f"## {section.title}", markdown_table([escaped(name) for name in section.header], rows)]
            parts += [section.note] if section.note else []
            parts, figures = [*parts, *figures], []  # behind the first table, as on the page
        if self.evaluation.notes:
            parts += ["## Notes", "\n".join(f"- {escaped(note)}" for note in self.evaluation.notes)]
        return "\n\n".join(parts)

    def head(self) -> str:
        """What was evaluated."""
        report = self.evaluation
        seeds = "1 seed" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds"
        return (
            f"{report.task} on {report.dataset}: {report.rows:,} rows, {len(report.labels)} classes, {seeds}"
        )

    def sections(self) -> list[Section]:
        """The tables; texts of rows come last."""
        made = [self._systems()]
        made += [self._differences()] if self.differences else []
        made += [self._costs()] if self.costs else []
        made += [self._trainings()] if self.trainings else []
        made += [self._groups("By class", "class", self.per_class)]
        made += [self._groups("By length", "tokens", self.per_length)] if self.per_length else []
        return [*made, *([self._disagreements()] if self.disagreements else [])]

    def _systems(self) -> Section:
        systems = self.evaluation.systems
        names = list(dict.fromkeys(metric for system in systems.values() for metric in system.metrics))
        rows = []
        for name, system in systems.items():
            cells = [
                _with_spread(system.metrics.get(metric), self.spread[name].get(metric)) for metric in names
            ]
            temperatures = self.temperatures.get(name, ())
            mean = sum(temperatures) / len(temperatures) if temperatures else None
            rows.append([name, *cells, _with_spread(mean, spread(temperatures), 2)])
        seeds = "" if len(self.seeds) == 1 else f"Mean ± standard deviation over {len(self.seeds)} seeds. "
        explained = (
            f"NLL in nats; brier summed over the classes; ece over 15 bins; agreement with the ensemble's first answer; "
            f"kl_to_ensemble is KL(ensemble ‖ system) in nats. {LAST!r} and {BEST!r}: the same student from the same "
            f"start, as many optimizer steps on the labelled rows, no teachers. {CALIBRATED.lstrip(', ')!r}: divided by the "
            "temperature T that fits the validation rows."
        )
        return Section("Systems", ["system", *names, "T"], rows, seeds + explained)

    def _differences(self) -> Section:
        rows = []
        for d in self.differences:
            points = d.measure == "accuracy"
            value = signed_points(d.value) if points else _nats(d.value)
            found = (
                f"{100 * d.detectable:.1f}"
                if points and math.isfinite(d.detectable)
                else number(d.detectable)
            )
            verdict = "better" if d.better else "worse" if d.worse else "no different"
            rows.append(
                [
                    d.measure + (", points" if points else ""),
                    d.first,
                    d.second,
                    value[0],
                    f"{value[1]} to {value[2]}",
                    found,
                    p_values(d),
                    verdict,
                ]
            )
        drawn = "rows" if len(self.seeds) == 1 else "rows and seeds, widened by Student's t as seeds are few"
        return Section(
            "Differences",
            [
                "measure",
                "of",
                "minus",
                "difference",
                "95 % interval",
                "detectable from",
                "McNemar p",
                "the first is",
            ],
            rows,
            f"Percentile intervals of 4,000 paired bootstrap resamples of {drawn}. Detectable: 2.80 standard errors, the "
            "true difference that four of five such comparisons would find. The baseline is picked on these rows as the one "
            "that is hardest to beat.",
            words=3,
        )

    def _costs(self) -> Section:
        base = self.costs.get(ENSEMBLE, Cost()).p50
        rows = [
            [
                name,
                _grouped(cost.parameters),
                _grouped(None if cost.bytes is None else cost.bytes / 1e6, 1),
                _milliseconds(cost.p50),
                _milliseconds(cost.p95),
                _grouped(cost.throughput, 0 if (cost.throughput or 0) >= 10 else 2),
                "–" if base is None or cost.p50 is None else f"{share(cost.p50 / base)}×",
            ]
            for name, cost in self.costs.items()
        ]
        header = [
            "system",
            "parameters",
            "MB",
            "latency p50, ms",
            "latency p95, ms",
            "rows/s",
            "latency / ensemble",
        ]
        return Section("Cost", header, rows, self.conditions)

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
        return Section("Trainings", header, rows, note)

    def _groups(self, title: str, what: str, groups: Sequence[Group]) -> Section:
        systems = list(groups[0].accuracy) if groups else []
        with_f1 = bool(groups and groups[0].f1)
        rows = []
        for group in groups:
            gain = "–" if group.gain is None else "{} ({} to {})".format(*signed_points(group.gain))
            cells = [f"{100 * group.accuracy[name]:.1f}" if group.rows else "–" for name in systems]
            f1 = [f"{100 * group.f1[name]:.1f}" for name in systems] if with_f1 else []
            rows.append([group.name, f"{group.rows:,}", *cells, gain, *f1])
        heads = [f"{name}, right %" for name in systems] + ["gain, points"]
        heads += [f"{name}, F1 %" for name in systems] if with_f1 else []
        note = "Gain: distilled minus fine-tuned, with its 95 % interval; of many, some leave zero out by chance."
        return Section(title, [what, "rows", *heads], rows, note)

    def _disagreements(self) -> Section:
        texts = any(row.text for row in self.disagreements)
        rows = [
            [
                *([row.text] if texts else []),
                row.label or "–",
                f"{row.ensemble[0]} {row.ensemble[1]:.2f}",
                f"{row.student[0]} {row.student[1]:.2f}",
                f"{row.kl:.2f}" if math.isfinite(row.kl) else "∞",
            ]
            for row in self.disagreements
        ]
        title = "Where student and ensemble disagree most"
        note = f"Student of seed {self.seeds[0]}; KL(ensemble ‖ student) of the row, in nats."
        hidden = " Texts of rows are not published: the report in the run's own folder shows them."
        note += hidden * (not texts)
        header = [*(["text"] if texts else []), "label", "ensemble", "student", "KL"]
        return Section(title, header, rows, note, words=len(header) - 1)


def write_files(folder: Path, files: Mapping[str, bytes], figures: Sequence[str]) -> None:
    """Write a report's files, each whole or not at all, and remove the figures that it has no longer.

    Args:
        folder: Made if missing.
        files: By name.
        figures: Every name that a figure of such a report may have.
    """
    for name, content in files.items():
        with whole(folder / name, "wb") as file:
            file.write(content)
    for name in set(figures) - set(files):
        (folder / name).unlink(missing_ok=True)


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


def _with_spread(value: float | None, deviation: float | None, digits: int = 3) -> str:
    if value is None:
        return "–"
    varies = "" if deviation is None else f" ± {number(deviation, digits)}"
    return number(value, digits) + varies


def _nats(value: Interval) -> tuple[str, ...]:
    return tuple(number(part, sign="+") for part in value)


def _grouped(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{1000 * seconds:.2f}" if seconds < 0.1 else f"{1000 * seconds:.0f}"


def _listed(sentences: Any) -> list[str]:
    lines = "\n".join(f"- {sentence}" for sentence in sentences)
    return [lines] if lines else []


def plain(value: Any) -> Any:
    """What json.dumps takes; a number that is not finite is None.

    Example:
        >>> plain({3: (Interval(1.0, float("nan"), 2.0), "text")})
        {'3': [{'value': 1.0, 'low': None, 'high': 2.0}, 'text']}
    """
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value

"""The audit of teachers that give numbers: how near each is, on which scale, how they err together, and fused by every rule.

Shapes: K teachers, N labelled rows, C scores.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ...errors import ConfigurationError, DataError
from ...files import write_json, write_text
from ...fusion import Fusion, FusionChoice, FusionRule, GaussianPool, HeldOut, build_fusion, describe
from ...fusion.alignment import OutputMap, labelled, plan_table
from ...tasks import family_of
from ...tasks.task import Task
from ..cost import Cost
from ..document import Section, listed, rendered
from ..formats import as_json, grouped, nats, number, percent
from ..metrics import compute_metric, load_metric
from ..statistics import Interval, bootstrap_means, percentile_interval
from .advice import recipe_lines
from .rules import fitted, half, out_of_fold, subset

BEST_TEACHER = "best teacher, on its line"
"""What the report calls the single teacher that an ensemble has to beat."""

PLAIN = "gaussian_pool"
"""The plain mean, to which rules are compared."""

SCORE_RULES: dict[str, Any] = {
    PLAIN: "gaussian_pool",
    "gaussian_pool, inverse_mse on lines": {
        "use": "gaussian_pool", "fit": True, "method": "inverse_mse", "scale": True,
    },
    "gaussian_pool, bates_granger on lines": {
        "use": "gaussian_pool", "fit": True, "method": "bates_granger", "scale": True,
    },
}  # fmt: skip
"""From simple to involved: of rules that the rows cannot tell apart, the first is advised."""

# z-score of a correlation below which numbers are not told from noise: one teacher of a thousand gets above it by chance.
_Z = 3.09
_SHOWN = ("pearson", "spearman", "mse", "mae")
_FEW_ROWS = 200


class ScoreFigures(NamedTuple):
    """What one teacher is worth alone.

    Attributes:
        metrics: Pearson's and Spearman's correlation, mean squared and absolute error.
        within: Share of rows within the task's tolerance.
        line: Slope and offset of the least-squares line from its numbers to the labels.
        on_line: Its mean squared error on that line, each row by the line of the other half.
        cost: Size and throughput.
    """

    name: str
    metrics: Mapping[str, float]
    within: float
    line: tuple[float, float]
    on_line: float
    cost: Cost


class ScorePair(NamedTuple):
    """How two teachers differ: correlations of their numbers and of their errors, each on its line."""

    first: str
    second: str
    numbers: float
    errors: float


class ScoreRule(NamedTuple):
    """The ensemble under one rule, each row scored by what was fitted on the other half.

    Attributes:
        metrics: As of `ScoreFigures`.
        squared_error: Per row, summed over the scores.
        over_mean, over_best: Its squared error minus that of the plain mean and of the best single teacher.
    """

    name: str
    metrics: Mapping[str, float]
    squared_error: Interval
    over_mean: Interval
    over_best: Interval


@dataclass(frozen=True)
class ScoreAudit:
    """What an audit of numbers found; ``str()`` is tables and a verdict.

    Attributes:
        task: The task's name.
        dataset: What the rows are called.
        rows: How many labelled rows were used, N.
        halves: How many of them each half has.
        labels: The C names of the scores.
        alignment: How the teachers' outputs were matched, as a table.
        conditions: Under what the throughput was measured; empty where it was not.
        teachers: Each alone.
        pairs: Each pair of them.
        rules: The ensemble of all teachers under every rule.
        left_out: Why a rule was not scored, by its name.
        without: The squared error without a teacher minus with it, under the advised rule, by the teacher's name.
        dropped: Why a teacher should not be used, by name.
        fusion: The advised rule.
        lines: To paste into the recipe; empty where no teacher is usable.
        verdict: In words.
        warnings: What is suspicious.
        notes: What a reader must know to trust the figures.
    """

    task: str
    dataset: str
    rows: int
    halves: tuple[int, int]
    labels: tuple[str, ...]
    alignment: str
    conditions: str
    teachers: tuple[ScoreFigures, ...]
    pairs: tuple[ScorePair, ...]
    rules: tuple[ScoreRule, ...]
    left_out: Mapping[str, str]
    without: Mapping[str, Interval]
    dropped: Mapping[str, str]
    fusion: str
    lines: str
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
        """The tables, and the verdict last, where a terminal ends."""
        return "\n\n".join([self._head(), *rendered(self._sections(), str), *self._words()])

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write audit.json and audit.md.

        Args:
            folder: Made if missing.

        Returns:
            The path of audit.md.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        parts = ["# Teacher audit", self._head(), *self._words(), *rendered(self._sections(), str)]
        write_json(folder / "audit.json", self.to_dict(), indent=2)
        write_text(folder / "audit.md", "\n\n".join(parts) + "\n")
        return folder / "audit.md"

    def _head(self) -> str:
        counted = [
            f"{n} {word}{'' if n == 1 else 's'}"
            for n, word in ((len(self.labels), "score"), (len(self.teachers), "teacher"))
        ]
        return f"{self.task} on {self.dataset}: {self.rows:,} labelled rows, {', '.join(counted)}"

    def _words(self) -> list[str]:
        told = {"Warnings": self.warnings, "Notes": self.notes, "Verdict": self.verdict}
        parts = [part for title, lines in told.items() for part in listed(lines, str, title)]
        return [*parts, "To paste into the recipe:", f"```yaml\n{self.lines}\n```"] if self.lines else parts

    def _sections(self) -> list[Section]:
        rows = [
            [
                own.name,
                *(number(own.metrics[name]) for name in _SHOWN),
                percent(own.within),
                f"× {number(own.line[0])} {'−' if own.line[1] < 0 else '+'} {number(abs(own.line[1]))}",
                number(own.on_line),
                grouped(own.cost.parameters),
                grouped(own.cost.throughput),
            ]
            for own in self.teachers
        ]
        header = ["teacher", "Pearson", "Spearman", "MSE", "MAE", "within %", "line", "MSE on it", "parameters", "rows/s"]  # fmt: skip
        pairs = [
            [f"{p.first} – {p.second}", number(p.numbers, 2), number(p.errors, 2)]
            for p in sorted(self.pairs, key=lambda pair: -pair.errors)
        ]
        rules = [
            [
                rule.name,
                *(number(rule.metrics[name]) for name in ("pearson", "spearman")),
                nats(rule.squared_error, sign=""),
                "–" if rule.name == PLAIN else nats(rule.over_mean),
                "–" if rule.name == BEST_TEACHER else nats(rule.over_best),
            ]
            for rule in sorted(self.rules, key=lambda rule: rule.squared_error.value)
        ]
        halves = (
            f"each half ({self.halves[0]} and {self.halves[1]} rows) scored by what was fitted on the other"
        )
        legend = "± half of the 95 % paired bootstrap interval; * a difference beyond chance. Squared errors are summed over the scores."
        legend = "\n\n".join(
            [legend, *(f"Not scored: {name}: {why.rstrip('.')}." for name, why in self.left_out.items())]
        )
        heads = ["rule", "Pearson", "Spearman", "squared error", "− plain mean", "− best teacher"]
        without = [[name, nats(gain)] for name, gain in self.without.items()]
        return [
            Section("Teachers", header, rows, self.conditions),
            Section("How outputs were matched", (), (), self.alignment),
            *([Section("Pairs", ["pair", "of the numbers", "of the errors"], pairs, "Correlations, each teacher on its line. Where errors are at one, no mean mends them.")] if pairs else []),
            *([Section(f"Fusion rules: {halves}", heads, rules, legend)] if rules else []),
            *([Section(f"Without one teacher: the squared error of {self.fusion}, less is better", ["without", "change"], without)] if without else []),
        ]  # fmt: skip


@dataclass(frozen=True)
class BestOnItsLine:
    """The single teacher that an ensemble has to beat: of least squared error on its line, both by the rows of the fit."""

    family = "gaussian"

    def choose(self, held_out: HeldOut, names: Sequence[str]) -> FusionChoice:
        """The teacher and the line, as a `GaussianPool`; of equal ones the first."""
        lines = GaussianPool.fit(held_out.logits, held_out.labels, method="inverse_mse", scale=True).scales
        errors = [
            (a * own.double() + b - held_out.labels).square().nanmean().item()
            for own, (a, b) in zip(held_out.logits, lines, strict=True)
        ]
        best = min(range(len(names)), key=errors.__getitem__)
        pool = GaussianPool(tuple(float(k == best) for k in range(len(names))), lines)
        return FusionChoice(pool, f"{names[best]} alone, on its line")

    def without_rows(self, why: str) -> FusionChoice:
        """It cannot do without."""
        raise ConfigurationError(f"The best teacher is chosen on held-out rows with labels, but {why}.")


def audit_scores(
    held: HeldOut,
    maps: Sequence[OutputMap],
    task: Task,
    *,
    rules: Mapping[str, Any] | None = None,
    entries: Mapping[str, Any] | None = None,
    costs: Mapping[str, Cost] | None = None,
    conditions: str = "",
    dataset_name: str = "held-out rows",
    notes: Sequence[str] = (),
) -> ScoreAudit:
    """Say what teachers that give numbers are worth, from outputs that are there already.

    Args:
        held: What the teachers say of the rows, on the scale they were aligned to.
        maps: How the outputs of each were matched; they name the teachers.
        task: Says what is within its tolerance.
        rules: Rules to compare besides `SCORE_RULES`, by name, as `build_fusion` takes them.
        entries: What a recipe writes of each teacher, by name; None: the name.
        costs: Of each teacher, by name.
        conditions: Under what the throughput was measured.
        dataset_name: What the report calls the rows.
        notes: Sentences to add to the report.

    Raises:
        DataError: No labelled rows.

    Example:
        >>> from hf_distill import TASKS
        >>> from hf_distill.fusion.alignment import LabelMap
        >>> truth = torch.randn(60, 1, generator=torch.Generator().manual_seed(0))
        >>> held = HeldOut(truth[None] * 2 + 1, truth, None, torch.arange(60))
        >>> found = audit_scores(held, [LabelMap("t", ("s",), ("s",), (0,))], TASKS["regression"])
        >>> [round(number, 3) for number in found.teachers[0].line]
        [0.5, -0.5]
    """
    names = [own_map.teacher for own_map in maps]
    known = labelled(held.labels)
    if not bool(known.any()):
        raise DataError(
            f"None of the {len(known)} rows has a label, and an audit compares with labels: name the column that holds them with "
            "label_column=, or label some rows."
        )
    held = HeldOut(held.logits[:, known], held.labels[known], None, held.example_ids[known])
    remarks = [f"{int((~known).sum())} of {len(known)} rows have no label and are left out."] * bool(
        (~known).any()
    )
    if len(held.labels) < _FEW_ROWS:
        remarks.append(
            f"{len(held.labels)} rows are few: the intervals are wide, and little is told from chance. Label some hundred more."
        )
    alone = {name: _alone(subset(held, names, [name]), name, task, (costs or {}).get(name, Cost())) for name in names}  # fmt: skip
    broken, warnings = _suspicions(held, names, alone)
    rules = {name: build_fusion(spec) for name, spec in {**SCORE_RULES, **(rules or {})}.items()}
    sound = [name for name in names if name not in broken]
    finite = [name for name in names if bool(torch.isfinite(held.logits[names.index(name)]).all())]
    rows, reasons = _scored(rules, subset(held, names, finite), finite, task) if finite else ({}, {})
    figures = _rule_figures(rows, held, task)
    advice = _advise(rules, held, names, sound, task) if sound else None
    kept, rule, without, dropped = advice or ([], "", {}, {})
    lines = ""
    words = [
        "No teacher is usable as it is on these rows: see the warnings. Check first whether these rows are of the teachers' task."
    ]
    if kept:
        scores = _scored(rules, subset(held, names, kept), kept, task)[0]
        best = min(kept, key=lambda name: alone[name].on_line)
        single = scores[rule].over(scores[BEST_TEACHER])
        if len(kept) > 1 and single.beyond_chance and single.value > 0:
            used, settings = [best], {"use": "gaussian_pool", "scales": [list(alone[best].line)]}
        else:
            used, settings = kept, _settings(fitted(rules[rule], subset(held, names, kept), kept))
        lines = recipe_lines([(entries or {}).get(name, name) for name in used], settings)
        words = _words({**broken, **dropped}, kept, rule, scores, best, len(held.labels))
    first = int(half(held).sum())
    return ScoreAudit(
        task=task.name,
        dataset=dataset_name,
        rows=len(held.labels),
        halves=(first, len(held.labels) - first),
        labels=tuple(maps[0].student_labels),
        alignment=plan_table(maps),
        conditions=conditions,
        teachers=tuple(alone.values()),
        pairs=tuple(_pairs(subset(held, names, finite), finite)) if len(finite) > 1 else (),
        rules=figures,
        left_out=reasons,
        without=without,
        dropped={**broken, **dropped},
        fusion=rule,
        lines=lines,
        verdict=tuple(words),
        warnings=tuple(warnings),
        notes=(*notes, *remarks),
    )


class _Rows(NamedTuple):
    """What a system says of the rows, (N, C), its squared error in each (N,), and that on resamples (R,)."""

    said: np.ndarray
    errors: np.ndarray
    means: np.ndarray

    def over(self, other: _Rows, level: float = 0.95) -> Interval:
        """This minus the other."""
        return percentile_interval(
            self.errors.mean() - other.errors.mean(), self.means - other.means, level=level
        )


def _scored(
    rules: Mapping[str, Fusion | FusionRule], held: HeldOut, names: Sequence[str], task: Task
) -> tuple[dict[str, _Rows], dict[str, str]]:
    """Every rule out of fold and the best teacher, on the same resamples; and why a rule has no scores."""
    said, reasons, family = {}, {}, family_of(task)
    for name, rule in {**rules, BEST_TEACHER: BestOnItsLine()}.items():
        try:
            said[name] = out_of_fold(rule, held, names)
        except (
            ValueError,
            RuntimeError,
            ArithmeticError,
        ) as error:  # a user's own rule may raise what it likes
            reasons[name] = " ".join(str(error).split())
    if not said:
        return {}, reasons
    labels = held.labels.numpy()
    errors = {name: family.scores(own, labels)[0] for name, own in said.items()}
    means = bootstrap_means(np.stack(list(errors.values()), 1))
    return {name: _Rows(said[name], errors[name], means[:, i]) for i, name in enumerate(said)}, reasons


def _metrics(said: np.ndarray, labels: np.ndarray, task: Task) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in _SHOWN:
        found |= compute_metric(load_metric(name), log_probs=said, labels=labels, family=family_of(task))
    return found


def _alone(held: HeldOut, name: str, task: Task, cost: Cost) -> ScoreFigures:
    said, labels = held.logits[0].double().numpy(), held.labels.double().numpy()
    if not np.isfinite(said).all():
        return ScoreFigures(
            name, dict.fromkeys(_SHOWN, math.nan), math.nan, (math.nan, math.nan), math.nan, cost
        )
    (line,) = GaussianPool.fit(held.logits, held.labels, method="inverse_mse", scale=True).scales
    rows, _ = _scored({}, held, [name], task)
    own = rows.get(BEST_TEACHER)
    return ScoreFigures(
        name,
        _metrics(said, labels, task),
        float(np.mean(task.right(said, labels))),
        line,
        math.nan if own is None else float(own.errors.mean() / labels.shape[1]),
        cost,
    )


def _suspicions(
    held: HeldOut, names: Sequence[str], alone: Mapping[str, ScoreFigures]
) -> tuple[dict[str, str], list[str]]:
    """Why a teacher should not be used as it is, by name, and what else is suspicious."""
    broken, warnings, count = {}, [], len(held.labels)
    for k, name in enumerate(names):
        own, values = alone[name], held.logits[k]
        r = own.metrics["pearson"]
        z = (
            math.atanh(min(max(r, -0.999999), 0.999999)) * math.sqrt(max(count - 3, 1))
            if math.isfinite(r)
            else 0.0
        )
        if not bool(torch.isfinite(values).all()):
            broken[name] = "its outputs are not finite"
            warnings.append(
                f"Teacher {name!r} gives outputs that are not finite: find out on which rows, or drop it."
            )
        elif abs(z) < _Z:
            broken[name] = "its numbers tell nothing of the labels"
            warnings.append(
                f"Teacher {name!r}: its correlation with the labels is {number(r, 2, sign='+')}, {number(z, 1, sign='+')} standard errors from 0, "
                "so its numbers are not told from noise."
            )
        elif z < 0:
            warnings.append(
                f"Teacher {name!r} says more where the labels say less (correlation {number(r, 2, sign='+')}): its scale runs the other way. A "
                "fitted line turns it round; unfitted fusions must not hear it."
            )
        elif own.on_line < 0.8 * own.metrics["mse"]:
            warnings.append(
                f"Teacher {name!r} speaks on another scale than the labels: its squared error is {number(own.metrics['mse'])}, and "
                f"{number(own.on_line)} on its line. Fit the fusion with scale: true, or give scales."
            )
    for i, first in enumerate(names):
        for j in range(i + 1, len(names)):
            if torch.equal(held.logits[i], held.logits[j]):
                warnings.append(
                    f"Teachers {first!r} and {names[j]!r} give the same numbers on every row: they may be one checkpoint, which then counts "
                    "twice. Keep one."
                )
    return broken, warnings


def _pairs(held: HeldOut, names: Sequence[str]) -> list[ScorePair]:
    lines = GaussianPool.fit(held.logits, held.labels, method="inverse_mse", scale=True)
    said = lines.aligned(held.logits).double().flatten(1).numpy()
    errors = said - held.labels.double().flatten().numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        alike, together = np.atleast_2d(np.corrcoef(said)), np.atleast_2d(np.corrcoef(errors))
    return [
        ScorePair(names[i], names[j], float(alike[i, j]), float(together[i, j]))
        for i in range(len(names))
        for j in range(i + 1, len(names))
    ]


def _rule_figures(rows: Mapping[str, _Rows], held: HeldOut, task: Task) -> tuple[ScoreRule, ...]:
    if not {PLAIN, BEST_TEACHER} <= rows.keys():
        return ()
    labels = held.labels.double().numpy()
    return tuple(
        ScoreRule(
            name,
            _metrics(own.said, labels, task),
            percentile_interval(own.errors.mean(), own.means),
            own.over(rows[PLAIN]),
            own.over(rows[BEST_TEACHER]),
        )
        for name, own in rows.items()
    )


def _advised(rows: Mapping[str, _Rows]) -> str:
    """The simplest rule that is not worse beyond chance than the one of least squared error."""
    eligible = {name: own for name, own in rows.items() if name != BEST_TEACHER}
    best = min(eligible.values(), key=lambda own: own.errors.mean())
    return next(
        name
        for name, own in eligible.items()
        if own is best or not own.over(best).beyond_chance or own.over(best).value <= 0
    )


def _advise(
    rules: Mapping[str, Fusion | FusionRule],
    held: HeldOut,
    names: Sequence[str],
    sound: Sequence[str],
    task: Task,
) -> tuple[list[str], str, dict[str, Interval], dict[str, str]] | None:
    """Which teachers to keep under which rule, what the ensemble loses without each, and why others are dropped."""
    kept, dropped = list(sound), {}
    while True:
        rows, _ = _scored(rules, subset(held, names, kept), kept, task)
        if not rows.keys() - {BEST_TEACHER}:
            return None
        rule = _advised(rows)
        changes, level = {}, 1 - 0.05 / len(kept)
        harmful: dict[str, float] = {}
        for name in kept if len(kept) > 1 else ():
            others = [other for other in kept if other != name]
            left, _ = _scored({rule: rules[rule]}, subset(held, names, others), others, task)
            if rule not in left:
                continue
            changes[name] = left[rule].over(rows[rule])
            sure = left[rule].over(rows[rule], level)
            if sure.beyond_chance and sure.value < 0:
                harmful[name] = sure.value
        if not harmful:
            return kept, rule, changes, dropped
        worst = min(harmful, key=harmful.__getitem__)
        dropped[worst] = f"without it {rule} of the others gains: squared error {nats(changes[worst])}"
        kept.remove(worst)


def _settings(fusion: Fusion) -> dict[str, Any]:
    try:
        return describe(fusion)
    except ConfigurationError:  # no dataclass: a recipe can only name its class
        return {"use": f"{type(fusion).__module__}:{type(fusion).__qualname__}"}


def _words(
    dropped: Mapping[str, str],
    kept: Sequence[str],
    rule: str,
    rows: Mapping[str, _Rows],
    best: str,
    count: int,
) -> list[str]:
    sentences = [f"Drop {name!r}: {why}." for name, why in dropped.items()]
    over_mean, over_best = rows[rule].over(rows[PLAIN]), rows[rule].over(rows[BEST_TEACHER])
    if len(kept) == 1:
        line = f"Use {best!r} alone: there is no other teacher to fuse it with"
        fit = f", on its line: squared error {nats(over_mean)} against its own scale" if rule != PLAIN else ""
        return [*sentences, f"{line}{fit}."]
    listed_names = ", ".join(map(repr, kept[:-1])) + f" and {kept[-1]!r}"
    sentences.append(f"Keep {listed_names}.")
    if rule == PLAIN:
        sentences.append(f"Fuse with the plain mean: no rule beats it beyond chance on these {count:,} rows.")
    else:
        sentences.append(
            f"Fuse with {rule}: squared error {nats(over_mean)} against the plain mean. The lines below hold it, fitted on all {count:,} rows."
        )
    measured = (
        f"the ensemble minus the best single teacher, {best!r}, on its line: squared error {nats(over_best)}"
    )
    if over_best.beyond_chance:
        word = (
            "Several teachers are worth it"
            if over_best.value < 0
            else f"Use {best!r} alone, several are not worth it here"
        )
        sentences.append(f"{word}: {measured}.")
    else:
        sentences.append(
            f"Several teachers or one: no difference beyond chance on these {count:,} rows; {measured}."
        )
    return sentences

"""From saved rows to a verdict: who is compared with whom, where the gain lies, and where student and teachers differ.

Shapes: S seeds, N rows, n labelled rows, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..errors import DataError
from ..evaluation.cost import Cost
from ..evaluation.results import EvaluationReport, SystemResult
from ..evaluation.statistics import (
    LEAST_DIFFERENT,
    SHARES,
    Difference,
    accuracy_interval,
    difference,
    holm,
    spread,
)
from ..evaluation.variances import ERROR
from ..fusion.alignment import labelled as with_label
from ..markdown import shortened
from ..tasks import build_task, family_of
from ..tasks.family import Family
from ..tasks.task import Task
from .answers import Answers, SavedRows, in_order
from .numbers import Claim, Disagreement, Group, Training
from .report import VerdictReport
from .sentences import headline, remarks
from .systems import (
    ENSEMBLE,
    STUDENT,
    Measured,
    Role,
    gain_over,
    means,
    measure,
    metric_modules,
    of_kind,
    student_systems,
    teacher_systems,
)

_DISAGREEMENTS = 20
_TEXT = 240
_BUCKETS = 4


def judge(
    students: Sequence[SavedRows],
    baselines: Sequence[SavedRows],
    teachers: SavedRows,
    *,
    singles: Sequence[SavedRows] = (),
    task: str | Task,
    metrics: Sequence[Any],
    fusion: str = "",
    texts: Mapping[int, Sequence[str]] | None = None,
    left_out: np.ndarray | None = None,
    costs: Mapping[str, Cost] | None = None,
    conditions: str = "",
    place: str = "",
    teachers_share: str = "",
    busy: str = "",
    sizes: Mapping[str, int] | None = None,
    notes: Sequence[str] = (),
) -> VerdictReport:
    """Say whether distillation was worth it.

    Args:
        students: What the student of each seed answered.
        baselines: What the same student answered that was trained without teachers: ``last`` after as many steps, and
            ``best`` after the step that its validation rows chose; the same seeds in the same order, or none at all.
        teachers: What ensemble and teachers answered; may hold other systems too, such as a checkpoint to compare with.
        singles: What the student answered that learnt from one teacher alone, which their facts name as ``teacher``; the
            same seeds in the same order, or none at all.
        task: The task's name, or the task.
        metrics: What is reported besides what always is, as for `evaluate_ensemble`.
        fusion: How the ensemble was fused.
        texts: The rows' texts by their id; None: the rows are not shown.
        left_out: Ids of rows that are not reported on, such as those that fitted the fusion.
        costs: Of the systems, by name.
        conditions: Under what they were measured.
        place: Where, as `evaluation.cost.place` says it; empty where they were not.
        teachers_share: What the teachers took of the training, as a sentence.
        busy: Why latencies are not to be trusted; empty where they are.
        sizes: How many parameters answer one row, by system.
        notes: What a reader must know to trust the figures.

    Raises:
        DataError: No row has a label, or trainings answered other rows.
    """
    first, costs, sizes = students[0], costs or {}, sizes or {}
    ids, names = first.rows.example_ids, first.label_names
    kept = np.ones(len(ids), bool) if left_out is None else ~np.isin(ids, left_out)

    def answers(saved: SavedRows) -> Answers:
        what = saved.part if saved.seed is None else f"The {saved.part} of seed {saved.seed}"
        own = in_order(saved, ids, names, what)
        logs = {name: values[kept] for name, values in own.log_probs.items()}
        return own._replace(example_ids=ids[kept], labels=own.labels[kept], log_probs=logs)

    own = [answers(saved) for saved in students]
    other, fixed = [answers(saved) for saved in baselines], answers(teachers)
    alone = [answers(saved) for saved in singles]
    labels = own[0].labels
    if not with_label(labels).any():
        raise DataError(
            f"None of the {len(labels)} {first.split} rows has a label, so nothing can be judged."
        )
    modules, family = metric_modules(metrics, task), family_of(task)
    found: dict[str, Measured] = {}
    steps = [kind for kind in ("last", "best") if other and (kind == "last" or _differs_from_last(other))]
    systems = student_systems(Role("student"), own, [saved.validation for saved in students], STUDENT, task)
    for kind in steps:
        held = [saved.validation for saved in baselines]
        systems += student_systems(Role("baseline", kind), other, held, kind, task)
    for teacher in {str(saved.facts["teacher"]) for saved in singles}:
        held = [saved.validation for saved in singles]
        systems += student_systems(Role("single", teacher), alone, held, STUDENT, task)
    systems += teacher_systems(own, fixed, task)
    ensemble = fixed.log_probs.get(ENSEMBLE)
    for system in tqdm(systems, desc="Judging", leave=False):
        found[system.role.name] = measure(system, labels, ensemble, modules, task)
    differences = _differences(found)
    claim = _claim(found, differences, {} if busy else costs, int(with_label(labels).sum()))
    report = EvaluationReport(
        task=build_task(task).name,
        dataset=first.split,
        rows=len(labels),
        systems={
            name: SystemResult(means(own.metrics), _size(own.role, sizes, costs))
            for name, own in found.items()
        },
        labels=tuple(names),
        fusion=fusion,
        notes=(*notes, *([busy] if busy else [])),
    )
    seeds = tuple(int(saved.seed or 0) for saved in students)
    trainings = tuple(_training(saved) for saved in (*students, *baselines, *singles))
    shown = [STUDENT, *([claim.baseline] if claim.baseline else []), ENSEMBLE]
    parts = {name: found[name] for name in shown if name in found}
    pair = None if claim.baseline is None else (STUDENT, claim.baseline)
    return VerdictReport(
        key=first.key,
        evaluation=report,
        left_out=len(ids) - len(labels),
        roles={name: own.role for name, own in found.items()},
        seeds=seeds,
        spread={name: own.spread() for name, own in found.items()},
        by_seed={
            name: dict(zip(seeds, own.metrics, strict=True))
            if own.role.small or own.role.kind == "together"
            else {}
            for name, own in found.items()
        },
        claim=claim,
        sentences=(headline(claim), *remarks(claim, found, differences, trainings)),
        differences=tuple(differences),
        temperatures={name: own.temperatures for name, own in found.items() if own.temperatures},
        costs=dict(costs),
        conditions=conditions,
        place=place,
        trainings=trainings,
        teachers_share=teachers_share,
        per_class=tuple(_classes(parts, pair, labels, names, family)),
        per_length=() if first.lengths is None else tuple(_lengths(parts, pair, labels, first.lengths[kept])),
        reliability={name: found[name].reliability for name in _drawn(found, claim.baseline)},
        accuracies={
            name: accuracy_interval(own.correct) for name, own in found.items() if not own.role.calibrated
        },
        disagreements=tuple(_disagreements(own[0], ensemble, texts, names, family)),
    )


def _differs_from_last(baselines: Sequence[Answers]) -> bool:
    """Whether all baselines have a best step, and it is not the last one everywhere."""
    logs = [answers.log_probs for answers in baselines]
    return all("best" in own for own in logs) and not all(
        np.array_equal(own["best"], own["last"]) for own in logs
    )


def better_baseline(found: Mapping[str, Measured], measure: str) -> str | None:
    """The fine-tuned student that is hardest to beat in a measure: most often right or of most macro-F1, or of least proper score.

    Picked on the rows of the report themselves, which favours the baseline.
    """
    # Temperatures change no answer.
    own = of_kind(found, "baseline", calibrated=measure not in SHARES)
    score = found[STUDENT].score
    if measure in SHARES:
        best = max(own, key=lambda one: (one.mean(measure), -one.mean(score)), default=None)
    else:
        best = min(
            sorted(own, key=lambda one: one.role.calibrated), key=lambda one: one.mean(measure), default=None
        )
    return None if best is None else best.name


def _best(systems: Sequence[Measured]) -> list[str]:
    """The name of the system that is right most often, the first of equals; nothing where there is none."""
    return [max(systems, key=lambda own: own.mean(own.measures[0])).name] if systems else []


def _differences(found: Mapping[str, Measured]) -> list[Difference]:
    """What the report compares: the student, as it is and calibrated, with the better baselines, then with others."""
    wanted: list[tuple[str, str, str | None]] = []
    for name in found[STUDENT].measures:
        baseline = better_baseline(found, name)
        wanted.append((name, STUDENT, baseline))
        if name not in SHARES:
            wanted.append((name, Role("student", calibrated=True).name, baseline))
    others = [own.name for own in (*of_kind(found, "given"), *of_kind(found, "single"))]
    teachers = of_kind(found, "teacher")
    others += [ENSEMBLE, *(_best(teachers) if len(teachers) > 1 else [])]
    wanted += [(name, STUDENT, other) for other in others for name in found[STUDENT].told]
    there = [own for own in wanted if own[1] in found and own[2] in found]
    return [
        gain_over(measure, (first, second), found[first], found[second])
        for measure, first, second in tqdm(there, desc="Comparing", leave=False)
    ]


def _claim(
    found: Mapping[str, Measured], differences: Sequence[Difference], costs: Mapping[str, Cost], rows: int
) -> Claim:
    student = found[STUDENT]
    first = student.measures[0]
    baseline = better_baseline(found, first)
    gain = next((d for d in differences if d.measure == first and d.second == baseline), None)
    ensemble = found[ENSEMBLE].mean(first) if ENSEMBLE in found else 0.0
    times = [costs[name].p50 if name in costs else None for name in (STUDENT, ENSEMBLE)]
    return Claim(
        accuracy=student.mean(first),
        spread=spread([float(values.mean()) for values in student.correct]),
        rows=rows,
        seeds=len(student.correct),
        baseline=baseline,
        gain=gain,
        keeps=student.mean(first) / ensemble if ensemble else None,
        teachers=len(of_kind(found, "teacher")),
        latency=times[0] / times[1] if times[0] and times[1] else None,
        measure=first,
    )


def _size(role: Role, sizes: Mapping[str, int], costs: Mapping[str, Cost]) -> int | None:
    return sizes.get(role.costs) or (costs[role.costs].parameters if role.costs in costs else None)


def _training(saved: SavedRows) -> Training:
    facts = saved.facts
    return Training(
        saved.part,
        int(saved.seed or 0),
        int(facts.get("steps", 0)),
        facts.get("seconds"),
        facts.get("best_step"),
        tuple(facts.get("log", ())),
    )


def group_of(
    name: str,
    inside: np.ndarray,
    systems: Mapping[str, Measured],
    pair: tuple[str, str] | None,
    *,
    paired_seeds: bool = True,
) -> Group:
    """What systems are worth on some of the labelled rows, which are judged by themselves.

    Args:
        name: Of the rows.
        inside: (n,) bool, which they are.
        systems: By what tables call them.
        pair: The one whose gain is of interest, and over which; None where there is no other.
        paired_seeds: As of `difference`.
    """
    right = {system: own.correct[:, inside] for system, own in systems.items()}
    accuracy = {system: float(values.mean()) if inside.any() else 0.0 for system, values in right.items()}
    if pair is None or not inside.any():
        return Group(name, int(inside.sum()), accuracy, None, {})
    gain = difference(
        systems[pair[0]].measures[0], pair, right[pair[0]], right[pair[1]], paired_seeds=paired_seeds
    )
    return Group(name, int(inside.sum()), accuracy, gain.value, {}, gain.beyond_chance, gain.p)


def corrected(groups: Sequence[Group]) -> list[Group]:
    """Groups of rows whose gains are beyond chance where they still are when corrected for how many groups there are (Holm).

    Groups of fewer rows than any claim needs do not count: nothing could be said of them whatever came out.

    Args:
        groups: As of `group_of`, each judged by itself.
    """
    made = list(groups)
    told = [i for i, group in enumerate(groups) if group.p is not None and group.rows >= LEAST_DIFFERENT]
    for i, p in zip(told, holm([groups[i].p for i in told]), strict=True):
        made[i] = groups[i]._replace(p=p, beyond_chance=groups[i].beyond_chance and p < ERROR)
    return made


def _classes(
    systems: Mapping[str, Measured],
    pair: tuple[str, str] | None,
    labels: np.ndarray,
    names: Sequence[str],
    family: Family,
) -> list[Group]:
    """Per class or label: the share of its rows that is right, and F1, which also counts rows wrongly given to it."""
    labelled = with_label(labels)
    truth, groups = labels[labelled], []
    for c, name in enumerate(names):
        inside = family.holds(truth, c)
        if inside is None:  # numbers hold nowhere
            continue
        f1 = {}
        for system, own in systems.items():
            answered = np.stack([family.holds(each[labelled], c) for each in own.predictions])
            hits, given = (answered & inside).sum(1), answered.sum(1) + inside.sum()
            f1[system] = float(np.mean(np.divide(2 * hits, given, where=given > 0, out=np.zeros(len(given)))))
        groups.append(group_of(name, inside, systems, pair)._replace(f1=f1))
    return corrected(groups)


def _lengths(
    systems: Mapping[str, Measured], pair: tuple[str, str] | None, labels: np.ndarray, lengths: np.ndarray
) -> list[Group]:
    """Quarters of the rows by how many tokens the student reads."""
    own = lengths[with_label(labels)]
    edges = np.unique(np.quantile(own, np.linspace(0, 1, _BUCKETS + 1), method="higher")).astype(int)
    lows = [edges[0], *(edges[1:-1] + 1)] if len(edges) > 1 else edges
    return corrected(
        [
            group_of(
                f"{low} to {high}" if low < high else f"{high}", (own >= low) & (own <= high), systems, pair
            )
            for low, high in zip(lows, edges[-len(lows) :], strict=True)
        ]
    )


def _drawn(found: Mapping[str, Measured], baseline: str | None) -> list[str]:
    """Whose reliability is drawn: student and better baseline, as they are and calibrated, ensemble, best teacher."""
    raw = [STUDENT] if baseline is None else [STUDENT, baseline]
    wanted = [name for own in raw for name in (own, found[own].role._replace(calibrated=True).name)]
    shown = [*wanted, ENSEMBLE, *_best(of_kind(found, "teacher"))]
    return [name for name in shown if name in found and found[name].reliability]


def _disagreements(
    answers: Answers,
    ensemble: np.ndarray | None,
    texts: Mapping[int, Sequence[str]] | None,
    names: Sequence[str],
    family: Family,
) -> list[Disagreement]:
    """The rows where the first seed's student is furthest from the ensemble."""
    if texts is None or ensemble is None:
        return []
    student = answers.log_probs[STUDENT]
    kl, known = family.apart(ensemble, student), with_label(answers.labels)
    rows, seen = [], set()
    for i in np.argsort(-kl, kind="stable"):
        row = int(answers.example_ids[i])
        if row in seen:
            continue
        seen.add(row)
        label = family.told_label(answers.labels[i], names) if known[i] else None
        pair = [family.told(v[i], names) for v in (ensemble, student)]
        text = shortened(" / ".join(texts.get(row, ("?",))), _TEXT)
        rows.append(Disagreement(text, label, *pair, kl=float(kl[i])))
        if len(rows) == _DISAGREEMENTS:
            break
    return rows

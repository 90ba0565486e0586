"""What each teacher is worth alone, how pairs of them differ, and which look broken.

Shapes: K teachers, N labelled rows, C classes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from sklearn.metrics import f1_score

from ...errors import DataError
from ...fusion import HeldOut, fit_temperature, memorised
from ...fusion.alignment import LabelMap, OutputMap
from ...tasks.row_scores import reliability_bins
from ..cost import Cost
from ..formats import number, percent
from ..metrics import brier_score, expected_calibration_error, negative_log_likelihood
from ..statistics import (
    above_guessing,
    common_errors,
    disagreement_matrix,
    label_permutation,
    paired_bootstrap,
    q_statistics,
)
from .numbers import PairFigures, TeacherFigures
from .rules import half

# z-score below which answers are not told from guessing: one teacher of a thousand that guess gets above it.
_Z = 3.09
# A renaming of labels is a strong claim: so many points of accuracy, beyond 1 chance in 1,000, and no mere guessing then.
_RENAMED_GAIN, _RENAMED_LEVEL, _RENAMED_Z = 0.05, 0.999, 4.0
_OVER_CONFIDENT = 2.0
# Of the way from equal probabilities to certainty: what a head of small random weights does not exceed.
_UNTRAINED = 0.2


class Suspicion(NamedTuple):
    """What is wrong with a teacher.

    Attributes:
        broken: Why it should not be used as it is; empty where nothing says so.
        remembers: Whether it was probably trained on the rows.
        warnings: Sentences for the report.
    """

    broken: str
    remembers: bool
    warnings: tuple[str, ...]


def teacher_figures(held: HeldOut, names: Sequence[str], costs: Mapping[str, Cost]) -> list[TeacherFigures]:
    """Each teacher alone.

    Args:
        held: Labelled rows.
        names: The teachers' names.
        costs: By name, where they are known.
    """
    labels, classes = held.labels.numpy(), held.logits.shape[-1]
    figures = []
    for k, name in enumerate(names):
        log_probs = torch.log_softmax(held.logits[k].double(), -1).numpy()
        predictions = log_probs.argmax(1)
        known = (
            np.ones(len(labels), bool)
            if held.mask is None
            else held.mask[k].numpy()[np.arange(len(labels)), labels]
        )
        soft, of_known = log_probs[known], labels[known]
        by_class = f1_score(labels, predictions, labels=range(classes), average=None, zero_division=0)
        finite = bool(np.isfinite(soft).any(1).all()) and known.any()
        figures.append(
            TeacherFigures(
                name=name,
                accuracy=float((predictions == labels).mean()),
                f1=float(f1_score(labels, predictions, average="macro", zero_division=0)),
                nll=negative_log_likelihood(soft, of_known) if finite else math.nan,
                brier=brier_score(soft, of_known) if finite else math.nan,
                ece=expected_calibration_error(soft, of_known) if finite else math.nan,
                temperature=_temperature(held, k),
                kappa=above_guessing(predictions, labels)[0],
                f1_by_class=tuple(
                    float(value) if present else None
                    for value, present in zip(by_class, np.bincount(labels, minlength=classes), strict=True)
                ),
                reliability=tuple(reliability_bins(soft, of_known)) if finite else (),
                cost=costs.get(name, Cost()),
            )
        )
    return figures


def _temperature(held: HeldOut, k: int) -> float | None:
    try:
        return fit_temperature(held.logits[k], held.labels, mask=None if held.mask is None else held.mask[k])
    except DataError:
        return None


def pair_figures(held: HeldOut, names: Sequence[str]) -> list[PairFigures]:
    """Every pair of teachers."""
    predictions, labels = held.logits.argmax(-1).numpy(), held.labels.numpy()
    apart, q = disagreement_matrix(predictions), q_statistics(predictions == labels)
    errors = common_errors(predictions, labels)
    return [
        PairFigures(
            names[i],
            names[j],
            *(float(1 - apart[i, j]), float(apart[i, j]), float(q[i, j])),
            *(float(errors.both_wrong[i, j]), float(errors.same_wrong[i, j])),
        )
        for i in range(len(names))
        for j in range(i + 1, len(names))
    ]


def twins(pairs: Sequence[PairFigures]) -> list[str]:
    """A sentence for each two teachers that answer alike on every row, also where they err."""
    return [
        f"Teachers {pair.first!r} and {pair.second!r} give the same answer on every row, also where it is wrong: they may "
        "be one checkpoint, which then counts twice. Keep one."
        for pair in pairs
        if pair.agreement == 1 and pair.both_wrong > 0
    ]


def suspicions(
    held: HeldOut,
    figures: Sequence[TeacherFigures],
    maps: Sequence[OutputMap],
    assumed: Sequence[str],
) -> dict[str, Suspicion]:
    """What is wrong with each teacher, as far as the rows show.

    Args:
        held: Labelled rows.
        figures: Of the teachers.
        maps: How their labels were matched.
        assumed: Names of teachers whose labels are placeholders, taken in order for want of better.
    """
    found = {}
    remembered = memorised(held, [own.name for own in figures])
    for k, (own, label_map) in enumerate(zip(figures, maps, strict=True)):
        who = f"Teacher {own.name!r}"
        broken, warnings = _broken(held, k, own, label_map)
        warnings = [f"{who} {text}" for text in warnings]
        warnings += [remembered[own.name]] if own.name in remembered else []
        if own.name in assumed:
            advice = (
                "which nothing on these rows supports. Training refuses them: give it labels=."
                if broken
                else "which the rows support. Training refuses them: give it labels=, as in the lines to paste."
            )
            warnings.append(
                f"{who} has placeholders for labels (LABEL_0, …); this audit took them in the order of yours, {advice}"
            )
        if label_map.missing:
            warnings.append(
                f"{who} lacks the classes {', '.join(label_map.missing)}: its NLL, Brier, ECE and temperature are those "
                "on rows of its own classes, accuracy and F1 those on all."
            )
        found[own.name] = Suspicion(broken, own.name in remembered, tuple(warnings))
    return found


def _broken(held: HeldOut, k: int, own: TeacherFigures, label_map: OutputMap) -> tuple[str, list[str]]:
    """Why a teacher should not be used as it is, if so, and what speaks against it, without its name."""
    known = held.logits[k] if held.mask is None else held.logits[k][held.mask[k]]
    if not bool(torch.isfinite(known).all()):
        return "its outputs are not finite", [
            "gives outputs that are not finite: find out on which rows, or drop it."
        ]
    predictions, labels = held.logits[k].argmax(-1).numpy(), held.labels.numpy()
    permuted = _better_names(held, predictions, label_map) if label_map.named else None
    if permuted is not None:
        right, names = permuted
        listed = ", ".join(json.dumps(name, ensure_ascii=False) for name in names)
        return (
            f"its labels are named wrongly; corrected, it is right on {percent(right)} % of the rows: see the warning",
            [
                f"is right on {percent(own.accuracy)} % of the rows, and on {percent(right)} % if its labels are renamed: in the "
                f"order of its outputs, labels: [{listed}]. Check that against the checkpoint's card, put it into the recipe, "
                "and audit again."
            ],
        )
    uncertain = _certainty(own, len(label_map.student_labels) - len(label_map.missing)) < _UNTRAINED
    # Answers that say nothing call for an endless temperature too, and are anything but sure of themselves.
    broken, warnings, hot = "", [], (own.temperature or 0.0) > _OVER_CONFIDENT and not uncertain
    if (z := above_guessing(predictions, labels)[1]) < _Z:
        broken = "it answers no better than guessing would"
        warnings.append(
            f"answers no better than guessing would: accuracy {percent(own.accuracy)} %, Cohen's kappa "
            f"{number(own.kappa, 2, sign='+')}, {number(z, 1, sign='+')} standard errors from 0."
        )
    if uncertain and broken:
        warnings.append(
            "gives all classes nearly the same probability, so its head looks untrained: fine-tune it, or name the "
            "fine-tuned checkpoint."
        )
    if hot:
        warnings.append(
            f"is over-confident: the temperature that calibrates it is {own.temperature:.1f}"
            f"{', the highest tried' if own.temperature > 99 else ''}. In an unfitted log_pool, which is the mean of "
            "logits, it drowns out the others."
        )
    return broken, warnings


def _certainty(own: TeacherFigures, classes: int) -> float:
    """The mean confidence in the predicted class: 0 where all have the same probability, 1 where one has all of it."""
    rows = sum(part.rows for part in own.reliability)
    if not rows or classes < 2:
        return 1.0
    mean = sum(part.confidence * part.rows for part in own.reliability) / rows
    return (mean - 1 / classes) / (1 - 1 / classes)


def _better_names(
    held: HeldOut, predictions: np.ndarray, label_map: LabelMap
) -> tuple[float, tuple[str, ...]] | None:
    """The teacher's labels renamed, and its accuracy then, if a renaming found on either half holds on the other."""
    labels, count = held.labels.numpy(), len(label_map.student_labels)
    first = half(held).numpy()
    if first.all() or not first.any():
        return None
    renamed = np.empty_like(predictions)
    for rest in (first, ~first):
        found = label_permutation(predictions[~rest], labels[~rest], count)
        renamed[rest] = np.array(found.classes)[predictions[rest]]
    gain = paired_bootstrap(renamed == labels, predictions == labels, level=_RENAMED_LEVEL)
    above = above_guessing(renamed, labels)[1] >= _RENAMED_Z
    if gain.value < _RENAMED_GAIN or not gain.beyond_chance or not above:
        return None
    found = label_permutation(predictions, labels, count)
    names = list(label_map.teacher_labels)
    for c, renamed_class in enumerate(found.classes):
        column = label_map.columns[c]
        if column is not None:
            names[column] = label_map.student_labels[renamed_class]
    return found.accuracy, tuple(names)

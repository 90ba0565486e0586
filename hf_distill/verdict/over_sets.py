"""One recipe on several data sets: what distillation gains on average over sets, and on how many it wins.

Shapes: D data sets.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t, wilcoxon

from ..errors import DataError
from ..evaluation.document import Document, Section, write_files
from ..evaluation.formats import as_json, interval, number, signed_points, tells
from ..evaluation.statistics import Difference, Interval
from .comparing import own_differences, short_names
from .comparison import HTML, JSON, MARKDOWN, PICTURE_FILES
from .finding import FoundRun, find_run

SETS_VERSION = 1
"""Of the comparison.json of runs over data sets; raised whenever a key changes its meaning or goes away."""


class JudgedSet(NamedTuple):
    """One data set, with the run on it.

    Attributes:
        name: What tables call it: the run's folder.
        folder: Where the run lies.
        rows: On how many labelled rows its student was judged.
        seeds: Of student and baseline.
        gain: In accuracy, the student over its own baseline that is hardest to beat.
        nll: The same in NLL.
    """

    name: str
    folder: str
    rows: int
    seeds: tuple[int, ...]
    gain: Difference
    nll: Difference


@dataclass(frozen=True)
class SetComparison:
    """What distillation gained on several data sets; ``str()`` is the table.

    Attributes:
        sets: One run each.
        gain: Mean over the sets of the gain in accuracy, each set counting alike, with its interval over sets.
        nll: The same of NLL, where less is better.
        wins, ties, losses: Sets where the gain in accuracy is beyond chance, is not, or is a loss beyond chance. Of a run of
            one seed, nothing is beyond chance.
        above: Sets whose gain is above zero, whatever chance has to do with it.
        wilcoxon: p of the signed-rank test of the gains in accuracy.
        sentences: What came of it, the sentence to quote first.

    Reference:
        Demšar: Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 7, 2006.
    """

    sets: tuple[JudgedSet, ...]
    gain: Interval
    nll: Interval
    wins: int
    ties: int
    losses: int
    above: int
    wilcoxon: float
    sentences: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and texts, as in comparison.json; a number that is not finite is None."""
        content = {"version": SETS_VERSION, "verdict": self.sentences[0], **vars(self)}
        return as_json(content)

    def __str__(self) -> str:
        """What a terminal shows: what came of it first; the files have the rest."""
        return self.document().text()

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write comparison.json, comparison.md and comparison.html, which needs no other file.

        Args:
            folder: Made if missing.

        Returns:
            The path of comparison.html.
        """
        write_files(folder, self.document().files(JSON, MARKDOWN, self.to_dict()), PICTURE_FILES)
        return Path(folder, HTML)

    def document(self) -> Document:
        """What it says."""
        return Document(
            kind="Comparison over data sets",
            window=f"Comparison over {len(self.sets)} data sets",
            head=f"{len(self.sets)} runs, each on a data set of its own",
            advice=self.sentences[0],
            about=[
                (own.name, f"{own.rows:,} rows, seeds {', '.join(map(str, own.seeds))}: {own.folder}")
                for own in self.sets
            ],
            outcome="gain" if self.gain.low > 0 else "loss" if self.gain.high < 0 else "no",
            sentences=self.sentences,
            sections=[self._glance(), self._table()],
            pictures=[],
            notes=[],
            page=HTML,
        )

    def _glance(self) -> Section:
        rows = [
            [own.name, f"{own.rows:,}", _cells(own.gain.value, points=True)[0], outcome(own)]
            for own in self.sets
        ]
        rows.append(["mean over sets", "", _cells(self.gain, points=True)[0], ""])
        return Section("At a glance", ["data set", "rows", "gain, points", "beyond chance"], rows)

    def _table(self) -> Section:
        rows = [
            [
                own.name,
                f"{own.rows:,}",
                ", ".join(map(str, own.seeds)),
                own.gain.second,
                *_cells(own.gain.value, points=True),
                outcome(own),
                *_cells(own.nll.value, points=False),
            ]
            for own in self.sets
        ]
        rows.append(
            [
                "mean over sets",
                "",
                "",
                "",
                *_cells(self.gain, points=True),
                "",
                *_cells(self.nll, points=False),
            ]
        )
        header = [
            "data set", "rows", "seeds", "baseline", "gain, points", "95 % interval", "beyond chance", "NLL", "95 % interval",
        ]  # fmt: skip
        note = (
            "Gain: student minus its own baseline that is hardest to beat, over rows and seeds of the set. The mean counts every "
            "set alike; its interval is Student's t over sets, which are what the recipe is judged by."
        )
        return Section("Gains", header, rows, note, words=4)


def outcome(own: JudgedSet) -> str:
    """``win``, ``loss`` or ``tie``: what a set says beyond chance, which with one seed is nothing."""
    if len(own.seeds) == 1:
        return "tie"
    return "win" if own.gain.better else "loss" if own.gain.worse else "tie"


def of_several_sets(runs: Sequence[FoundRun]) -> bool:
    """Whether runs are of data sets that have no row in common, and are not just other splits of one; each with a baseline.

    Args:
        runs: As they were found.
    """
    answers = [run.students[0] for run in runs]
    return all(run.baselines for run in runs) and all(
        not np.isin(a.rows.example_ids, b.rows.example_ids).any()
        and (a.split == b.split or set(a.label_names) != set(b.label_names))
        for a, b in itertools.combinations(answers, 2)
    )


def compare_sets(runs: Sequence[str | os.PathLike[str]]) -> SetComparison:
    """Judge a recipe over data sets: what each run's student gains over its own fine-tuning, and that on average.

    Args:
        runs: Output folders of `hf-distill train` with a verdict, each on another data set; at least two.

    Raises:
        DataError: A run has no rows or no baseline, or two are of the same data.
        CorruptStateError: One of their files cannot be read.
    """
    return over_sets([find_run(run) for run in runs])


def over_sets(runs: Sequence[FoundRun]) -> SetComparison:
    """`compare_sets` of runs that were found.

    Args:
        runs: Each on another data set.
    """
    if lacking := next((run for run in runs if not run.baselines), None):
        raise DataError(f"{lacking.folder} has no fine-tuned student to be compared with: leave it out.")
    if len(runs) < 2 or not of_several_sets(runs):
        named = ", ".join(str(run.folder) for run in runs)
        raise DataError(
            f"A mean over data sets needs one run on each of at least two, but these have rows in common or are one: {named}."
        )
    judged = []
    for name, run in zip(short_names([run.folder for run in runs]), runs, strict=True):
        rows, differences = own_differences(name, run)
        seeds = tuple(int(saved.seed or 0) for saved in run.students)
        judged.append(JudgedSet(name, str(run.folder), rows, seeds, *differences))
    gains = np.array([own.gain.value.value for own in judged])
    outcomes = [outcome(own) for own in judged]
    made = {
        "gain": _mean(gains),
        "nll": _mean(np.array([own.nll.value.value for own in judged])),
        "wins": outcomes.count("win"),
        "ties": outcomes.count("tie"),
        "losses": outcomes.count("loss"),
        "above": int((gains > 0).sum()),
        "wilcoxon": float(wilcoxon(gains).pvalue) if gains.any() else 1.0,
    }
    return SetComparison(sets=tuple(judged), **made, sentences=_sentences(judged, **made))


def _mean(values: np.ndarray) -> Interval:
    """Over sets, with its t interval."""
    width = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    if not math.isfinite(width):
        return Interval(float(values.mean()), math.nan, math.nan)
    return Interval(float(values.mean()), float(values.mean() - width), float(values.mean() + width))


def _sentences(
    judged: Sequence[JudgedSet], *, gain: Interval, wins: int, ties: int, losses: int, above: int,
    wilcoxon: float, nll: Interval,
) -> tuple[str, ...]:  # fmt: skip
    count = len(judged)
    what = (
        "beyond chance"
        if gain.low > 0
        else "a loss beyond chance"
        if gain.high < 0
        else "not beyond chance over so many sets"
    )
    sentences = [
        f"Over {count} data sets distillation gained {signed_points(gain)[0]} points of accuracy over fine-tuning on average "
        f"({interval(gain)} over sets), {what}: {wins} wins, {ties} ties, {losses} losses.",
        f"The gain is above zero on {above} of {count} sets; Wilcoxon's signed-rank test over sets: p = {wilcoxon:.2g}"
        + (", which with fewer than six sets cannot be below 0.05." if count < 6 else "."),
    ]
    alone = [own.name for own in judged if len(own.seeds) == 1]
    if alone:
        sentences.append(
            f"Of one seed, and so a tie whatever came out: {', '.join(alone)}; evaluation.seeds=3 keeps what is trained."
        )
    return tuple(sentences)


def _cells(value: Interval, *, points: bool) -> list[str]:
    own = signed_points(value) if points else [number(part, sign="+") for part in value]
    mute = points and math.isfinite(value.high - value.low) and not tells(value)
    return [own[0], "says nothing" if mute else f"{own[1]} to {own[2]}"]

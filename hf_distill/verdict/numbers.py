"""What a verdict found, as numbers. Accuracies are shares of one, times are seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..evaluation.statistics import Difference, Interval

TRAINED = {"student": "distilled", "baseline": "fine-tuned", "single": "distilled from one teacher"}
"""What tables and figures call a training, by its part."""


class About(NamedTuple):
    """What was run, for whoever was not there.

    Attributes:
        run: Its folder's name.
        command: What repeats it.
        date: When it was judged, as YEAR-MONTH-DAY.
        data: The data set's id, or the names of its files.
        trained_rows, labelled_rows: How many rows the student was trained on, and how many of them have a label.
        student: Its class.
        base: What it started from; empty: from scratch.
        parameters: How many it has.
        teachers: Name and class of each.
        version: Of this package.
    """

    run: str
    command: str
    date: str
    data: str
    trained_rows: int
    labelled_rows: int
    student: str
    base: str
    parameters: int
    teachers: tuple[tuple[str, str], ...]
    version: str


class Training(NamedTuple):
    """One training, and how it went.

    Attributes:
        part: ``student``, ``baseline`` or ``single``.
        seed: Its seed.
        steps: Optimizer steps.
        seconds: How long it took; None where nothing says.
        best_step: After which step the validation rows liked it best; None where they were not asked.
        log: The entries of the trainer's log.
    """

    part: str
    seed: int
    steps: int
    seconds: float | None
    best_step: int | None
    log: tuple[Mapping[str, Any], ...]


class Claim(NamedTuple):
    """What the verdict says of the student's accuracy.

    Attributes:
        accuracy: The student's, a mean over seeds.
        spread: Its standard deviation over seeds; None for one seed.
        rows: On how many labelled rows.
        seeds: How many trainings.
        baseline: The better of the baselines; None where there is none.
        gain: The student over it; of one seed, this student over this baseline.
        keeps: The student's accuracy as a share of the ensemble's; None where that is 0.
        teachers: How many made the ensemble.
        latency: The student's median latency as a share of the ensemble's; None where it was not measured.
        measure: What the accuracy is called: of numbers, ``within``, the share within the task's tolerance.
    """

    accuracy: float
    spread: float | None
    rows: int
    seeds: int
    baseline: str | None
    gain: Difference | None
    keeps: float | None
    teachers: int
    latency: float | None
    measure: str = "accuracy"

    @property
    def outcome(self) -> str:
        """``gain``, ``loss``, ``no difference`` beyond chance, ``no baseline``, or ``one seed``, which says nothing of gains."""
        if self.gain is None:
            return "no baseline"
        if self.seeds == 1:
            return "one seed"
        return "gain" if self.gain.better else "loss" if self.gain.worse else "no difference"


class Group(NamedTuple):
    """Some of the rows: those of a class, or those within a range of lengths.

    Attributes:
        name: Of the class, or the range in tokens.
        rows: How many labelled ones.
        accuracy: Share of them that each system gets right, over all seeds.
        gain: The student over the better baseline, None where there is none.
        f1: Of a class, by system; empty for lengths.
        beyond_chance: Whether the gain is, corrected for the number of classes, or of ranges (Holm).
        p: Of the gain, corrected likewise; None where there is none.
    """

    name: str
    rows: int
    accuracy: Mapping[str, float]
    gain: Interval | None
    f1: Mapping[str, float]
    beyond_chance: bool = False
    p: float | None = None


class Disagreement(NamedTuple):
    """A row where student and ensemble differ much.

    Attributes:
        text: Of the row, shortened.
        label: Its class; None where it has none.
        ensemble, student: First answer and its probability.
        kl: KL(ensemble ‖ student) in nats.
    """

    text: str
    label: str | None
    ensemble: tuple[str, float]
    student: tuple[str, float]
    kl: float


class Export(NamedTuple):
    """What was measured later of the exported student, in words.

    Attributes:
        sentence: What it is worth and what it saves.
        conditions: When and beside what it was timed.
        notes: Why its latency does not compare with those of other systems.
    """

    sentence: str
    conditions: str
    notes: tuple[str, ...]

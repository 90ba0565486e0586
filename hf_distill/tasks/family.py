"""How predictions are distributed, and what follows from that alone: one family per file, and a table.

Shapes: K teachers, N prediction units, C outputs of a head. *Said* is what `Task.log_probs` makes of logits: log-probabilities
of one class of several; log-odds of labels that each hold or not; numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from ..fusion import FusionRule, HeldOut
from ..fusion.alignment import LabelMap, OutputMap
from .row_scores import ReliabilityBin


class Family(Protocol):
    """What tasks share whose predictions are distributed alike.

    Attributes:
        name: What tasks call it.
        measures: What paired tests compare, row by row: first the share that is right (`Task.right`).
        proper: That of the measures which is a proper score, and by which temperatures are fitted.
        always: The metrics that every verdict reports, besides those asked for.
        compared: The metrics that a comparison of runs begins with.
        searched: The metric that a search chooses by; less of it is better.
        chosen_by: The metric of the validation rows that says which step is best, and whether more of it is better.
        prefix: Before the names of pools of choices (`linear_pool`, `log_pool`), what makes them pools of these predictions.
        pooled: The plain mean of what systems say (a name of `ALL_FUSIONS`), for the student together with its teachers.
        auto: What the fusion ``auto`` means.
        output: What one output of a head is called, and what several are.
        distance: What `apart` is called in a table's head, and in a sentence.
        converts: Of teachers of which other families the outputs can be converted, and the conversion that does it, by its `planned`.
        has_classes: Whether outputs are classes or labels, which can be weighed against each other; numbers cannot.
        row_weights: Whether rows can be weighed by how sure or how much at one distributions are, see `ROW_WEIGHTS`.
        learns: What the task loss is, in words.
        held_out_config: What labelled held-out rows say for the config of the finished student, ``f(said, labels) -> {key: value}``;
            None where they say nothing.
        explained: What a reader of a table must know of the metrics.
    """

    name: str
    measures: tuple[str, ...]
    proper: str
    always: tuple[str, ...]
    compared: tuple[str, ...]
    searched: str
    chosen_by: tuple[str, bool]
    prefix: str
    pooled: str
    auto: FusionRule
    output: tuple[str, str]
    distance: tuple[str, str]
    converts: Mapping[str, type]
    has_classes: bool
    row_weights: bool
    learns: str
    held_out_config: Callable[[np.ndarray, np.ndarray], dict[str, Any]] | None
    explained: str

    def match(self, teacher_labels: Sequence[str], student_labels: Sequence[str], teacher: str) -> LabelMap:
        """Where each of the student's outputs stands among a teacher's.

        Args:
            teacher_labels: In the order of its logits.
            student_labels: In the order of the student's.
            teacher: The teacher's name, for messages.

        Raises:
            DataError: They cannot be matched.
        """

    def refuse_gaps(self, maps: Sequence[OutputMap], weights: Sequence[float] | None) -> None:
        """Refuse teachers that together leave open what the target is.

        Args:
            maps: Of the teachers that are heard.
            weights: The fusion's; None where the user gave none.

        Raises:
            DataError: It is so.
        """

    def mix_in_labels(self, target: Tensor, labels: Tensor, share: float) -> Tensor:
        """A target (N, C) in which the labels have a share λ: λ y + (1 − λ) p on labelled units, p on the others."""

    def disagreement(
        self,
        teacher_logits: Tensor,
        *,
        temperature: float = 1.0,
        weights: Sequence[float] | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """(N,) how far teachers (K, N, C) are from their own mean, as `teacher_disagreement`."""

    def unlabelled(self, outputs: int) -> Any:
        """What a batch holds of a unit without a label, of a head with so many outputs."""

    def predictions(self, said: np.ndarray) -> np.ndarray:
        """What is answered: (N,) classes, (N, C) 0 or 1, or (N, C) numbers."""

    def probabilities(self, said: np.ndarray) -> np.ndarray:
        """(N, C) what users are told of each output."""

    def truth(self, labels: np.ndarray) -> np.ndarray:
        """Labels of labelled units as metrics take them: of probabilities, the most likely answer."""

    def scores(self, said: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, ...]:
        """(n,) each of the measures but the first, of labelled units."""

    def holds(self, answers: np.ndarray, output: int) -> np.ndarray | None:
        """(n,) bool, where answers (predictions or labels) say that an output is so; None where outputs are numbers."""

    def balanced(self, labels: np.ndarray, outputs: int) -> np.ndarray:
        """(C,) weights under which rare classes count as much as frequent ones, from labelled units."""

    def of_fits(self, labels: Tensor) -> Tensor:
        """Labels as fits, fusions and losses read them: of probabilities the most likely answer; -100 or NaN where there is none."""

    def as_choices(self, held: HeldOut) -> HeldOut | None:
        """Held-out rows as units each of which is one class of several, for what compares such; None where there is no such view."""

    def reliability(self, said: np.ndarray, labels: np.ndarray) -> list[ReliabilityBin]:
        """Confidence against accuracy; empty where there is no confidence."""

    def temperature(self, said: np.ndarray, labels: np.ndarray) -> float | None:
        """The temperature that fits labelled units; None where a temperature means nothing."""

    def tempered(self, said: np.ndarray, temperature: float) -> np.ndarray:
        """(N, C) what is said at a temperature."""

    def apart(self, reference: np.ndarray, said: np.ndarray) -> np.ndarray:
        """(N,) how far what is said is from what a reference says."""

    def told(self, said: np.ndarray, names: Sequence[str]) -> tuple[str, float]:
        """What is answered to one unit (C,), in a word, and a number: how sure, or the answer itself."""

    def told_label(self, label: np.ndarray, names: Sequence[str]) -> str:
        """One unit's label in a word."""

    def one_sided(self, labels: np.ndarray, names: Sequence[str]) -> str:
        """What all labels (n,) of some units have in common, so that nothing can be learnt from them, as half a sentence."""

"""Numbers: a prediction is what is expected, and errors are squared.

Shapes: K teachers, N prediction units, C numbers per unit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..fusion import AutoGaussian, FusionRule, HeldOut
from ..fusion.alignment import LabelMap, OutputMap
from ..fusion.conversion import ClassMeans
from ..fusion.shares import checked_weights, heard
from .row_scores import ReliabilityBin


@dataclass(frozen=True)
class Gaussian:
    """The family ``gaussian``; see `Family` for what each attribute and method means.

    Example:
        >>> Gaussian().scores(np.array([[1.0]]), np.array([[3.0]]))
        (array([4.]), array([2.]))
    """

    name: str = "gaussian"
    measures: tuple[str, ...] = ("within", "squared_error", "absolute_error")
    proper: str = "squared_error"
    always: tuple[str, ...] = ("pearson", "spearman", "mse", "mae", "correlation_with_ensemble")
    compared: tuple[str, ...] = ("pearson", "spearman")
    searched: str = "mse"
    chosen_by: tuple[str, bool] = ("mse", False)
    prefix: str = ""
    pooled: str = "gaussian_pool"
    auto: FusionRule = AutoGaussian()
    output: tuple[str, str] = ("score", "scores")
    distance: tuple[str, str] = ("apart", "squared difference in the row, summed over the scores")
    converts: Mapping[str, type] = field(default_factory=lambda: {"categorical": ClassMeans})
    has_classes: bool = False
    row_weights: bool = False
    learns: str = "squared error against the labels"
    held_out_config: Callable[..., dict[str, Any]] | None = None
    explained: str = (
        "within: share of rows whose error is at most the task's tolerance; pearson and spearman are means over the outputs; mse and mae in "
        "the units of the label; correlation_with_ensemble: Pearson's, with what the ensemble says."
    )

    def match(self, teacher_labels: Sequence[str], student_labels: Sequence[str], teacher: str) -> LabelMap:
        """One number is the other whatever it is called; several are matched by name, all of them."""
        theirs, ours = tuple(teacher_labels), tuple(student_labels)
        if len(theirs) == len(ours) == 1:
            return LabelMap(teacher, theirs, ours, (0,))
        found = LabelMap.match(theirs, ours, teacher=teacher, least=1)
        if found.missing:
            raise DataError(
                f"Teacher {teacher!r}: it gives no {found.missing[0]!r}, only {list(theirs)}, and a mean of numbers needs all of them: "
                "leave the output or the teacher out, or name its outputs with labels=."
            )
        return found

    def refuse_gaps(self, maps: Sequence[OutputMap], weights: Sequence[float] | None) -> None:
        """Nothing: each teacher gives all numbers."""

    def mix_in_labels(self, target: Tensor, labels: Tensor, share: float) -> Tensor:
        """The weighted mean of both."""
        return torch.where(
            labels == labels, share * labels.nan_to_num(0.0).to(target.dtype) + (1 - share) * target, target
        )

    def disagreement(
        self,
        teacher_logits: Tensor,
        *,
        temperature: float = 1.0,
        weights: Sequence[float] | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Σ_outputs Σ_k w_k (f_k − f̄)²; a number has no temperature."""
        shares, values, _ = heard(checked_weights(weights), None, teacher_logits, mask)
        share = (shares / shares.sum(0))[..., None]
        return (share * (values - (share * values).sum(0)).square()).sum((0, -1))

    def unlabelled(self, outputs: int) -> list[float]:
        """NaN for each number."""
        return [float("nan")] * outputs

    def predictions(self, said: np.ndarray) -> np.ndarray:
        """The numbers."""
        return said

    def probabilities(self, said: np.ndarray) -> np.ndarray:
        """The numbers: nobody is asked how sure they are."""
        return said

    def truth(self, labels: np.ndarray) -> np.ndarray:
        """The numbers."""
        return np.asarray(labels, np.float64)

    def scores(self, said: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, ...]:
        """The squared and the absolute error, summed over the outputs."""
        errors = np.asarray(said, np.float64) - labels
        return np.square(errors).sum(1), np.abs(errors).sum(1)

    def holds(self, answers: np.ndarray, output: int) -> None:
        """Numbers are not true or false."""

    def balanced(self, labels: np.ndarray, outputs: int) -> np.ndarray:
        """Ones: numbers have no classes."""
        return np.ones(outputs)

    def of_fits(self, labels: Tensor) -> Tensor:
        """As they are."""
        return labels

    def as_choices(self, held: HeldOut) -> HeldOut | None:
        """None: a number is no choice."""
        return None

    def reliability(self, said: np.ndarray, labels: np.ndarray) -> list[ReliabilityBin]:
        """None."""
        return []

    def temperature(self, said: np.ndarray, labels: np.ndarray) -> None:
        """None."""

    def tempered(self, said: np.ndarray, temperature: float) -> np.ndarray:
        """As it was."""
        return said

    def apart(self, reference: np.ndarray, said: np.ndarray) -> np.ndarray:
        """The squared difference, summed over the outputs."""
        return np.square(np.asarray(reference, np.float64) - said).sum(1)

    def told(self, said: np.ndarray, names: Sequence[str]) -> tuple[str, float]:
        """The first number; of several, all of them in words."""
        return "" if len(said) == 1 else self.told_label(said, names), float(said[0])

    def told_label(self, label: np.ndarray, names: Sequence[str]) -> str:
        """The numbers."""
        return (
            ", ".join(f"{name} {value:.3g}" for name, value in zip(names, label, strict=True))
            if len(label) > 1
            else f"{label[0]:.3g}"
        )

    def one_sided(self, labels: np.ndarray, names: Sequence[str]) -> str:
        """Whether all are alike."""
        return f"are {self.told_label(labels[0], names)}" if (labels == labels[:1]).all() else ""

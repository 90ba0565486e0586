"""One of several classes: predictions are distributions over them.

Shapes: K teachers, N prediction units, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..fusion import AutoFusion, FusionRule, HeldOut, fit_temperature, teacher_disagreement
from ..fusion.alignment import UNLABELLED, LabelMap, OutputMap, check_coverage
from ..fusion.conversion import ScoreBins
from ..fusion.targets import mix_in_labels
from .row_scores import ReliabilityBin, brier_rows, f1_values, kl_rows, nll_rows, reliability_bins


@dataclass(frozen=True)
class Categorical:
    """The family ``categorical``; see `Family` for what each attribute and method means.

    Example:
        >>> Categorical().predictions(np.log([[0.3, 0.7]]))
        array([1])
    """

    name: str = "categorical"
    measures: tuple[str, ...] = ("accuracy", "f1", "nll", "brier")
    proper: str = "nll"
    always: tuple[str, ...] = ("accuracy", "nll", "brier", "ece", "agreement", "kl_to_ensemble")
    compared: tuple[str, ...] = ("accuracy", "f1")
    searched: str = "nll"
    chosen_by: tuple[str, bool] = ("accuracy", True)
    prefix: str = ""
    pooled: str = "linear_pool"
    auto: FusionRule = AutoFusion()
    output: tuple[str, str] = ("class", "classes")
    distance: tuple[str, str] = ("KL", "KL(ensemble ‖ student) of the row, in nats")
    converts: Mapping[str, type] = field(default_factory=lambda: {"gaussian": ScoreBins})
    has_classes: bool = True
    row_weights: bool = True
    learns: str = "cross-entropy with the labels"
    held_out_config: Callable[..., dict[str, Any]] | None = None
    explained: str = (
        "The Brier score is summed over the classes; the calibration error has 15 bins; agreement is with the ensemble's "
        "first answer, divergence KL(ensemble ‖ system)."
    )

    def match(self, teacher_labels: Sequence[str], student_labels: Sequence[str], teacher: str) -> LabelMap:
        """By name; at least two classes."""
        return LabelMap.match(teacher_labels, student_labels, teacher=teacher)

    def refuse_gaps(self, maps: Sequence[OutputMap], weights: Sequence[float] | None) -> None:
        """Groups of classes without a shared one leave open how probable one group is against another."""
        check_coverage(maps, weights)

    def mix_in_labels(self, target: Tensor, labels: Tensor, share: float) -> Tensor:
        """See `hf_distill.fusion.targets.mix_in_labels`; a label may be a distribution (N, C)."""
        if labels.ndim == 1:
            return mix_in_labels(target, labels, share)
        known = (labels == labels).all(-1, keepdim=True)
        mixed = (1 - share) * target.exp() + share * labels.nan_to_num(0.0).to(target.dtype)
        return torch.where(known, mixed.log(), target)

    def disagreement(
        self,
        teacher_logits: Tensor,
        *,
        temperature: float = 1.0,
        weights: Sequence[float] | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """See `teacher_disagreement`."""
        return teacher_disagreement(teacher_logits, temperature=temperature, weights=weights, mask=mask)

    def unlabelled(self, outputs: int) -> int:
        """-100."""
        return UNLABELLED

    def predictions(self, said: np.ndarray) -> np.ndarray:
        """The most likely class."""
        return said.argmax(1)

    def probabilities(self, said: np.ndarray) -> np.ndarray:
        """Of each class."""
        return np.exp(said)

    def truth(self, labels: np.ndarray) -> np.ndarray:
        """Class ids; of distributions, the most likely class."""
        return labels if labels.ndim == 1 else labels.argmax(1)

    def scores(self, said: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, ...]:
        """Macro-F1 by jackknife, −ln p(label), and Σ_c (p_c − [c = label])²."""
        classes = self.truth(labels)
        f1 = f1_values(said.argmax(1), classes, said.shape[1])
        return f1, nll_rows(said, classes), brier_rows(said, classes)

    def holds(self, answers: np.ndarray, output: int) -> np.ndarray:
        """Where the class is the answer."""
        return self.truth(answers) == output

    def balanced(self, labels: np.ndarray, outputs: int) -> np.ndarray:
        """n / (C n_c), a mean of one over the rows; 0 for a class without rows."""
        counts = np.bincount(self.truth(labels), minlength=outputs)
        return np.divide(len(labels), outputs * counts, out=np.zeros(outputs), where=counts > 0)

    def of_fits(self, labels: Tensor) -> Tensor:
        """Class ids."""
        if labels.ndim == 1:
            return labels
        known = (labels == labels).all(-1)
        return torch.where(known, labels.nan_to_num(0.0).argmax(-1), UNLABELLED)

    def as_choices(self, held: HeldOut) -> HeldOut | None:
        """As they are."""
        return held

    def reliability(self, said: np.ndarray, labels: np.ndarray) -> list[ReliabilityBin]:
        """Of the most likely class."""
        return reliability_bins(said, self.truth(labels))

    def temperature(self, said: np.ndarray, labels: np.ndarray) -> float | None:
        """See `fit_temperature`."""
        return fit_temperature(torch.from_numpy(said), torch.from_numpy(self.truth(labels).astype(np.int64)))

    def tempered(self, said: np.ndarray, temperature: float) -> np.ndarray:
        """The softmax of what is said, divided by the temperature."""
        return torch.log_softmax(torch.from_numpy(said) / temperature, -1).numpy()

    def apart(self, reference: np.ndarray, said: np.ndarray) -> np.ndarray:
        """KL(reference ‖ said) in nats."""
        return kl_rows(reference, said)

    def told(self, said: np.ndarray, names: Sequence[str]) -> tuple[str, float]:
        """The most likely class and its probability."""
        return names[int(said.argmax())], float(np.exp(said.max()))

    def told_label(self, label: np.ndarray, names: Sequence[str]) -> str:
        """The class."""
        return names[int(label if np.ndim(label) == 0 else np.argmax(label))]

    def one_sided(self, labels: np.ndarray, names: Sequence[str]) -> str:
        """Whether all are of one class."""
        classes = np.unique(self.truth(labels))
        return f"are of one class, {names[int(classes[0])]!r}" if len(classes) == 1 else ""

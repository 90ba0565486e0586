"""Labels that each hold or not: predictions are log-odds, one per label.

Shapes: K teachers, N prediction units, C labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..fusion import AutoBernoulli, FusionRule, HeldOut
from ..fusion.alignment import UNLABELLED, LabelMap, OutputMap
from ..fusion.fitting import minimise
from ..fusion.shares import checked_weights, heard
from .row_scores import ReliabilityBin, label_f1_values

_BINS = 15


def fitted_thresholds(said: np.ndarray, labels: np.ndarray) -> tuple[float, ...]:
    """For each label the probability from which on it is answered that gives the best F1 on held-out rows.

    Args:
        said: (n, C) log-odds.
        labels: (n, C) 0 or 1, or probabilities, of labelled rows.

    Returns:
        C probabilities in (0, 1): half-way between the two rows' that the best cut lies between; one half where no row has the
        label, or where no other does better.

    Reference:
        Lipton, Elkan, Naryanaswamy: Optimal Thresholding of Classifiers to Maximize F1 Measure, ECML 2014, arXiv:1402.1892.

    Example:
        >>> fitted_thresholds(np.array([[-3.0], [-1.0], [-2.0]]), np.array([[0], [1], [0]]))
        (0.194072,)
    """
    found = []
    for z, truth in zip(np.asarray(said, np.float64).T, np.asarray(labels).T, strict=True):
        sure, held = 1 / (1 + np.exp(-z)), truth > 0.5
        best, at_half = 0.5, _f1(sure > 0.5, held)
        if held.any():
            order = np.argsort(-sure, kind="stable")
            ranked = sure[order]
            hits, given = np.cumsum(held[order]), np.arange(1, len(ranked) + 1)
            f1 = 2 * hits / (given + held.sum())
            cuts = np.flatnonzero(np.append(ranked[:-1] > ranked[1:], True))  # equal rows are answered alike
            cut = cuts[int(np.argmax(f1[cuts]))]
            if f1[cut] > at_half + 1e-12:
                below = ranked[cut + 1] if cut + 1 < len(ranked) else 0.0
                best = (ranked[cut] + below) / 2
        found.append(round(float(np.clip(best, 1e-6, 1 - 1e-6)), 6))
    return tuple(found)


def _f1(answered: np.ndarray, held: np.ndarray) -> float:
    total = answered.sum() + held.sum()
    return float(2 * (answered & held).sum() / total) if total else 0.0


def config_of_thresholds(said: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """`fitted_thresholds` as the config of a student keeps them: one probability per label, in the order of its logits."""
    return {"thresholds": list(fitted_thresholds(said, labels))}


@dataclass(frozen=True)
class Bernoulli:
    """The family ``bernoulli``; see `Family` for what each attribute and method means.

    A label is answered where its log-odds are above 0: probability above one half.

    Example:
        >>> Bernoulli().predictions(np.array([[-0.1, 2.0]]))
        array([[0, 1]])
    """

    name: str = "bernoulli"
    measures: tuple[str, ...] = ("accuracy", "f1", "nll", "brier")
    proper: str = "nll"
    always: tuple[str, ...] = ("accuracy", "label_nll", "label_brier", "label_agreement")
    compared: tuple[str, ...] = ("accuracy", "f1")
    searched: str = "label_nll"
    chosen_by: tuple[str, bool] = ("label_nll", False)
    prefix: str = "bernoulli_"
    pooled: str = "bernoulli_linear_pool"
    auto: FusionRule = AutoBernoulli()
    output: tuple[str, str] = ("label", "labels")
    distance: tuple[str, str] = ("KL", "KL(ensemble ‖ student) of the row, summed over the labels, in nats")
    converts: Mapping[str, type] = field(default_factory=dict)
    has_classes: bool = True
    row_weights: bool = False
    learns: str = "binary cross-entropy with the labels"
    held_out_config: Callable[..., dict[str, Any]] | None = config_of_thresholds
    explained: str = (
        "accuracy: share of rows all of whose labels are right; nll and brier: summed over the labels; label_nll, label_brier: the same as a "
        "mean over the labels; label_agreement: share of labels answered as the ensemble answers them; f1 is macro over the labels, at the "
        "threshold one half."
    )

    def match(self, teacher_labels: Sequence[str], student_labels: Sequence[str], teacher: str) -> LabelMap:
        """By name; one label is enough, since each is answered alone."""
        return LabelMap.match(teacher_labels, student_labels, teacher=teacher, least=1)

    def refuse_gaps(self, maps: Sequence[OutputMap], weights: Sequence[float] | None) -> None:
        """Nothing: of a label that no teacher has nothing is learnt from teachers, and others do not depend on it."""

    def mix_in_labels(self, target: Tensor, labels: Tensor, share: float) -> Tensor:
        """By probabilities, label by label."""
        yes, known = target.sigmoid(), labels == labels
        truth = labels.nan_to_num(0.0).to(yes.dtype)
        mixed = share * truth + (1 - share) * torch.where(yes == yes, yes, truth)
        return torch.where(known, mixed.clamp(1e-7, 1 - 1e-7).logit(), target)

    def disagreement(
        self,
        teacher_logits: Tensor,
        *,
        temperature: float = 1.0,
        weights: Sequence[float] | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """T² Σ_labels Σ_k w_k KL(p_k ‖ p̄) of Bernoullis, p̄ their linear pool over those that have the label."""
        shares, logits, mask = heard(checked_weights(weights), None, teacher_logits, mask)
        z = logits / temperature
        has = torch.ones_like(z, dtype=torch.bool) if mask is None else mask
        share = shares[..., None] * has
        share = share / share.sum(0).clamp(min=1e-12)
        z = z.masked_fill(~has, 0.0)
        mean = (share * z.sigmoid()).sum(0).clamp(1e-7, 1 - 1e-7)
        p = z.sigmoid()
        gaps = p * (F.logsigmoid(z) - mean.log()) + (1 - p) * (F.logsigmoid(-z) - (1 - mean).log())
        return temperature**2 * (share * gaps).sum(0).clamp(min=0.0).sum(-1)

    def unlabelled(self, outputs: int) -> list[float]:
        """NaN for each label."""
        return [float("nan")] * outputs

    def predictions(self, said: np.ndarray) -> np.ndarray:
        """1 where the log-odds are above 0."""
        return (said > 0).astype(np.int64)

    def probabilities(self, said: np.ndarray) -> np.ndarray:
        """Of each label."""
        return torch.from_numpy(np.asarray(said, np.float64)).sigmoid().numpy()

    def truth(self, labels: np.ndarray) -> np.ndarray:
        """0 or 1: of probabilities, what is likelier."""
        return (labels > 0.5).astype(np.int64)

    def scores(self, said: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, ...]:
        """Macro-F1 by jackknife, −Σ ln p(what each label is), and Σ (p − label)²."""
        truth = self.truth(labels)
        f1 = label_f1_values(self.predictions(said), truth)
        z = np.where(truth == 1, said, -said).astype(np.float64)
        nll = np.logaddexp(0.0, -z).sum(1)
        return f1, nll, np.square(self.probabilities(said) - truth).sum(1)

    def holds(self, answers: np.ndarray, output: int) -> np.ndarray:
        """Where the label holds."""
        return answers[:, output] > 0.5

    def balanced(self, labels: np.ndarray, outputs: int) -> np.ndarray:
        """n_without / n_with, the weight of rows that have the label; 1 for a label without rows."""
        having = self.truth(labels).sum(0)
        return np.divide(len(labels) - having, having, out=np.ones(outputs), where=having > 0)

    def of_fits(self, labels: Tensor) -> Tensor:
        """0 or 1, NaN where there is none: of probabilities, what is likelier."""
        return torch.where(labels == labels, (labels > 0.5).to(labels.dtype), labels)

    def as_choices(self, held: HeldOut) -> HeldOut | None:
        """Each (row, label) pair: 0, not so, or 1, it holds; of labels that all teachers have."""
        everywhere = [
            c for c in range(held.labels.shape[1]) if held.mask is None or bool(held.mask[:, 0, c].all())
        ]
        if not everywhere:
            return None
        odds, labels = held.logits[..., everywhere], held.labels[:, everywhere]
        teachers, rows, outputs = odds.shape
        flat = odds.reshape(teachers, rows * outputs)
        truth = torch.where(labels == labels, (labels > 0.5).long(), UNLABELLED).reshape(-1)
        ids = held.example_ids[:, None].expand(rows, outputs).reshape(-1)
        return HeldOut(torch.stack([torch.zeros_like(flat), flat], -1), truth, None, ids)

    def reliability(self, said: np.ndarray, labels: np.ndarray) -> list[ReliabilityBin]:
        """Of all (row, label) pairs: the probability that a label holds, against how often it does."""
        sure, truth = self.probabilities(said).ravel(), np.asarray(labels).ravel()
        index = np.clip(
            np.searchsorted(np.linspace(0.0, 1.0, _BINS + 1), sure, side="left") - 1, 0, _BINS - 1
        )
        return [
            ReliabilityBin(float(sure[inside].mean()), float(truth[inside].mean()), int(inside.sum()))
            for inside in (index == b for b in range(_BINS))
            if inside.any()
        ]

    def temperature(self, said: np.ndarray, labels: np.ndarray) -> float | None:
        """argmin_T of the binary cross-entropy of said / T, one T for all labels."""
        odds = np.asarray(said, np.float64)
        counts = np.isfinite(odds) & (labels == labels)
        if not counts.any():
            return None
        z, truth = torch.from_numpy(odds[counts]), torch.from_numpy(self.truth(labels)[counts]).double()

        def nll(log_scale: Tensor) -> Tensor:
            return F.binary_cross_entropy_with_logits(z * log_scale.exp(), truth)

        return float((-minimise(nll, torch.zeros(1), [(-4.6, 4.6)])).exp())

    def tempered(self, said: np.ndarray, temperature: float) -> np.ndarray:
        """What is said, divided by the temperature: no answer changes."""
        return said / temperature

    def apart(self, reference: np.ndarray, said: np.ndarray) -> np.ndarray:
        """Σ_labels KL(reference ‖ said) of Bernoullis in nats."""
        p = self.probabilities(reference)
        lost = [np.logaddexp(0.0, -s * np.asarray(said, np.float64)) for s in (1, -1)]
        own = [np.logaddexp(0.0, -s * np.asarray(reference, np.float64)) for s in (1, -1)]
        terms = [share * (a - b) for share, a, b in zip((p, 1 - p), lost, own, strict=True)]
        return sum(np.where(share > 0, term, 0.0) for share, term in zip((p, 1 - p), terms, strict=True)).sum(
            1
        )

    def told(self, said: np.ndarray, names: Sequence[str]) -> tuple[str, float]:
        """The labels that hold, and the probability of the likeliest."""
        return self.told_label(self.predictions(said), names), float(self.probabilities(said).max())

    def told_label(self, label: np.ndarray, names: Sequence[str]) -> str:
        """The labels that hold."""
        return ", ".join(name for name, own in zip(names, label, strict=True) if own > 0.5) or "none"

    def one_sided(self, labels: np.ndarray, names: Sequence[str]) -> str:
        """Whether all are alike."""
        return f"are alike, {self.told_label(labels[0], names)!r}" if (labels == labels[:1]).all() else ""

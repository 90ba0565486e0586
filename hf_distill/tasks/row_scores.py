"""What answers are worth row by row: the scores of one class of several that more than one room computes.

Shapes: N rows, C classes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class ReliabilityBin(NamedTuple):
    """The rows whose confidence lies in one of the equal bins.

    Attributes:
        confidence: Their mean confidence in the predicted class.
        accuracy: Share of them that are right.
        rows: How many they are.
    """

    confidence: float
    accuracy: float
    rows: int


def nll_rows(log_probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N,) −ln p(label) of each row, in nats.

    Example:
        >>> nll_rows(np.log([[0.3, 0.7]]), np.array([1])).round(6)
        array([0.356675])
    """
    return -log_probs[np.arange(len(labels)), labels]


def brier_rows(log_probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N,) Σ_c (p_c − [c = label])² of each row.

    Example:
        >>> brier_rows(np.log([[0.3, 0.7]]), np.array([1])).round(6)
        array([0.18])
    """
    errors = np.exp(log_probs)
    errors[np.arange(len(labels)), labels] -= 1
    return np.square(errors).sum(1)


def kl_rows(ensemble: np.ndarray, student: np.ndarray) -> np.ndarray:
    """(N,) KL(ensemble ‖ student) of each row, in nats.

    Example:
        >>> kl_rows(np.log([[0.2, 0.8]]), np.log([[0.3, 0.7]])).round(6)
        array([0.025732])
    """
    p, q = np.asarray(ensemble, np.float64), np.asarray(student, np.float64)
    # Where the ensemble has probability 0 the term is 0 whatever the student says, -inf - (-inf) included.
    terms = np.zeros_like(p)
    possible = ~np.isneginf(p)
    terms[possible] = np.exp(p[possible]) * (p[possible] - q[possible])
    return terms.sum(1)


def binned(
    log_probs: np.ndarray, labels: np.ndarray, *, bins: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Confidence, whether it is right, and the number of its equal bin (lo, hi] from 0 on, of each row (N,).

    Args:
        log_probs: (N, C).
        labels: (N,) class indices.
        bins: Equal bins on (0, 1].

    Example:
        >>> binned(np.log([[0.5, 0.5], [0.1, 0.9]]), np.array([1, 1]), bins=2)
        (array([0.5, 0.9]), array([False,  True]), array([0, 1]))
    """
    confidence = np.exp(log_probs.max(1))
    # side="left" finds the first edge >= confidence: one on an edge belongs to the bin below, (lo, hi].
    # The clip takes a confidence that rounding lifted above 1.
    index = np.searchsorted(np.linspace(0.0, 1.0, bins + 1), confidence, side="left") - 1
    return confidence, log_probs.argmax(1) == labels, np.clip(index, 0, bins - 1)


def reliability_bins(log_probs: np.ndarray, labels: np.ndarray, *, bins: int = 15) -> list[ReliabilityBin]:
    """Confidence against accuracy in equal bins (lo, hi]: the summands of the expected calibration error.

    Args:
        log_probs: (N, C).
        labels: (N,) class indices.
        bins: Equal bins on (0, 1].

    Returns:
        The bins that hold rows, by confidence.

    Example:
        >>> reliability_bins(np.log([[0.3, 0.7], [0.3, 0.7]]), np.array([1, 0]))
        [ReliabilityBin(confidence=0.7, accuracy=0.5, rows=2)]
    """
    confidence, correct, index = binned(log_probs, labels, bins=bins)
    return [
        ReliabilityBin(float(confidence[inside].mean()), float(correct[inside].mean()), int(inside.sum()))
        for inside in (index == b for b in range(bins))
        if inside.any()
    ]


def f1_values(predictions: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """(…, N) per-row values of macro-F1, which is no mean over rows: jackknife pseudo-values, moved so that F1 is their mean.

    F1 without a row depends on that row's label and answer alone, so C² counts give all N values.

    Args:
        predictions: (…, N) class indices.
        labels: (N,) class indices.
        classes: C; F1 is a mean over the classes that a label or an answer names.

    Reference:
        Efron, Tibshirani: An Introduction to the Bootstrap, 1993, chapter 11.

    Example:
        >>> values = f1_values(np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1]), 2)
        >>> round(float(values.mean()), 6)  # (2/3 + 4/5) / 2
        0.733333
    """
    count = predictions.shape[-1]
    flat = (predictions + classes * labels).reshape(-1, count).astype(np.int64)
    places = flat + classes**2 * np.arange(len(flat))[:, None]
    counts = np.bincount(places.ravel(), minlength=len(flat) * classes**2).reshape(-1, classes, classes)
    hits = np.diagonal(counts, axis1=1, axis2=2)
    named = counts.sum(1) + counts.sum(2)

    def f1(hit: np.ndarray, given: np.ndarray) -> np.ndarray:
        return np.divide(2.0 * hit, given, out=np.zeros(given.shape), where=given > 0)

    def without(less: np.ndarray, once: np.ndarray) -> np.ndarray:
        """(…, C, C) by label and answer of the row: a sum over classes that changes by `less` for a right one, else by `once`."""
        change = once[:, :, None] + once[:, None, :]
        change[:, range(classes), range(classes)] = less
        return change

    # Without a row whose label and answer differ, both classes are named once less; without a right one, one is, twice.
    own, there = f1(hits, named), (named > 0).sum(1)
    sums = own.sum(1)[:, None, None] + without(f1(hits - 1, named - 2) - own, f1(hits, named - 1) - own)
    left = there[:, None, None] - without(1 * (named == 2), 1 * (named == 1))
    change = sums / np.maximum(left, 1) - (own.sum(1) / there)[:, None, None]
    off = -(count - 1) * np.take_along_axis(change.reshape(-1, classes**2), flat, 1)
    values = (own.sum(1) / there)[:, None] + off - off.mean(1, keepdims=True)
    return values.reshape(predictions.shape)


def label_f1_values(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N,) per-row values of macro-F1 over labels that each hold or not: jackknife pseudo-values, moved so that F1 is their mean.

    Args:
        predictions: (N, C) 0 or 1.
        labels: (N, C) 0 or 1. A label that neither of both ever has counts 0, as in scikit-learn with ``zero_division=0``.

    Reference:
        Efron, Tibshirani: An Introduction to the Bootstrap, 1993, chapter 11.

    Example:
        >>> values = label_f1_values(np.array([[1, 0], [1, 1]]), np.array([[1, 0], [0, 1]]))
        >>> round(float(values.mean()), 6)  # (2/3 + 1) / 2
        0.833333
    """
    said, held = np.asarray(predictions, np.int64), np.asarray(labels, np.int64)
    hits, named = said * held, said + held

    def f1(hit: np.ndarray, given: np.ndarray) -> np.ndarray:
        return np.divide(2.0 * hit, given, out=np.zeros(given.shape), where=given > 0).mean(-1)

    own = f1(hits.sum(0), named.sum(0))
    off = -(len(said) - 1) * (f1(hits.sum(0) - hits, named.sum(0) - named) - own)
    return own + off - off.mean()

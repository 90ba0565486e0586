"""How systems that answered the same rows differ, and which differences are more than chance.

Shapes: S systems, or the seeds that one system was trained with (one where it was not), N rows, C classes, M per-row
measures, R resamples. Predictions are class indices, ``correct`` is True where a prediction is the label.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import binom

from ..errors import DataError
from .variances import ERROR, detectable, half_width, p_values, variance_apart, variance_of_mean

# Every comparison of a report draws the same rows, so that its intervals belong together and repeat.
SEED = 20_240_229
RESAMPLES = 4_000

# Numbers that one block of resamples may hold: 64 MiB of float64.
_BLOCK = 8_000_000

# Fewer rows of a difference in one direction no interval can tell from zero.
LEAST_ROWS = 4

# Where fewer rows differ at all, no exact test is below 5 %, though all of them speak for the same system: 2 · 2⁻⁵ > 0.05.
LEAST_DIFFERENT = 6

LESS_IS_BETTER = ("nll", "brier", "squared_error", "absolute_error")

RIGHT = ("accuracy", "within")
"""Shares of rows that are right: of these McNemar's test is made too."""

SHARES = (*RIGHT, "f1")
"""Measures within 0 and 1, told in points."""


class Interval(NamedTuple):
    """An estimate and the interval it may lie in.

    Attributes:
        value: The estimate on the rows as they are.
        low: Lower end.
        high: Upper end; NaN like ``low`` where the per-row values are not all finite.

    Example:
        >>> Interval(0.5, 0.2, 0.8).beyond_chance, Interval(0.5, -0.2, 1.2).beyond_chance
        (True, False)
    """

    value: float
    low: float
    high: float

    @property
    def beyond_chance(self) -> bool:
        """Whether the interval leaves zero out: of a difference, whether there is one."""
        return self.low > 0 or self.high < 0


class Difference(NamedTuple):
    """One system's mean measure minus another's, on the same rows.

    Attributes:
        measure: ``accuracy``, ``f1``, ``nll``, ``brier``, or what else a family of predictions measures row by row.
        first, second: The systems.
        value: The difference, a mean over rows and seeds, and its 95 % interval.
        detectable: The least true difference that four of five such comparisons would find.
        mcnemar: Exact p-values of the accuracies, one per pair of trainings; empty for other measures.
        enough: Whether enough rows differ to go by the interval, which is too narrow where few do: six, and where each system
            was trained once so many that McNemar's test agrees at 5 %.
        p: The error at which the interval would just leave zero out, where McNemar's test has to agree no smaller than its own;
            1 where not enough rows differ; NaN where there is no interval.
    """

    measure: str
    first: str
    second: str
    value: Interval
    detectable: float
    mcnemar: tuple[float, ...] = ()
    enough: bool = True
    p: float = math.nan

    @property
    def beyond_chance(self) -> bool:
        """Whether the interval leaves zero out, and may be gone by."""
        return self.enough and self.value.beyond_chance

    @property
    def better(self) -> bool:
        """Whether the first system is better beyond chance."""
        return self.beyond_chance and (self.value.value > 0) != (self.measure in LESS_IS_BETTER)

    @property
    def worse(self) -> bool:
        """Whether the first system is worse beyond chance."""
        return self.beyond_chance and not self.better


class CommonErrors(NamedTuple):
    """Where pairs of systems err together.

    Attributes:
        both_wrong: (S, S) share of rows where both are wrong; the diagonal is each one's error rate.
        same_wrong: (S, S) share of rows where both give the same wrong answer.
    """

    both_wrong: np.ndarray
    same_wrong: np.ndarray


class LabelPermutation(NamedTuple):
    """The renaming of a system's classes under which it agrees best with the labels.

    Attributes:
        classes: (C,) what each of the system's classes is to be called.
        accuracy: Share of rows that are right under that renaming.
    """

    classes: tuple[int, ...]
    accuracy: float


def disagreement_matrix(predictions: np.ndarray) -> np.ndarray:
    """Share of rows on which two systems give different answers.

    Args:
        predictions: (S, N) class indices.

    Returns:
        (S, S), symmetric, zero on the diagonal.

    Example:
        >>> disagreement_matrix(np.array([[0, 1, 1, 0], [0, 1, 0, 1]]))
        array([[0. , 0.5],
               [0.5, 0. ]])
    """
    predictions = _rows(predictions)
    # One system at a time: all pairs at once would need S² N numbers.
    return np.stack([(predictions != one).mean(1) for one in predictions])


def q_statistics(correct: np.ndarray) -> np.ndarray:
    """Yule's Q of two systems being right: 1 when they err on the same rows, 0 when independently, −1 on opposite ones.

    (N11 N00 − N01 N10) / (N11 N00 + N01 N10), where N10 counts the rows that the first alone gets right.

    Args:
        correct: (S, N) bool.

    Returns:
        (S, S); NaN where the counts leave it undefined, e.g. one is right everywhere.

    Reference:
        Kuncheva, Whitaker: Measures of Diversity in Classifier Ensembles, Machine Learning 51, 2003.

    Example:
        >>> q_statistics(np.array([[1, 1, 0, 0, 1], [1, 0, 0, 1, 1]], bool)).round(3)
        array([[1.   , 0.333],
               [0.333, 1.   ]])
    """
    right = _rows(correct).astype(np.float64)
    wrong = 1 - right
    same = (right @ right.T) * (wrong @ wrong.T)
    apart = (right @ wrong.T) * (wrong @ right.T)
    with np.errstate(invalid="ignore"):
        return (same - apart) / (same + apart)


def common_errors(predictions: np.ndarray, labels: np.ndarray) -> CommonErrors:
    """Where pairs of systems are wrong together, and where they give the same wrong answer.

    What no fusion can mend: on rows where most systems share one wrong answer, the ensemble gives it too.

    Args:
        predictions: (S, N) class indices.
        labels: (N,) class indices.

    Example:
        >>> found = common_errors(np.array([[0, 1, 2, 2], [0, 2, 2, 1]]), np.array([0, 0, 0, 0]))
        >>> found.both_wrong[0, 1], found.same_wrong[0, 1]
        (np.float64(0.75), np.float64(0.25))
    """
    predictions = _rows(predictions)
    wrong = predictions != np.asarray(labels)
    share = wrong.astype(np.float64)
    same = np.stack([(wrong & (predictions == one)).mean(1) for one in predictions])
    return CommonErrors(share @ share.T / wrong.shape[1], same)


def bootstrap_means(values: np.ndarray, *, resamples: int = RESAMPLES, seed: int = SEED) -> np.ndarray:
    """Means of per-row measures over rows drawn with replacement, the same rows for every measure.

    The difference of two columns is a paired bootstrap of the difference of their means.

    Args:
        values: (N, M); a column that is not finite everywhere comes out as NaN.
        resamples: R.
        seed: Of the draws; with the same seed and N, calls draw the same rows.

    Returns:
        (R, M).

    Reference:
        Efron, Tibshirani: An Introduction to the Bootstrap, 1993, chapter 13.

    Example:
        >>> bootstrap_means(np.array([[1.0, 5.0], [1.0, 5.0]]), resamples=2)
        array([[1., 5.],
               [1., 5.]])
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or not len(values):
        raise DataError(f"The bootstrap draws from rows, but found values of shape {values.shape}.")
    count = len(values)
    finite = np.isfinite(values).all(0)
    usable = np.where(finite, values, 0.0)
    generator = np.random.default_rng(seed)
    size = max(1, _BLOCK // count)
    means = []
    for start in range(0, resamples, size):
        drawn = min(size, resamples - start)
        rows = generator.integers(count, size=(drawn, count))
        rows += count * np.arange(drawn)[:, None]
        # How often each row was drawn: one product then serves all measures.
        times = np.bincount(rows.ravel(), minlength=drawn * count).reshape(drawn, count)
        means.append(times @ usable / count)
    return np.where(finite, np.concatenate(means), np.nan)


def percentile_interval(value: float, replicates: np.ndarray, *, level: float = 0.95) -> Interval:
    """The percentile interval of bootstrap replicates.

    Args:
        value: The estimate on the rows as they are.
        replicates: (R,) the same quantity on the resamples.
        level: Share of the replicates inside.

    Example:
        >>> percentile_interval(20, np.arange(41), level=0.5)
        Interval(value=20.0, low=10.0, high=30.0)
    """
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high))


def paired_bootstrap(
    first: np.ndarray,
    second: np.ndarray,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Interval:
    """Difference of the means of two per-row measures, with its percentile bootstrap interval.

    Paired: each resample takes the same rows of both, so what makes rows hard for both cancels.

    Args:
        first: (N,) e.g. 1.0 where a system is right.
        second: (N,) the same of another system, on the same rows.
        level: Of the interval.
        resamples: How many.
        seed: Of the draws.

    Returns:
        mean(first) − mean(second) and its interval.

    Example:
        >>> paired_bootstrap(np.array([1.0, 1.0, 0.0]), np.array([0.0, 0.0, -1.0]))
        Interval(value=1.0, low=1.0, high=1.0)
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.shape != second.shape:
        raise DataError(
            f"A paired comparison needs the same rows, but found {first.shape} and {second.shape} values."
        )
    difference = first - second
    replicates = bootstrap_means(difference[:, None], resamples=resamples, seed=seed)[:, 0]
    return percentile_interval(difference.mean(), replicates, level=level)


def mcnemar_exact(first_correct: np.ndarray, second_correct: np.ndarray) -> float:
    """Exact two-sided p-value of McNemar's test: are two systems right equally often on the same rows?

    Only rows that exactly one gets right say anything; under the null hypothesis they are coin flips.

    Args:
        first_correct: (N,) bool.
        second_correct: (N,) bool, on the same rows.

    Returns:
        The probability of a split at least as uneven; 1 where no row tells them apart.

    Reference:
        McNemar, Psychometrika 12, 1947; Dietterich, Neural Computation 10(7), 1998.

    Example:
        >>> mcnemar_exact(np.array([1, 1, 1, 1, 1, 0], bool), np.array([0, 0, 0, 0, 0, 0], bool))
        0.0625
    """
    first, second = np.asarray(first_correct, bool), np.asarray(second_correct, bool)
    if first.shape != second.shape:
        raise DataError(
            f"McNemar's test needs the same rows, but found {first.shape} and {second.shape} answers."
        )
    one, other = int((first & ~second).sum()), int((second & ~first).sum())
    return float(min(1.0, 2 * binom.cdf(min(one, other), one + other, 0.5))) if one + other else 1.0


def above_guessing(predictions: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Cohen's kappa, and how many standard errors it lies above the zero of a system that guesses.

    Guessing means answers in the system's own frequencies without a look at the row: a constant answer is one kind
    of it, so that a set with one frequent class flatters nobody.

    Args:
        predictions: (N,) class indices.
        labels: (N,) class indices.

    Returns:
        Kappa and its z-score under independence; (0, 0) for a constant answer.

    Reference:
        Fleiss, Cohen, Everitt: Large sample standard errors of kappa and weighted kappa, 1969, equation 9.

    Example:
        >>> kappa, z = above_guessing(np.array([0, 0, 1, 1] * 25), np.array([0, 0, 1, 0] * 25))
        >>> round(kappa, 6), round(z, 3)
        (0.5, 5.774)
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    size = int(max(predictions.max(), labels.max())) + 1
    answered = np.bincount(predictions, minlength=size) / len(labels)
    true = np.bincount(labels, minlength=size) / len(labels)
    expected = float(answered @ true)
    variance = expected + expected**2 - float((answered * true) @ (answered + true))
    if variance <= 1e-12:
        return 0.0, 0.0
    gain = float((predictions == labels).mean()) - expected
    return gain / (1 - expected), gain / math.sqrt(variance / len(labels))


def label_permutation(predictions: np.ndarray, labels: np.ndarray, classes: int) -> LabelPermutation:
    """The one-to-one renaming of a system's classes that makes most of its answers right.

    A checkpoint whose labels are named in a wrong order is good at the wrong names. The Hungarian method finds the
    best order from the confusion matrix; classes without a row that says otherwise keep their name where they can.

    Args:
        predictions: (N,) class indices.
        labels: (N,) class indices.
        classes: C.

    Example:
        >>> label_permutation(np.array([1, 1, 0, 2]), np.array([0, 0, 1, 2]), 3)
        LabelPermutation(classes=(1, 0, 2), accuracy=1.0)
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    counts = np.bincount(predictions * classes + labels, minlength=classes**2).reshape(classes, classes)
    # Less than one row in all: it decides between equals only.
    _, named = linear_sum_assignment(counts + np.eye(classes) / (classes + 1), maximize=True)
    return LabelPermutation(
        tuple(int(c) for c in named), float((named[predictions] == labels).sum() / len(labels))
    )


def difference(
    measure: str,
    names: tuple[str, str],
    first: np.ndarray,
    second: np.ndarray,
    *,
    paired_seeds: bool = True,
    apart: int | None = None,
) -> Difference:
    """The difference of two systems' means, with its interval and what could be seen at all.

    Args:
        measure: What the values are; of those of `RIGHT`, 1.0 where a row is right, McNemar's test is made too.
        names: The systems'.
        first: (S, N) per-row values.
        second: (S, N), or (1, N) for a system without seeds.
        paired_seeds: Whether seed s of both belongs together, as of one run; of two runs S may differ.
        apart: On how many rows the two differ; None: where their mean values do.

    Example:
        >>> right = np.array([[1.0, 1.0, 1.0, 0.0]])
        >>> difference("accuracy", ("student", "baseline"), right, right).value
        Interval(value=0.0, low=0.0, high=0.0)
    """
    if first.shape[1] != second.shape[1]:
        raise DataError(
            f"A paired comparison needs the same rows, but {names[0]} has {first.shape[1]} and {names[1]} "
            f"{second.shape[1]}: evaluate both on the same rows."
        )
    with np.errstate(invalid="ignore"):  # ∞ − ∞, of two systems that hold a label impossible
        estimate = float(first.mean() - second.mean())
        varies = variance_of_mean(first - second) if paired_seeds else variance_apart(first, second)
    exact: tuple[float, ...] = ()
    if measure in RIGHT:
        pairs = np.broadcast_arrays(first, second) if paired_seeds else (first[:1], second[:1])
        exact = tuple(mcnemar_exact(a > 0.5, b > 0.5) for a, b in zip(*pairs, strict=True))
    if apart is None:
        with np.errstate(invalid="ignore"):
            apart = int((first.mean(0) != second.mean(0)).sum())
    enough, p = apart >= LEAST_DIFFERENT, float(p_values(np.asarray(estimate), varies))
    if exact and len(first) == len(second) == 1:
        enough, p = enough and exact[0] < ERROR, max(p, exact[0])
    seen = float(detectable(varies))
    if measure in SHARES:
        # Where two answer alike everywhere, nothing varies, and yet one row more proves nothing.
        seen = max(seen, LEAST_ROWS / first.shape[1])
    # Few seeds have deviations that no difference of shares can reach.
    bounds = (-1.0, 1.0) if measure in SHARES else (-math.inf, math.inf)
    return Difference(
        measure, *names, _interval(estimate, float(half_width(varies)), bounds), seen, exact, enough,
        p if apart >= LEAST_DIFFERENT else 1.0,
    )  # fmt: skip


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for how many there are: if none of the differences is one, 5 of 100 such families have one below 0.05.

    Args:
        p_values: Of the family, in any order; NaN counts as 1.

    Reference:
        Holm, Scandinavian Journal of Statistics 6, 1979.

    Example:
        >>> [round(p, 3) for p in holm([0.04, 0.01, 0.03])]
        [0.06, 0.03, 0.06]
    """
    known = np.array([1.0 if math.isnan(p) else p for p in p_values])
    order, left = np.argsort(known, kind="stable"), np.arange(len(known), 0, -1)
    adjusted = np.empty(len(known))
    adjusted[order] = np.minimum(np.maximum.accumulate(left * known[order]), 1.0)
    return [float(p) for p in adjusted]


def accuracy_interval(correct: np.ndarray) -> Interval:
    """An accuracy over rows and seeds, with its interval.

    Args:
        correct: (S, N) 1.0 where the answer is the label.

    Example:
        >>> accuracy_interval(np.array([[1.0, 1.0, 1.0, 1.0]]))
        Interval(value=1.0, low=1.0, high=1.0)
    """
    width = float(half_width(variance_of_mean(correct)))
    return _interval(float(correct.mean()), width, (0.0, 1.0))


def _interval(value: float, width: float, bounds: tuple[float, float]) -> Interval:
    if not math.isfinite(value) or not math.isfinite(width):
        return Interval(value, math.nan, math.nan)
    return Interval(value, max(value - width, bounds[0]), min(value + width, bounds[1]))


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation over seeds, from S − 1; None for one seed.

    Example:
        >>> spread([1.0, 2.0, 3.0]), spread([1.0])
        (1.0, None)
    """
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _rows(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 2 or values.shape[1] == 0:
        raise DataError(f"Expected (systems, rows) with at least one row, found shape {values.shape}.")
    return values

"""What differs beyond chance when rows are drawn anew and trainings repeated with other seeds.

Shapes: S seeds, N rows, M per-row measures, R resamples. A system without seeds has S = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import norm, t

from ..errors import DataError
from ..evaluation.statistics import (
    RESAMPLES,
    SEED,
    Interval,
    bootstrap_means,
    mcnemar_exact,
    percentile_interval,
)

# A difference of so many standard errors is found in 80 of 100 repetitions by a test at 5 %: 1.960 + 0.842.
POWER = 2.8016

# Fewer rows of a difference in one direction no interval can tell from zero: a resample misses them too often.
LEAST_ROWS = 4

# Where fewer rows differ at all, no exact test is below 5 %, though all of them speak for the same system: 2 · 2⁻⁵ > 0.05.
LEAST_DIFFERENT = 6

LESS_IS_BETTER = ("nll", "brier")


class Difference(NamedTuple):
    """One system's mean measure minus another's, on the same rows.

    Attributes:
        measure: ``accuracy``, ``nll`` or ``brier``.
        first, second: The systems.
        value: The difference, a mean over rows and seeds, and its 95 % interval.
        detectable: The least true difference that four of five such comparisons would find.
        mcnemar: Exact p-values of the accuracies, one per pair of trainings; empty for other measures.
        enough: Whether enough rows differ to go by the interval, which is too narrow where few do: six, and where each system
            was trained once so many that McNemar's test agrees at 5 %.
    """

    measure: str
    first: str
    second: str
    value: Interval
    detectable: float
    mcnemar: tuple[float, ...] = ()
    enough: bool = True

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


def resampled_means(
    values: np.ndarray, *, resamples: int = RESAMPLES, seed: int = SEED, stream: int = 0
) -> np.ndarray:
    """Means over rows and seeds, where both are drawn anew: N of the N rows, and S − 1 of the S seeds.

    Rows are drawn of the averages over seeds, seeds of the averages over rows, independently, and the two deviations add
    up. One seed fewer than there are makes the variance between seeds come out right; all of them would give (S − 1)/S of
    it. As few seeds tell their own variance badly, the deviations are widened by Student's t of Satterthwaite's degrees of
    freedom over the normal quantile, at 95 %: by nothing where rows decide, by much where two seeds are far apart.

    Args:
        values: (S, N, M) per-row measures; a column that is not finite everywhere comes out as NaN.
        resamples: R.
        seed: Of the draws; with the same seed and N, calls draw the same rows.
        stream: Which draws of seeds: another number for trainings that have nothing to do with each other.

    Returns:
        (R, M).

    Reference:
        Owen: The pigeonhole bootstrap, 2007, arXiv:0712.1111, for rows and columns drawn apart; Rao, Wu: Resampling
        inference with complex survey data, JASA 83, 1988, for n − 1 of n; Satterthwaite, Biometrics Bulletin 2, 1946.

    Example:
        >>> means = resampled_means(np.array([[[0.0], [0.0]], [[1.0], [1.0]]]))  # two seeds, on every row apart by one
        >>> [round(float(value), 2) for value in sorted(set(means[:, 0].tolist()))]  # 1/2 ± 1/2 · 12.71/1.96
        [-2.74, 3.74]
    """
    seeds, rows, _ = values.shape
    average = values.mean(0)
    made = bootstrap_means(average, resamples=resamples, seed=seed)
    if seeds == 1:
        return made
    with np.errstate(invalid="ignore", divide="ignore"):
        each, center = values.mean(1), average.mean(0)
        drawn = np.random.default_rng([seed, stream]).integers(seeds, size=(resamples, seeds - 1))
        made = made + each[drawn].mean(1) - center
        of_rows = np.square(average - center).sum(0) / max(rows - 1, 1) / rows
        of_seeds = each.var(0, ddof=1) / seeds
        spread_of_variance = of_rows**2 / max(rows - 1, 1) + of_seeds**2 / (seeds - 1)
        freedom = np.where(spread_of_variance > 0, (of_rows + of_seeds) ** 2 / spread_of_variance, rows)
        return center + (made - center) * (t.ppf(0.975, freedom) / norm.ppf(0.975))


def difference(
    measure: str,
    names: tuple[str, str],
    first: np.ndarray,
    second: np.ndarray,
    *,
    paired_seeds: bool = True,
) -> Difference:
    """The difference of two systems' means, with its interval and what could be seen at all.

    Args:
        measure: What the values are; of an ``accuracy``, 1.0 where a row is right, McNemar's test is made too.
        names: The systems'.
        first: (S, N) per-row values.
        second: (S, N), or (1, N) for a system without seeds.
        paired_seeds: Whether seed s of both belongs together, as of one run; of two runs S may differ.

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
        if paired_seeds:
            replicates = resampled_means((first - second)[:, :, None])[:, 0]
        else:
            own, other = resampled_means(first[:, :, None]), resampled_means(second[:, :, None], stream=1)
            replicates = (own - other)[:, 0]
    p_values: tuple[float, ...] = ()
    if measure == "accuracy":
        pairs = np.broadcast_arrays(first, second) if paired_seeds else (first[:1], second[:1])
        p_values = tuple(mcnemar_exact(a > 0.5, b > 0.5) for a, b in zip(*pairs, strict=True))
    with np.errstate(invalid="ignore"):
        enough = int((first.mean(0) != second.mean(0)).sum()) >= LEAST_DIFFERENT
    if p_values and len(first) == len(second) == 1:
        enough = enough and p_values[0] < 0.05
    # Few rows of few seeds have deviations that no difference of shares can reach.
    within = np.clip(replicates, -1.0, 1.0) if measure == "accuracy" else replicates
    interval = percentile_interval(estimate, within)
    seen = POWER * float(np.std(replicates))
    if (
        measure == "accuracy"
    ):  # where two answer alike everywhere, nothing varies, and yet one row more proves nothing
        seen = max(seen, LEAST_ROWS / first.shape[1])
    return Difference(measure, *names, interval, seen, p_values, enough)


def accuracy_interval(correct: np.ndarray) -> Interval:
    """An accuracy over rows and seeds, with its interval.

    Args:
        correct: (S, N) 1.0 where the answer is the label.

    Example:
        >>> accuracy_interval(np.array([[1.0, 1.0, 1.0, 1.0]]))
        Interval(value=1.0, low=1.0, high=1.0)
    """
    replicates = np.clip(resampled_means(correct[:, :, None])[:, 0], 0.0, 1.0)
    return percentile_interval(float(correct.mean()), replicates)


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation over seeds, from S − 1; None for one seed.

    Example:
        >>> spread([1.0, 2.0, 3.0]), spread([1.0])
        (1.0, None)
    """
    return float(np.std(values, ddof=1)) if len(values) > 1 else None

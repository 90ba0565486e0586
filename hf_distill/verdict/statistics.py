"""What differs beyond chance when rows are drawn anew and trainings repeated with other seeds.

Shapes: S seeds, N rows, M per-row measures, R resamples. A system without seeds has S = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..comparison import RESAMPLES, SEED, Interval, bootstrap_means, mcnemar_exact, percentile_interval
from ..errors import DataError

# A difference of so many standard errors is found in 80 of 100 repetitions by a test at 5 %: 1.960 + 0.842.
POWER = 2.8016

# Fewer rows of a difference in one direction no interval can tell from zero: a resample misses them too often.
LEAST_ROWS = 4

LESS_IS_BETTER = ("nll", "brier")


class Difference(NamedTuple):
    """One system's mean measure minus another's, on the same rows.

    Attributes:
        measure: ``accuracy``, ``nll`` or ``brier``.
        first, second: The systems.
        value: The difference, a mean over rows and seeds, and its 95 % interval.
        detectable: The least true difference that four of five such comparisons would find.
        mcnemar: Exact p-values of the accuracies, one per pair of trainings; empty for other measures.
    """

    measure: str
    first: str
    second: str
    value: Interval
    detectable: float
    mcnemar: tuple[float, ...] = ()

    @property
    def better(self) -> bool:
        """Whether the first system is better beyond chance."""
        return self.value.beyond_chance and (self.value.value > 0) != (self.measure in LESS_IS_BETTER)

    @property
    def worse(self) -> bool:
        """Whether the first system is worse beyond chance."""
        return self.value.beyond_chance and not self.better


def resampled_means(
    values: np.ndarray, *, resamples: int = RESAMPLES, seed: int = SEED, stream: int = 0
) -> np.ndarray:
    """Means over rows and seeds, where both are drawn anew: N of the N rows, and S − 1 of the S seeds.

    One seed fewer than there are makes the variance between seeds come out right; all of them would give (S − 1)/S of it,
    half for two. Rows and seeds are drawn independently of each other, the same rows for all seeds and calls.

    Args:
        values: (S, N, M) finite per-row measures.
        resamples: R.
        seed: Of the draws.
        stream: Which draws of seeds: another number for trainings that have nothing to do with each other.

    Returns:
        (R, M).

    Reference:
        Owen: The pigeonhole bootstrap, Annals of Applied Statistics 1(2), 2007, arXiv:0712.1111; Rao, Wu: Resampling
        inference with complex survey data, JASA 83, 1988, for n − 1 of n.

    Example:
        >>> means = resampled_means(np.array([[[0.0], [0.0]], [[1.0], [1.0]]]))  # two seeds, on every row apart by one
        >>> sorted(set(means[:, 0].tolist()))
        [0.0, 1.0]
    """
    seeds, rows, measures = values.shape
    # The rows are drawn by (seed, N) alone, so that every comparison of a report draws the same.
    each = bootstrap_means(
        values.transpose(1, 0, 2).reshape(rows, seeds * measures), resamples=resamples, seed=seed
    )
    each = each.reshape(resamples, seeds, measures)
    if seeds == 1:
        return each[:, 0]
    drawn = np.random.default_rng([seed, stream]).integers(seeds, size=(resamples, seeds - 1))
    return np.take_along_axis(each, drawn[:, :, None], axis=1).mean(1)


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
    interval = percentile_interval(estimate, replicates)
    seen = POWER * float(np.std(replicates))
    if (
        measure == "accuracy"
    ):  # where two answer alike everywhere, nothing varies, and yet one row more proves nothing
        seen = max(seen, LEAST_ROWS / first.shape[1])
    return Difference(measure, *names, interval, seen, p_values)


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation over seeds, from S − 1; None for one seed.

    Example:
        >>> spread([1.0, 2.0, 3.0]), spread([1.0])
        (1.0, None)
    """
    return float(np.std(values, ddof=1)) if len(values) > 1 else None

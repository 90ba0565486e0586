"""How much a mean over rows and trainings may be off, and which difference would be found: the arithmetic of a verdict.

Everything is computed in closed form, for one comparison or for many at once.

Shapes: … any number of comparisons, S seeds, N rows, C classes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit
from scipy.stats import chi2

ERROR = 0.05
"""How often a claim may be wrong where there is nothing to claim."""

LEVEL = 1 - ERROR
"""Of every interval."""

POWER = 0.8
"""How often a difference that is called detectable is found."""

# No smaller p-value is told from another.
_LEAST_P = 1e-12

# Points of the quadrature over what the seeds' variance may come out as; twice as many change no third digit.
_POINTS = 200
_HALVINGS = 45


class Variance(NamedTuple):
    """What a mean over rows and seeds varies by.

    Attributes:
        rows: (…) variance of the mean as other rows would have been drawn.
        seeds: (…) the same as other seeds would have been; 0 for one seed, which says nothing of others.
        both: (…) the part of either that belongs to single answers (this row with that seed), and is counted in both.
        n_rows: N.
        freedom: () degrees of freedom of the seeds' variance, S − 1; 0 for one seed.
    """

    rows: np.ndarray
    seeds: np.ndarray
    both: np.ndarray
    n_rows: int
    freedom: np.ndarray


def variance_of_mean(values: np.ndarray) -> Variance:
    """The variance of a mean over rows and seeds, both of them drawn.

    Args:
        values: (…, S, N) per-row values; of a paired comparison, their differences.

    Example:
        >>> found = variance_of_mean(np.array([[0.0, 1.0], [1.0, 2.0]]))  # rows apart by one, seeds too
        >>> float(found.rows), float(found.seeds), float(found.both)
        (0.25, 0.25, 0.0)
    """
    values = np.asarray(values, np.float64)
    seeds, rows = values.shape[-2:]
    with np.errstate(invalid="ignore"):
        average, each = values.mean(-2), values.mean(-1)
        none = np.zeros(values.shape[:-2])
        of_rows = average.var(-1, ddof=1) / rows if rows > 1 else none
        if seeds == 1:
            return Variance(of_rows, none, none, rows, np.asarray(0.0))
        both = none
        if rows > 1:
            rest = values - average[..., None, :] - each[..., :, None] + average.mean(-1)[..., None, None]
            both = np.square(rest).sum((-1, -2)) / ((rows - 1) * (seeds - 1)) / (rows * seeds)
        return Variance(of_rows, each.var(-1, ddof=1) / seeds, both, rows, np.asarray(seeds - 1.0))


def variance_apart(first: np.ndarray, second: np.ndarray) -> Variance:
    """The variance of a difference of two means on the same rows, where the seeds of one have nothing to do with the other's.

    Where one has a single seed, nothing is known of how much its trainings vary: they are taken to vary as much as the other's.
    Where both have one, the variance between trainings counts as nothing.

    Args:
        first: (…, S₁, N) per-row values.
        second: (…, S₂, N), of the same rows.

    Reference:
        Welch, Biometrika 34, 1947; of one case against several: Crawford, Howell, The Clinical Neuropsychologist 12, 1998.

    Example:
        >>> values = np.array([[0.0, 0.0], [1.0, 1.0]])
        >>> float(variance_of_mean(values - values).seeds), float(variance_apart(values, values).seeds)
        (0.0, 0.5)
        >>> float(variance_apart(values[:1], values).seeds)  # 0.5 of one training, 0.25 of the mean of two
        0.75
    """
    own, other = variance_of_mean(first), variance_of_mean(second)
    with np.errstate(invalid="ignore"):
        rows = variance_of_mean((np.mean(first, -2) - np.mean(second, -2))[..., None, :]).rows
    several = own if own.freedom > 0 else other
    if own.freedom == 0 or other.freedom == 0:
        # Of a mean over S trainings, and S times as much of the one.
        share = several.freedom + 2
        return Variance(rows, several.seeds * share, several.both * share, own.n_rows, several.freedom)
    seeds = own.seeds + other.seeds
    parts = own.seeds**2 / own.freedom + other.seeds**2 / other.freedom
    # Where neither varies, as many as there are.
    known = np.full_like(parts, own.freedom + other.freedom)
    freedom = np.divide(seeds**2, parts, out=known, where=parts > 0)
    return Variance(rows, seeds, own.both + other.both, own.n_rows, freedom)


def half_width(
    variance: Variance, seeds: np.ndarray | None = None, error: np.ndarray | float = ERROR
) -> np.ndarray:
    """(…) half the width of the interval of a mean.

    Two approximations to the problem of two variances, one known well (rows) and one badly (few seeds), are weighed. That of
    Cochran and Cox, each variance with its own Student's t, is never too narrow, and too wide where both weigh alike;
    Satterthwaite's, one t of pooled degrees of freedom, is too narrow for few seeds. Their squares are averaged with the
    weights 1/(S − 1) and 1 − 1/(S − 1): with two seeds the first alone, with many the second. Where seeds decide, both are
    Student's t of S − 1.

    Args:
        variance: Of the mean.
        seeds: Another variance between seeds than was found.
        error: How often the interval may miss; that of a 95 % interval unless given.

    Reference:
        Cochran, Cox: Experimental Designs, 1957, 4.14; Satterthwaite, Biometrics Bulletin 2, 1946.

    Example:
        >>> apart = variance_of_mean(np.array([[0.0, 0.0], [1.0, 1.0]]))  # two seeds: 12.71 of their standard errors
        >>> round(float(half_width(apart)), 3)
        6.353
    """
    quantile = np.asarray(error) / 2  # of the lower tail, where small ones are exact
    of_seeds = variance.seeds if seeds is None else seeds
    row_freedom = max(variance.n_rows - 1, 1)
    freedom = np.maximum(variance.freedom, 1.0)
    squares = stdtrit(row_freedom, quantile) ** 2, stdtrit(freedom, quantile) ** 2
    wide = squares[0] * variance.rows + squares[1] * of_seeds
    with np.errstate(divide="ignore", invalid="ignore"):
        total = variance.rows + of_seeds
        spread = variance.rows**2 / row_freedom + of_seeds**2 / freedom
        pooled = np.where(spread > 0, total**2 / spread, 1.0)
        narrow = stdtrit(pooled, quantile) ** 2 * total
        share = 1 / freedom
        return np.where(variance.freedom > 0, np.sqrt(share * wide + (1 - share) * narrow), np.sqrt(wide))


def p_values(means: np.ndarray, variance: Variance) -> np.ndarray:
    """(…) the error at which the interval of a mean would just leave zero out, 1e-12 at least; NaN where there is no interval.

    Args:
        means: (…) the means.
        variance: Of them.

    Example:
        >>> one = variance_of_mean(np.array([[0.0, 1.0, 2.0, 3.0]]))  # Student's t of three degrees of freedom
        >>> round(float(p_values(np.array(1.5), one)), 4)
        0.1027
    """
    size = np.abs(means)
    low, high = np.full(size.shape, np.log(_LEAST_P)), np.zeros(size.shape)
    with np.errstate(invalid="ignore"):
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            outside = size > half_width(variance, error=np.exp(middle))
            low, high = np.where(outside, low, middle), np.where(outside, middle, high)
    known = np.isfinite(size) & np.isfinite(variance.rows) & np.isfinite(variance.seeds)
    return np.where(known, np.exp(high), np.nan)


def detectable(variance: Variance) -> np.ndarray:
    """(…) the true difference that four of five such comparisons would call one.

    What the seeds' variance comes out as is drawn too, and with it the width of the interval: a quadrature over its
    distribution, χ² of S − 1 around the median-unbiased estimate.

    Args:
        variance: Of one comparison.

    Example:
        >>> one = variance_of_mean(np.arange(400.0)[None] % 2)  # rows alone: 1.966 + 0.842 standard errors
        >>> round(float(detectable(one) / np.sqrt(one.rows)), 3)
        2.808
    """
    rows, found, both, freedom = (
        np.asarray(part, np.float64)[..., None]
        for part in (variance.rows, variance.seeds, variance.both, variance.freedom)
    )
    own = np.maximum(freedom, 1.0)
    seeds = found * own / chi2.median(own)
    # The answers' own part is in both variances, and comes out of the mean once.
    deviation = np.sqrt(rows + np.maximum(seeds - both, 0.0))
    drawn = chi2.ppf((np.arange(_POINTS) + 0.5) / _POINTS, own) / own
    widths = half_width(Variance(rows, seeds, both, variance.n_rows, freedom), seeds * drawn)
    low, high = np.zeros(rows.shape[:-1]), widths.max(-1) + ndtri(POWER) * deviation[..., 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            enough = ndtr((middle[..., None] - widths) / deviation).mean(-1) >= POWER
            low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return np.where(np.isfinite(widths).all(-1), high, np.nan)

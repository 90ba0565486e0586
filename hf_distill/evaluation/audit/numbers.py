"""What an audit found, as numbers.

Shapes: C classes. Accuracies are shares of one; a difference is positive where the first is larger, so better is up in
accuracy and down in NLL.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ...tasks.row_scores import ReliabilityBin
from ..cost import Cost
from ..formats import nats, points
from ..statistics import Interval

BEST_TEACHER = "best teacher, calibrated"
"""What the report calls the single teacher that an ensemble has to beat."""


# Differences of rounding are beyond chance too, being the same on every row; less than this is no difference.
_LEAST_NLL = 5e-4


class Gains(NamedTuple):
    """One system's measures minus another's on the same rows.

    Attributes:
        accuracy: Difference of the shares of right rows.
        nll: Difference of the mean −ln p(label), in nats.
    """

    accuracy: Interval
    nll: Interval

    @property
    def better(self) -> bool:
        """Better beyond chance in one measure, and not worse beyond chance in the other."""
        return any(self._signs(1)) and not any(self._signs(-1))

    @property
    def worse(self) -> bool:
        """Worse beyond chance in one measure, and not better beyond chance in the other."""
        return any(self._signs(-1)) and not any(self._signs(1))

    @property
    def unseen(self) -> bool:
        """No difference beyond chance in either measure."""
        return not any(self._signs(1)) and not any(self._signs(-1))

    @property
    def no_loss(self) -> bool:
        """Not worse beyond chance in either measure, and both could be compared."""
        return not any(self._signs(-1)) and all(math.isfinite(part.high) for part in self)

    def _signs(self, good: int) -> tuple[bool, bool]:
        """Whether accuracy and NLL are beyond chance on the good side (1) or on the bad one (-1)."""
        up, down = self.accuracy, self.nll
        return (
            up.beyond_chance and up.value * good > 0,
            down.beyond_chance and down.value * good < 0 and abs(down.value) >= _LEAST_NLL,
        )

    def __str__(self) -> str:
        """As in the verdict: marked * where beyond chance."""
        return f"accuracy {points(self.accuracy)} points, NLL {nats(self.nll)}"


@dataclass(frozen=True)
class TeacherFigures:
    """What one teacher is worth alone.

    Attributes:
        accuracy, f1: On all labelled rows; F1 is the mean over classes.
        nll, brier, ece: On the rows whose label is among its classes.
        temperature: The T that calibrates it, above 1 where it is over-confident; None where it cannot be fitted.
        kappa: Cohen's: accuracy beyond guessing in its own frequencies, 1 is perfect.
        f1_by_class: (C,); None for a class without rows.
        reliability: Confidence against accuracy.
        cost: Size and throughput.
    """

    name: str
    accuracy: float
    f1: float
    nll: float
    brier: float
    ece: float
    temperature: float | None
    kappa: float
    f1_by_class: tuple[float | None, ...]
    reliability: tuple[ReliabilityBin, ...]
    cost: Cost


@dataclass(frozen=True)
class PairFigures:
    """How two teachers differ: shares of rows, and Yule's Q (NaN where undefined)."""

    first: str
    second: str
    agreement: float
    disagreement: float
    q: float
    both_wrong: float
    same_wrong: float


@dataclass(frozen=True)
class RuleFigures:
    """The ensemble under one fusion rule, each row scored by what was fitted on the other half.

    Attributes:
        over_linear_pool: Against the uniform `LinearPool`.
        over_best_teacher: Against the best single teacher, calibrated, both chosen on the other half.
    """

    name: str
    accuracy: Interval
    nll: Interval
    brier: float
    ece: float
    over_linear_pool: Gains
    over_best_teacher: Gains


@dataclass(frozen=True)
class LeaveOneOut:
    """What the ensemble gains by losing a teacher: without it minus with it, by the rule's name."""

    teacher: str
    gains: Mapping[str, Gains]


@dataclass(frozen=True)
class Advice:
    """What to do, and what it was seen to do.

    Attributes:
        teachers: Which to keep.
        dropped: Why not, by name.
        optional: What the ensemble gains without a teacher that is kept, where that is no loss beyond chance.
        fusion: Name of the rule.
        fitted: Whether the rule was fitted.
        settings: The rule as a recipe writes it, fitted on all labelled rows where it is fitted.
        figures: Of the kept teachers under it, out of fold.
        rules: Of the kept teachers under every rule, where some were dropped.
        reliability: Confidence of the ensemble against its accuracy, out of fold.
        oracle: Share of rows where some kept teacher is right.
        best_teacher: The best single one.
        mcnemar: p-value of the ensemble's accuracy against the best teacher's.
        lines: To paste into the recipe.
        alternative: To paste where the best teacher alone is to be used; empty where it is not as good.
    """

    teachers: tuple[str, ...]
    dropped: Mapping[str, str]
    optional: Mapping[str, Gains]
    fusion: str
    fitted: bool
    settings: Mapping[str, Any]
    figures: RuleFigures
    rules: tuple[RuleFigures, ...]
    reliability: tuple[ReliabilityBin, ...]
    oracle: float
    best_teacher: str
    mcnemar: float
    lines: str
    alternative: str

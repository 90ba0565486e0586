"""Small functions of training progress, by which temperature and loss weights can change. Imports no torch.

Progress p lies in [0, 1]: the first step has 0, the last 1. `callbacks.py` applies them.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import ConfigurationError
from ..lookup import build

# Where schedules are looked at before any training; each step's own value is checked when it comes.
PATH = [i / 1000 for i in range(1001)]


class Schedule(Protocol):
    """A function of training progress; an instance of the classes here, or any function of the user's."""

    def __call__(self, progress: float) -> float:
        """The value at some progress.

        Args:
            progress: p in [0, 1].
        """
        ...


@dataclass(frozen=True)
class Constant:
    """The same value throughout.

    Example:
        >>> Constant(2.0)(0.5)
        2.0
    """

    value: float

    def __call__(self, progress: float) -> float:
        return self.value


@dataclass(frozen=True)
class Linear:
    """In a straight line from ``start`` to ``end``.

    Args:
        start: The value up to progress ``begin``.
        end: The value from progress ``until`` on.
        begin, until: 0 <= begin < until <= 1.

    Raises:
        ConfigurationError: ``begin`` and ``until`` are no such part of the training.

    Reference:
        Of the temperature: Jafari et al.: Annealing Knowledge Distillation, 2021, arXiv:2104.07163. Of the labels' share
        of the target, 0 to 1: Clark et al.: BAM! Born-Again Multi-Task Networks, 2019, arXiv:1907.04829.

    Example:
        >>> temperature = Linear(4, 1, until=0.5)
        >>> temperature(0.0), temperature(0.25), temperature(0.9)
        (4.0, 2.5, 1.0)
    """

    start: float
    end: float
    begin: float = 0.0
    until: float = 1.0

    def __post_init__(self) -> None:
        _check_part(self)

    def __call__(self, progress: float) -> float:
        return _between(self.start, self.end, _share(self, progress))


@dataclass(frozen=True)
class Cosine:
    """From ``start`` to ``end`` along half a cosine: slowly at both ends, fastest in the middle.

    Args and errors as `Linear`.

    Example:
        >>> weight = Cosine(0.9, 0.1)
        >>> [round(weight(p), 6) for p in (0.0, 0.25, 0.5, 1.0)]
        [0.9, 0.782843, 0.5, 0.1]
    """

    start: float
    end: float
    begin: float = 0.0
    until: float = 1.0

    def __post_init__(self) -> None:
        _check_part(self)

    def __call__(self, progress: float) -> float:
        return _between(self.start, self.end, (1 - math.cos(math.pi * _share(self, progress))) / 2)


@dataclass(frozen=True)
class WarmUp:
    """From 0 in a straight line to ``value``, and constant from progress ``until`` on.

    Example:
        >>> weight = WarmUp(0.8, until=0.5)
        >>> weight(0.0), weight(0.25), weight(0.75)
        (0.0, 0.4, 0.8)
    """

    value: float
    until: float = 0.1

    def __post_init__(self) -> None:
        _check_part(self)

    def __call__(self, progress: float) -> float:
        return self.value * min(progress / self.until, 1.0)


SCHEDULES: dict[str, type] = {
    "constant": Constant,
    "linear": Linear,
    "cosine": Cosine,
    "warm_up": WarmUp,
}


def build_schedule(spec: Any, name: str, table: Mapping[str, Any] = SCHEDULES) -> Schedule:
    """The schedule of one field, looked at from start to end.

    Args:
        spec: The schedule, or how a recipe writes it.
        name: The field of `DistillationArguments`.
        table: The names that a recipe can use.

    Raises:
        ConfigurationError: It is no schedule, or has a value that the field cannot have.

    Example:
        >>> build_schedule({"use": "warm_up", "value": 0.7}, "distill_weight")
        WarmUp(value=0.7, until=0.1)
    """
    schedule = build(spec, table, kind="schedule")
    if not callable(schedule):
        raise ConfigurationError(
            f"The schedule of {name} is {schedule!r}, but it must be a function of training progress, e.g. Linear(4, 1)."
        )
    for progress in PATH:
        value_at(schedule, name, progress)
    return schedule


def refuse_nothing_learnt(task: Schedule, distill: Schedule, path: Iterable[float] = PATH) -> None:
    """Raise a `ConfigurationError` where the weights of task and distillation loss are both 0 at once.

    Args:
        task, distill: Their schedules.
        path: The progress values that are looked at.
    """
    for progress in path:
        if task(progress) == 0 == distill(progress):
            raise ConfigurationError(
                f"task_weight and distill_weight are both 0 at progress {progress:g} of the training, so nothing would be "
                "learnt there: keep one of them above 0."
            )


def value_at(schedule: Schedule, name: str, progress: float) -> float:
    """A schedule's value, where it is one that the field can have.

    Args:
        schedule: The schedule.
        name: The field of `DistillationArguments`.
        progress: p in [0, 1].

    Raises:
        ConfigurationError: The field cannot have it.

    Example:
        >>> value_at(Linear(4, 1), "temperature", 0.5)
        2.5
    """
    value = schedule(progress)
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ConfigurationError(
            f"{name} would be {value!r} at progress {progress:g}, but it must be a finite number."
        )
    fits, rule = {
        "temperature": (value > 0, "logits are divided by it: it must be above 0"),
        "label_share": (0 <= value <= 1, "it is a share of the target: it must lie in [0, 1]"),
    }.get(name, (value >= 0, "a loss cannot weigh less than nothing: it must be at least 0"))
    if not fits:
        raise ConfigurationError(f"{name} would be {value:g} at progress {progress:g}, but {rule}.")
    return float(value)


def _between(start: float, end: float, share: float) -> float:
    return start * (1 - share) + end * share  # exact at both ends


def _share(schedule: Linear | Cosine, progress: float) -> float:
    """How much of the way from start to end lies behind."""
    return min(max((progress - schedule.begin) / (schedule.until - schedule.begin), 0.0), 1.0)


def _check_part(schedule: Linear | Cosine | WarmUp) -> None:
    begin = getattr(schedule, "begin", 0.0)
    for name in ("start", "end", "value", "begin", "until"):
        value = getattr(schedule, name, 0.0)
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise ConfigurationError(
                f"{type(schedule).__name__}: {name} is {value!r}, but it must be a number."
            )
    if not 0 <= begin < schedule.until <= 1:
        raise ConfigurationError(
            f"{type(schedule).__name__} goes from progress {begin:g} to {schedule.until:g}, but it must be a part of the "
            "training: 0 <= begin < until <= 1."
        )

"""The section `losses`: its schedules and row weight checked, and what becomes of them: arguments and callbacks."""

from __future__ import annotations

import numbers
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback

from ..errors import ConfigurationError
from ..training.callbacks import AdaptiveStrength, ScheduleCallback
from ..training.hidden.hidden_loss import build_hidden_losses
from ..training.schedules import PATH, SCHEDULES, Constant, Schedule, build_schedule, refuse_nothing_learnt
from .problems import Problem, applying, found
from .sections import Losses

_SCALARS = ("temperature", "task_weight", "distill_weight", "label_share")


@dataclass(frozen=True)
class Adaptive:
    """How a recipe writes `AdaptiveStrength`: `distill_weight: {use: adaptive, start: 0.7}`.

    Args:
        start: The weight before the first evaluation.
    """

    start: float = Losses.model_fields["distill_weight"].default

    def __post_init__(self) -> None:
        if isinstance(self.start, bool) or not isinstance(self.start, numbers.Real) or not self.start > 0:
            raise ConfigurationError(f"adaptive: start must be a number above 0, found {found(self.start)}")

    def __call__(self, progress: float) -> float:
        """The weight while the student has gained nothing yet."""
        return self.start


def starting_values(losses: Losses) -> dict[str, float]:
    """Temperature, weights and label share of the first step, as the training arguments take them.

    Args:
        losses: The section.

    Example:
        >>> starting_values(Losses(temperature={"use": "linear", "start": 4, "end": 1}))["temperature"]
        4.0
    """
    return {name: float(_schedule(getattr(losses, name), name)(0.0)) for name in _SCALARS}


def build_callbacks(losses: Losses) -> list[TrainerCallback]:
    """Make the callbacks that change what the section says to change; none where it has numbers only.

    Args:
        losses: The section.

    Example:
        >>> (callback,) = build_callbacks(Losses(temperature={"use": "linear", "start": 4, "end": 1}))
        >>> callback.schedules
        {'temperature': Linear(start=4, end=1, begin=0.0, until=1.0)}
    """
    changing = {
        name: _schedule(value, name)
        for name in _SCALARS
        if isinstance(value := getattr(losses, name), Mapping)
    }
    adaptive = isinstance(changing.get("distill_weight"), Adaptive)
    if adaptive:
        del changing["distill_weight"]
    return [
        *([AdaptiveStrength()] if adaptive else []),
        *([ScheduleCallback(**changing)] if changing else []),
    ]


def needs_labels(losses: Losses) -> bool:
    """Whether the loss has a part that is learnt from labels, at any time of the training.

    Args:
        losses: The section.

    Example:
        >>> needs_labels(Losses(task_weight=0.0)), needs_labels(Losses(task_weight={"use": "warm_up", "value": 1}))
        (False, True)
    """
    parts = [_schedule(getattr(losses, name), name) for name in ("task_weight", "label_share")]
    return any(part(progress) > 0 for part in parts for progress in PATH)


def check_losses(losses: Mapping[str, Any], training: Mapping[str, Any]) -> Iterator[Problem]:
    """Check schedules and row weight, and what they need elsewhere.

    Args:
        losses: The section as it was written.
        training: The section `training` as it was written.
    """
    schedules: dict[str, Schedule] = {}
    for name in _SCALARS:
        value = losses.get(name, Losses.model_fields[name].default)
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if is_number or (isinstance(value, Mapping) and isinstance(value.get("use"), str)):
            try:
                schedules[name] = _schedule(value, name)
            except ConfigurationError as error:
                yield Problem(f"losses.{name}", str(error))
    task, distill = schedules.get("task_weight"), schedules.get("distill_weight")
    if isinstance(distill, Adaptive):
        yield from _adaptive(task, training)
    elif task is not None and distill is not None:
        try:
            refuse_nothing_learnt(task, distill)
        except ConfigurationError as error:
            fixed = isinstance(task, Constant) and isinstance(distill, Constant)
            sentence = "task_weight and distill_weight are both 0, so nothing would be learnt"
            yield Problem("losses", sentence if fixed else str(error))
    yield from _hidden(losses.get("hidden"))
    changing = [name for name in _SCALARS if isinstance(losses.get(name), Mapping)]
    metric = training.get("metric_for_best_model", "loss" if training.get("load_best_model_at_end") else None)
    if changing and metric in ("loss", "eval_loss"):
        yield Problem(
            "training.metric_for_best_model",
            f"the evaluation loss changes with losses.{changing[0]}, so it cannot tell which checkpoint is best; "
            "choose a metric, such as accuracy, or nll with training.greater_is_better=false",
        )


def _hidden(entries: Any) -> Iterator[Problem]:
    """What is wrong with hidden losses beyond the types of their keys; names of layers and units are those' concern."""
    for i, entry in enumerate(entries if isinstance(entries, list) else []):
        if isinstance(entry, (str, Mapping)):
            try:
                build_hidden_losses([entry])
            except ConfigurationError as error:
                yield Problem(f"losses.hidden.{i}", str(error))
            except TypeError:  # keys that are no words; the section says so
                continue


def _adaptive(task: Schedule | None, training: Mapping[str, Any]) -> list[Problem]:
    """What an adaptive distillation weight needs: evaluations, of losses that compare, and another loss beside it."""
    return applying(
        (
            training.get("eval_strategy", "no") == "no",
            "training.eval_strategy",
            "the adaptive losses.distill_weight needs evaluations; write epoch or steps",
        ),
        (
            training.get("label_smoothing_factor"),
            "training.label_smoothing_factor",
            "the adaptive losses.distill_weight compares the student's loss with the ensemble's, which has none; "
            "leave it out",
        ),
        (
            task is not None and any(task(progress) == 0 for progress in PATH),
            "losses.task_weight",
            "the adaptive distill_weight may fall to 0, so this must always be above 0, or nothing would be learnt",
        ),
    )


def _schedule(value: Any, name: str) -> Schedule:
    """The schedule of a scalar; a number is one that never changes, and its range is the section's concern."""
    return (
        build_schedule(
            value, name, {**SCHEDULES, "adaptive": Adaptive} if name == "distill_weight" else SCHEDULES
        )
        if isinstance(value, Mapping)
        else Constant(value)
    )

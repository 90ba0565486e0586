"""By which number trials and checkpoints are chosen, and which way it counts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from transformers import EvalPrediction
from transformers.trainer_utils import default_compute_objective

from ..errors import ConfigurationError
from ..evaluation.evaluating import compute_metrics_from
from ..evaluation.metrics import BETTER_WHEN_LOWER, METRICS
from ..fusion.alignment import labelled
from ..lookup import suggest
from ..tasks import family_of, fits
from ..tasks.task import Task

# An evaluation loss that is made of them is another one in each trial that draws them.
_OF_THE_LOSS = {"temperature", "task_weight", "distill_weight", "label_share"}


def is_loss(metric: str | None) -> bool:
    """Whether `metric_for_best_model` names the evaluation loss, as transformers writes it where nobody says."""
    return metric is None or metric.removeprefix("eval_") == "loss"


def objective(
    metrics: Mapping[str, float], *, parts: Collection[str], chosen_by: str | None, drawn: Collection[str]
) -> float:
    """What a trial is judged by: what the plain Trainer would judge it by, the parts of our loss left out.

    It is the metric of ``metric_for_best_model`` where that names one, else the sum of what ``compute_metrics`` says, else
    the evaluation loss. A search that draws what the loss is made of (temperature, weights) compares the cross-entropy with
    the labels instead, since its evaluation losses are no longer of one kind.

    Args:
        metrics: Of an evaluation.
        parts: Which of them are parts of the loss.
        chosen_by: ``metric_for_best_model``.
        drawn: The names that the trial draws.

    Raises:
        ConfigurationError: The metrics to add count in opposite directions, or the one that is named is not there.

    Example:
        >>> found = {"eval_loss": 0.5, "eval_loss_task": 0.9, "eval_runtime": 3.0}
        >>> objective(found, parts=["eval_loss_task"], chosen_by=None, drawn=["learning_rate"])
        0.5
        >>> objective({**found, "eval_accuracy": 0.8}, parts=["eval_loss_task"], chosen_by=None, drawn=[])
        0.8
        >>> objective(found, parts=["eval_loss_task"], chosen_by=None, drawn=["temperature"])
        0.9
    """
    if not is_loss(chosen_by):
        name = f"eval_{chosen_by.removeprefix('eval_')}"
        if name not in metrics:
            raise ConfigurationError(
                f"metric_for_best_model is {chosen_by!r}, which the evaluation does not give: it gives "
                f"{', '.join(key.removeprefix('eval_') for key in metrics if key not in parts)}."
            )
        return metrics[name]
    # The first forward of a model is timed too, and Trainer's objective would add that.
    own = {
        key: value
        for key, value in metrics.items()
        if key not in parts and not key.endswith("_model_preparation_time")
    }
    if _OF_THE_LOSS.intersection(drawn):
        own |= {
            key.removesuffix("_task"): value
            for key, value in metrics.items()
            if key in parts and key.endswith("loss_task")
        }
    known = [key.removeprefix("eval_") for key in own if key.removeprefix("eval_") in METRICS]
    lower = [name for name in known if name in BETTER_WHEN_LOWER]
    if lower and len(lower) < len(known):
        higher = next(name for name in known if name not in lower)
        raise ConfigurationError(
            f"The search has no objective: the sum of its metrics means nothing, since more {higher} is better and more "
            f"{lower[0]} is worse: name one with metric_for_best_model=, or pass compute_objective=."
        )
    return default_compute_objective(own)


def direction_of(metric: str | None, greater_is_better: bool | None) -> str | None:
    """Which way a search goes by ``metric_for_best_model``; None where that names no metric.

    Example:
        >>> direction_of("accuracy", None), direction_of("eval_nll", None), direction_of("loss", None)
        ('maximize', 'minimize', None)
        >>> direction_of("eval_loss_task", None)  # a part of the loss
        'minimize'
    """
    if is_loss(metric):
        return None
    name = str(metric).removeprefix("eval_")
    if name in METRICS:
        return "minimize" if name in BETTER_WHEN_LOWER else "maximize"
    loss = name.endswith("loss") or "loss" in name.split("_")
    greater = not loss if greater_is_better is None else greater_is_better
    return "maximize" if greater else "minimize"


def unknown_metric(
    name: str | None, computed: Collection[str] | None, datasets: Collection[str] = ()
) -> str | None:
    """Say what is wrong with a ``metric_for_best_model`` that no evaluation gives; None where nothing is.

    Args:
        name: The argument.
        computed: The metrics that evaluations compute by name; None: nobody knows, and any name may be one.
        datasets: The names of the evaluation sets, where there are several.

    Example:
        >>> unknown_metric("loss_task", []), unknown_metric("accuracy", ["accuracy"])
        (None, None)
        >>> unknown_metric("acc", ["accuracy", "nll"])
        "no evaluation gives 'acc' (did you mean 'accuracy'?); known: loss, accuracy, nll"
    """
    if is_loss(name) or computed is None:
        return None
    bare = str(name).removeprefix("eval_")
    prefix = next((f"{given}_" for given in datasets if bare.startswith(f"{given}_")), "")
    own = bare.removeprefix(prefix)
    if own in computed or own == "loss" or own.startswith("loss_") or own == "teacher_disagreement":
        return None
    return f"no evaluation gives {name!r}{suggest(own, computed)}; known: {', '.join(['loss', *computed])}"


def metrics_for(
    args: Any, task: Task, compute_metrics: Callable[..., dict[str, float]] | None, eval_dataset: Any
) -> Callable[..., dict[str, float]] | None:
    """The ``compute_metrics`` of a trainer: the one given, else the task's where ``metric_for_best_model`` is one of ours.

    Args:
        args: Of the training.
        task: Names its metrics.
        compute_metrics: As the trainer was given it.
        eval_dataset: As the trainer was given it.

    Raises:
        ConfigurationError: ``metric_for_best_model`` names what no evaluation gives.
    """
    name = args.metric_for_best_model
    datasets = tuple(eval_dataset) if isinstance(eval_dataset, dict) else ()
    computed = getattr(compute_metrics, "names", None) if compute_metrics is not None else computable(task)
    if sentence := unknown_metric(name, computed, datasets):
        raise ConfigurationError(f"metric_for_best_model: {sentence}.")
    if compute_metrics is not None or is_loss(name) or "loss" in str(name) or name == "teacher_disagreement":
        return compute_metrics
    own = next(known for known in computed or () if str(name).endswith(known))
    return compute_metrics_from(dict.fromkeys([*task.metrics, own]), task)


def computable(task: Task) -> tuple[str, ...]:
    """The metrics of ours that an evaluation of a student can compute."""
    return tuple(
        dict.fromkeys(
            name
            for name in [*task.metrics, *METRICS]
            if name not in METRICS
            or (METRICS[name].references_from == "labels" and fits(METRICS[name], family_of(task)))
        )
    )


def refuse_unnamed_metric(trainer: Any) -> None:
    """Ask a user's own ``compute_metrics`` for the names of its values, where a checkpoint is to be chosen by one.

    It is asked about rows that are answered alike; what it cannot compute of them is left to the evaluation.

    Args:
        trainer: About to train.

    Raises:
        ConfigurationError: It gives no such value.
    """
    args, compute, rows = trainer.args, trainer.compute_metrics, trainer.eval_dataset
    named = getattr(compute, "names", None) is not None
    if compute is None or named or is_loss(args.metric_for_best_model) or args.batch_eval_metrics:
        return
    names = tuple(rows) if isinstance(rows, dict) else ()
    first = next(iter(rows.values())) if isinstance(rows, dict) else rows
    try:
        labels = np.asarray([row["labels"] for row in first.select(range(min(64, len(first))))])
        labels = labels[labelled(labels)]
        asked = EvalPrediction(np.zeros((len(labels), len(trainer.student_labels)), np.float32), labels)
        given = [key.removeprefix("eval_") for key in compute(asked)]
    except Exception:  # a user's own function, asked about rows of nobody
        return
    if sentence := unknown_metric(args.metric_for_best_model, given, names):
        raise ConfigurationError(f"metric_for_best_model: {sentence}; these compute_metrics gives.")

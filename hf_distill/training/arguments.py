"""The training arguments of `transformers`, with the few scalars that distillation adds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments
from transformers.integrations import integration_utils

from ..errors import ConfigurationError, how_to_install
from ..lookup import suggest

# How transformers calls the check for a tracker, and how its package is called, where that is not the tracker's name.
_ASKED_BY = {"azure_ml": "azureml", "comet_ml": "comet", "flyte": "flytekit"}
_PACKAGES = {"azure_ml": "azureml-core", "flyte": "flytekit"}

MOST_SEED = 2**32 - 1
"""The largest seed that numpy's generators take."""


@dataclass(repr=False)  # transformers' own leaves the tokens out
class DistillationArguments(TrainingArguments):
    """`transformers.TrainingArguments` plus temperature and weights; objects go to the trainer's constructor.

    The loss is ``task_weight · cross-entropy + distill_weight · distillation loss``, the first over the labelled rows
    of an optimizer step, the second over all of its rows.

    Args:
        temperature: T > 0 that softens teachers and student in the distillation loss.
        task_weight: Weight of the cross-entropy with the labels; 0 needs no labels.
        distill_weight: Weight of the distillation loss; 0 trains without the teachers.
        label_share: λ in [0, 1], the label's share of the distillation target on labelled rows, the teachers' being
            1 − λ (teacher annealing raises it from 0 to 1, see `ScheduleCallback`).
        max_length: Longest student input in tokens; None: what the student's tokenizer and positions allow.
        class_weights: How much each class counts in the cross-entropy: ``balanced``, by their training rows, or a weight above 0
            for each, in the order of the labels or by name; None: all alike.

    Raises:
        ConfigurationError: A value out of range, or both weights 0.

    Example:
        >>> DistillationArguments(output_dir="out", temperature=4.0).distill_weight
        0.5
    """

    temperature: float = field(
        default=2.0, metadata={"help": "Temperature of the distillation loss, above 0."}
    )
    task_weight: float = field(default=0.5, metadata={"help": "Weight of the cross-entropy with the labels."})
    distill_weight: float = field(default=0.5, metadata={"help": "Weight of the distillation loss."})
    label_share: float = field(
        default=0.0, metadata={"help": "The label's share of the distillation target, 0 to 1."}
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Longest student input in tokens; default: what the student allows."}
    )

    class_weights: str | list[float] | dict[str, float] | None = field(
        default=None, metadata={"help": "Weights of the classes in the cross-entropy: balanced, or one each."}
    )

    def __post_init__(self) -> None:
        # YAML 1.1 readers, HfArgumentParser's among them, deliver 1e-4 as a string, and nothing later complains.
        self.learning_rate = _number("learning_rate", self.learning_rate)
        for name in ("seed", "data_seed"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= MOST_SEED:
                raise ConfigurationError(f"{name} is {value}, expected a whole number from 0 to {MOST_SEED}.")
        if self.greater_is_better is None and self.metric_for_best_model is not None:
            # transformers takes more to be better of all that does not end in "loss", of nll and ece too.
            from .objective import direction_of

            direction = direction_of(self.metric_for_best_model, None)
            self.greater_is_better = None if direction is None else direction == "maximize"
        super().__post_init__()
        # Trainer's own filter waits for the device twice per micro-batch; `StudentTrainer.training_step` filters there.
        self.logging_nan_inf_filter = False
        if self.label_names is None:
            # Our collator always provides them, whatever the student's forward is wrapped in.
            self.label_names = ["labels"]
        if self.data_seed is None:
            # Else the order of rows follows the last seed that anybody has set, and a resumed run might see another one.
            self.data_seed = self.seed
        self.check_distillation()

    def check_distillation(self) -> None:
        """Check the distillation fields; the trainer does so again, since a search sets them afterwards."""
        for name in ("temperature", "task_weight", "distill_weight", "label_share"):
            setattr(self, name, _number(name, getattr(self, name)))
        longest = self.max_length
        mistakes = [
            (
                self.temperature <= 0,
                f"temperature is {self.temperature}, but logits are divided by it: it must be > 0.",
            ),
            *(
                (
                    weight < 0,
                    f"{name} is {weight}, but a loss cannot weigh less than nothing: it must be >= 0.",
                )
                for name, weight in (
                    ("task_weight", self.task_weight),
                    ("distill_weight", self.distill_weight),
                )
            ),
            (
                not 0 <= self.label_share <= 1,
                f"label_share is {self.label_share}, but it is a share of the distillation target: from 0 to 1.",
            ),
            (
                self.task_weight == 0 == self.distill_weight,
                "task_weight and distill_weight are both 0, so nothing is learnt: raise one of them.",
            ),
            (
                longest is not None and (not isinstance(longest, int) or longest < 1),
                f"max_length is {longest!r}, but it counts tokens: a whole number from 1.",
            ),
        ]
        for mistaken, sentence in mistakes:
            if mistaken:
                raise ConfigurationError(sentence)


def _number(name: str, value: object) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ConfigurationError(f"{name} is {value!r}, but it must be a finite number.")
    return number


def missing_trackers(report_to: Any) -> list[str]:
    """Say of each tracker that is asked for and cannot be had what is missing; `Trainer` finds out when all else is done.

    Args:
        report_to: As `TrainingArguments` has it: a name or a list of names.

    Example:
        >>> missing_trackers("none"), missing_trackers([])
        ([], [])
        >>> missing_trackers(["tensorbord"])[0].partition(";")[0]
        "there is no tracker 'tensorbord' (did you mean 'tensorboard'?)"
    """
    names = [report_to] if isinstance(report_to, str) else list(report_to or ())
    sentences = []
    for name in names:
        if name in ("none", "all"):
            continue
        if name not in integration_utils.INTEGRATION_TO_CALLBACK:
            known = list(integration_utils.INTEGRATION_TO_CALLBACK)
            sentences.append(
                f"there is no tracker {name!r}{suggest(name, known)}; known: {', '.join(known)}, none"
            )
            continue
        ask = getattr(integration_utils, f"is_{_ASKED_BY.get(name, name)}_available", None)
        if ask is not None and not ask():
            package = _PACKAGES.get(name, name.replace("_", "-"))
            sentences.append(
                f"{name!r} needs a package that is not installed here: {how_to_install(package, extra=name)}, or write "
                "report_to: none"
            )
    return sentences


def refuse_unclear(model: Any, model_init: Any, args: Any, teachers: Sequence[Any]) -> None:
    """Refuse a student given in two ways or in none, and arguments that say nothing of distillation, or too much.

    Raises:
        ConfigurationError: It is so.
    """
    if not isinstance(args, DistillationArguments):
        raise ConfigurationError(
            f"args is a {type(args).__name__}, but temperature and weights are read from it: "
            "use hf_distill.DistillationArguments, which takes every TrainingArguments field."
        )
    if missing := missing_trackers(args.report_to):
        raise ConfigurationError(f"report_to: {missing[0]}.")
    if (model is None) == (model_init is None):
        raise ConfigurationError("Give the student either as model= or as model_init=, one of the two.")
    if not teachers and args.distill_weight > 0:
        raise ConfigurationError(
            f"There are no teachers, but distill_weight is {args.distill_weight}: name teachers, or set it to 0 for "
            "training on the labels alone."
        )

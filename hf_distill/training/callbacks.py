"""Temperature and loss weights that change while training runs: by its progress, or by what evaluations find.

Nothing here has a state that a checkpoint would have to hold: a value follows from the step, or from the evaluations in
the trainer's log, so a resumed run goes on where it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState

from ..errors import ConfigurationError
from .arguments import DistillationArguments
from .schedules import Constant, Schedule, build_schedule, refuse_nothing_learnt, value_at


class ScheduleCallback(TrainerCallback):
    """Sets temperature, loss weights and the labels' share of the target, before every step, by their schedules.

    Pass it to the trainer's ``callbacks=``. Step i of n has progress i / (n − 1), counted from 0. When training ends,
    the arguments have the values again that they had before. The evaluation loss is computed with the values of its
    moment, so it cannot choose the best checkpoint; a metric can, e.g. ``metric_for_best_model="accuracy"``.

    Args:
        temperature, task_weight, distill_weight, label_share: The schedule of the field of `DistillationArguments` with
            that name, or how a recipe writes it (``{"use": "linear", "start": 4, "end": 1}``); None: it stays.

    Attributes:
        values: What was set last, by name; empty while no training runs.

    Raises:
        ConfigurationError: No schedule at all, or one with a value that cannot be; when training begins, both weights 0
            at once, or checkpoints chosen by the evaluation loss; while it runs, somebody else sets a scheduled field.

    Example:
        >>> from hf_distill.training.schedules import Linear
        >>> callback = ScheduleCallback(temperature=Linear(4, 1), label_share=Linear(0, 1))
        >>> sorted(callback.schedules)
        ['label_share', 'temperature']
    """

    def __init__(
        self,
        *,
        temperature: Schedule | Mapping[str, Any] | str | None = None,
        task_weight: Schedule | Mapping[str, Any] | str | None = None,
        distill_weight: Schedule | Mapping[str, Any] | str | None = None,
        label_share: Schedule | Mapping[str, Any] | str | None = None,
    ) -> None:
        given = {
            "temperature": temperature,
            "task_weight": task_weight,
            "distill_weight": distill_weight,
            "label_share": label_share,
        }
        self.schedules: dict[str, Schedule] = {
            name: build_schedule(spec, name) for name, spec in given.items() if spec is not None
        }
        if not self.schedules:
            raise ConfigurationError(
                f"ScheduleCallback was given no schedule: name at least one of {', '.join(given)}."
            )
        self._fields = _Fields()
        self.values = self._fields.values

    def on_train_begin(
        self, args: DistillationArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the schedules together with the fields that stay, and set the first step's values."""
        if state.max_steps < 1:
            raise ConfigurationError(
                "The number of steps is not known, so training has no progress that schedules could follow: set max_steps."
            )
        _refuse_choice_by_loss(args)
        refuse_nothing_learnt(
            self.schedules.get("task_weight", Constant(args.task_weight)),
            self.schedules.get("distill_weight", Constant(args.distill_weight)),
        )
        self._fields.begin(args, self.schedules)
        self._set(args, state)

    def on_step_begin(
        self, args: DistillationArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the values of the step that begins."""
        self._fields.refuse_others(args)
        self._set(args, state)

    def on_train_end(
        self, args: DistillationArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give the fields the user's values back."""
        self._fields.end(args)

    def _set(self, args: DistillationArguments, state: TrainerState) -> None:
        progress = min(state.global_step / max(1, state.max_steps - 1), 1.0)
        for name, schedule in self.schedules.items():
            self._fields.set(args, name, value_at(schedule, name, progress))
        refuse_nothing_learnt(Constant(args.task_weight), Constant(args.distill_weight), [progress])


class AdaptiveStrength(TrainerCallback):
    """Weakens the distillation as the student's held-out loss nears the ensemble's.

    After each evaluation the distillation weight is w₀ · clip((student − ensemble) / (first student − ensemble), 0, 1),
    of the cross-entropies with the labels of the evaluation rows: w₀, the ``distill_weight`` of the arguments, until the
    first evaluation and while the student gains nothing on it, 0 once the student is as good as its teachers. Where the
    student grows worse again, the weight grows again. An evaluation whose losses are not finite changes nothing, and
    one without the ensemble's, since teachers of weight 0 are not run, is compared with that of the one before.

    Pass it to the trainer's ``callbacks=``. What the weight is follows from the evaluations in the trainer's log, so a
    resumed run has the same. When training ends, the arguments have w₀ again.

    Args:
        prefix: Of the keys that are read, ``<prefix>_loss_task`` and ``<prefix>_loss_ensemble``. With several evaluation
            sets ``"eval_"`` and the name of one.

    Attributes:
        values: The weight that was set last, as ``distill_weight``; empty while no training runs.

    Raises:
        ConfigurationError: When training begins, no evaluations, one of the two weights 0, labels that are smoothed in
            the student's loss alone, or checkpoints chosen by the evaluation loss; after the first evaluation, no such
            keys in it; while training runs, somebody else sets the distillation weight.

    Reference:
        Tan et al.: Multilingual Neural Machine Translation with Knowledge Distillation, ICLR 2019, arXiv:1902.10461, end
        the distillation (and take it up again) by comparing student and teacher on held-out data; here the weight falls
        with the gap instead of at once.

    Example:
        >>> AdaptiveStrength("eval_reviews").prefix
        'eval_reviews'
    """

    def __init__(self, prefix: str = "eval") -> None:
        self.prefix = prefix
        self._fields = _Fields()
        self.values = self._fields.values
        self._first: float | None = None  # the student's loss at its first evaluation
        self._ensemble: float | None = None
        self._others: list[str] = []  # prefixes of evaluations that had not our keys

    def on_train_begin(
        self, args: DistillationArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the weight by the evaluations that are in the log already: none, or those before a checkpoint."""
        if args.eval_strategy == "no":
            raise ConfigurationError(
                "AdaptiveStrength follows the evaluations, but eval_strategy is 'no': set it to 'epoch' or 'steps'."
            )
        if args.label_smoothing_factor > 0:
            raise ConfigurationError(
                "AdaptiveStrength compares the losses of student and ensemble, but label_smoothing_factor "
                f"{args.label_smoothing_factor:g} is part of the student's alone: set it to 0."
            )
        _refuse_choice_by_loss(args)
        self._fields.begin(args, ["distill_weight"])
        self._first, self._ensemble, self._others = None, None, []
        for name, own in (("distill_weight", self._own), ("task_weight", args.task_weight)):
            if own <= 0:
                raise ConfigurationError(
                    f"{name} is {own:g}, but AdaptiveStrength goes from distillation to the labels alone: set it above 0."
                )
        self._fields.set(args, "distill_weight", self._own)
        for entry in state.log_history:
            self._follow(args, entry)

    def on_evaluate(
        self,
        args: DistillationArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float],
        **kwargs: Any,
    ) -> None:
        """Set the weight by this evaluation, where it is one of the rows that are followed."""
        if self.values and not self._follow(args, metrics):
            self._others += [key.removesuffix("_loss") for key in metrics if key.endswith("_loss")]

    def on_step_begin(
        self, args: DistillationArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse to go on where an evaluation was made and had nothing to follow."""
        self._fields.refuse_others(args)
        if self._first is None and self._others:
            raise ConfigurationError(
                f"AdaptiveStrength reads {self.prefix}_loss_task and {self.prefix}_loss_ensemble, but no evaluation has "
                f"both (their prefixes: {', '.join(dict.fromkeys(self._others))}): evaluation rows need labels, and with "
                'several evaluation sets the prefix names one, AdaptiveStrength("eval_name").'
            )

    def on_train_end(
        self, args: DistillationArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give the weight the user's value back."""
        self._fields.end(args)

    @property
    def _own(self) -> float:
        return self._fields.own["distill_weight"]

    def _follow(self, args: DistillationArguments, metrics: Mapping[str, Any]) -> bool:
        """Whether these are metrics of the rows that are followed; sets the weight by them."""
        student = metrics.get(f"{self.prefix}_loss_task")
        ensemble = metrics.get(f"{self.prefix}_loss_ensemble", self._ensemble)
        if student is None or ensemble is None:
            return False
        if math.isfinite(student) and math.isfinite(ensemble):
            self._first = student if self._first is None else self._first
            self._ensemble = ensemble
            self._fields.set(
                args, "distill_weight", self._own * remaining_strength(student, ensemble, self._first)
            )
        return True


def remaining_strength(student: float, ensemble: float, first: float) -> float:
    """clip((student − ensemble) / (first − ensemble), 0, 1), also where the first student was no worse than the ensemble.

    Args:
        student: Held-out loss of the student now.
        ensemble: That of the fused teachers.
        first: That of the student at its first evaluation.

    Returns:
        The share in [0, 1] of the distillation weight that is left.

    Example:
        >>> remaining_strength(1.0, 0.5, 2.5), remaining_strength(0.4, 0.5, 2.5), remaining_strength(3.0, 0.5, 2.5)
        (0.25, 0.0, 1.0)
    """
    if student <= ensemble:
        return 0.0
    return 1.0 if student >= first else (student - ensemble) / (first - ensemble)


def _refuse_choice_by_loss(args: DistillationArguments) -> None:
    metric = args.metric_for_best_model
    if metric is not None and metric.endswith("loss"):
        raise ConfigurationError(
            f"metric_for_best_model is {metric!r}, but that changes with temperature and weights, so it cannot tell which "
            "checkpoint is best: choose a metric, such as 'accuracy', or 'nll' with greater_is_better=False."
        )


class _Fields:
    """Fields of the arguments that a callback sets while training runs, and the values that the user gave them."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.own: dict[str, float] = {}

    def begin(self, args: DistillationArguments, names: Iterable[str]) -> None:
        for name in names:
            # After an exception nobody ends a training: what it left in the arguments is not the user's value.
            if name not in self.values or getattr(args, name) != self.values[name]:
                self.own[name] = getattr(args, name)
        self.values.clear()

    def refuse_others(self, args: DistillationArguments) -> None:
        for name, value in self.values.items():
            if getattr(args, name) != value:
                raise ConfigurationError(
                    f"{name} was set to {value:g} for the last step and is {getattr(args, name):g} now: two callbacks set "
                    "it, ScheduleCallback, AdaptiveStrength or one of your own; keep one."
                )

    def set(self, args: DistillationArguments, name: str, value: float) -> None:
        setattr(args, name, value)
        self.values[name] = value

    def end(self, args: DistillationArguments) -> None:
        for name, value in self.own.items():
            setattr(args, name, value)
        self.values.clear()
        self.own.clear()


class EarlyStopping(EarlyStoppingCallback):
    """`transformers.EarlyStoppingCallback` that goes on counting where a resumed training was.

    How often in a row no evaluation was better is told from the trainer's log, so that no checkpoint has to hold it.

    Args:
        early_stopping_patience, early_stopping_threshold: As there.

    Example:
        >>> EarlyStopping(early_stopping_patience=3).early_stopping_threshold
        0.0
    """

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count the evaluations that there were."""
        super().on_train_begin(args, state, control, **kwargs)
        self.early_stopping_patience_counter = 0
        key = f"eval_{args.metric_for_best_model.removeprefix('eval_')}"
        best, now = None, state.best_metric
        for value in [entry[key] for entry in state.log_history if key in entry]:
            state.best_metric = best
            self.check_metric_value(args, state, control, value)
            if best is None or (value > best if args.greater_is_better else value < best):
                best = value
        state.best_metric = now

"""What differs between tasks: one file per task and a table; nothing else in the package asks which task it is.

A task is one frozen dataclass with the attributes and methods of `Task`, in a file of this folder, and one line in the
table below; one of a user's own is passed as an object.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import ConfigurationError
from ..fusion.alignment import OutputMap, scales_of
from ..fusion.conversion import check_options
from ..lookup import build, suggest
from ..losses import ALL_LOSSES
from ..losses.properties import distillation_properties
from ..losses.several import refuse_few_outputs
from .bernoulli import Bernoulli
from .categorical import Categorical
from .family import Family
from .gaussian import Gaussian
from .image_classification import ImageClassification
from .multi_label import MultiLabel
from .regression import Regression
from .task import Task
from .text_classification import TextClassification

TASKS: dict[str, Task] = {
    "text-classification": TextClassification(),
    "multi-label-classification": MultiLabel(),
    "regression": Regression(),
    "image-classification": ImageClassification(),
}
"""The tasks by the name that recipes and ``task=`` give them."""


def build_task(task: str | Task) -> Task:
    """The task that ``task=`` names.

    Args:
        task: A name of `TASKS`, a path ``pkg.mod:Name``, or the task itself.

    Raises:
        ConfigurationError: There is no such task.

    Example:
        >>> build_task("text-classification").family
        'categorical'
    """
    return build(task, TASKS, kind="task")


FAMILIES: dict[str, Family] = {
    "categorical": Categorical(),
    "bernoulli": Bernoulli(),
    "gaussian": Gaussian(),
}
"""The families of predictions by the name that tasks give them."""


def family_of(task: str | Task) -> Family:
    """How a task's predictions are distributed.

    Args:
        task: As for `build_task`.

    Raises:
        ConfigurationError: There is no such task or family.

    Example:
        >>> family_of("text-classification").measures
        ('accuracy', 'f1', 'nll', 'brier')
    """
    found = build_task(task)
    if found.family not in FAMILIES:
        raise ConfigurationError(
            f"The task {found.name!r} is of the family {found.family!r}{suggest(found.family, FAMILIES)}; there are {', '.join(FAMILIES)}."
        )
    return FAMILIES[found.family]


def known_family(name: str) -> Family | None:
    """The family of a task that a stored file names; None where it is not built in: looking imports nothing.

    Example:
        >>> known_family("regression").name, known_family("os:system")
        ('gaussian', None)
    """
    return FAMILIES[TASKS[name].family] if name in TASKS else None


def answer_alike(one: str | Task, other: str | Task) -> bool:
    """Whether the predictions of two tasks are of one family, so that outputs can be matched by name.

    Example:
        >>> answer_alike("text-classification", "regression")
        False
    """
    return family_of(one).name == family_of(other).name


def match_outputs(
    teacher_labels: Sequence[str],
    student_labels: Sequence[str],
    teacher: str,
    *,
    teacher_task: str | Task,
    task: str | Task,
    convert: Mapping[str, Any] | None = None,
) -> OutputMap:
    """How a teacher's outputs become the student's: by name, or converted where they are of another kind.

    Args:
        teacher_labels: In the order of its logits.
        student_labels: In the order of the student's.
        teacher: The teacher's name, for messages.
        teacher_task: What the teacher answers.
        task: What the student learns.
        convert: What the user says of the conversion.

    Raises:
        ConfigurationError, DataError: They cannot be.

    Example:
        >>> match_outputs(
        ...     ["stars"], ["bad", "good"], "t", teacher_task="regression", task="text-classification",
        ...     convert={"edges": [3], "spread": 0.5, "order": ["bad", "good"]},
        ... ).edges
        (3.0,)
    """
    refuse_unfit_conversion(teacher_task, task, convert, teacher)
    ours = family_of(task)
    if conversion := ours.converts.get(family_of(teacher_task).name):
        return conversion.planned(teacher_labels, student_labels, teacher, convert or {})
    return ours.match(teacher_labels, student_labels, teacher)


def refuse_unfit_conversion(
    teacher_task: str | Task, task: str | Task, convert: Mapping[str, Any] | None, teacher: str
) -> None:
    """Refuse a conversion that is none, or that says what cannot be meant.

    Args:
        teacher_task, task, convert, teacher: As for `match_outputs`.

    Raises:
        ConfigurationError: It is so.
    """
    ours, theirs = family_of(task), family_of(teacher_task)
    if convert is None:
        return
    if theirs.name not in ours.converts:
        alike = theirs.name == ours.name
        raise ConfigurationError(
            f"Teacher {teacher!r}: convert says how its {theirs.output[1]} become the student's {ours.output[1]}, but "
            + (
                f"both give {ours.output[1]}, which are matched by name: leave it out."
                if alike
                else f"there is no rule for that: teachers of {build_task(task).name} give {ours.output[1]}."
            )
        )
    check_options(convert, ours.converts[theirs.name], teacher)


def heard_alone(task: str | Task, number: int, count: int, fusion: Any = None) -> dict[str, Any]:
    """The fusion that hears one teacher only, as a recipe writes it.

    Args:
        task: What the student learns.
        number: Which teacher, counted from 0.
        count: Of how many.
        fusion: That of all teachers; where it brings them to the student's scale, the one stays on it.

    Example:
        >>> heard_alone("text-classification", 1, 2)
        {'use': 'linear_pool', 'weights': [0.0, 1.0]}
    """
    said = {"use": family_of(task).pooled, "weights": [float(k == number) for k in range(count)]}
    scales = scales_of(fusion)
    return said if scales is None else {**said, "scales": [list(pair) for pair in scales]}


def refuse_other_kind(teacher_task: str | Task, task: str | Task, teacher: str) -> None:
    """Refuse a teacher whose outputs cannot become the student's.

    Args:
        teacher_task, task, teacher: As for `match_outputs`.

    Raises:
        ConfigurationError: It is so.
    """
    ours, theirs = family_of(task), family_of(teacher_task)
    if theirs.name not in (ours.name, *ours.converts):
        raise ConfigurationError(
            f"Teacher {teacher!r} is of the task {build_task(teacher_task).name}, and there is no rule by which its {theirs.output[1]} "
            f"become the {ours.output[1]} of {build_task(task).name}: leave it out."
        )


def fits(method: Any, family: Family) -> bool:
    """Whether a method that says its ``families`` says something of these predictions; one that says none is for any.

    Example:
        >>> from hf_distill.evaluation.metrics import METRICS
        >>> fits(METRICS["f1"], family_of("multi-label-classification")), fits(METRICS["ece"], family_of("regression"))
        (True, False)
    """
    return family.name in getattr(method, "families", (family.name,))


def refuse_other_family(task: Task, *, fusion: Any = None, loss: Callable[..., Any] | None = None) -> None:
    """Refuse a fusion or a distillation loss that was made for another kind of predictions.

    Args:
        task: Whose predictions are fused and learnt.
        fusion: A fusion, or what is yet to be fitted; one that says no ``family`` is for one class of several.
        loss: A distillation loss.

    Raises:
        ConfigurationError: It is so.

    Example:
        >>> from hf_distill import LinearPool
        >>> refuse_other_family(TASKS["text-classification"], fusion=LinearPool())
    """
    own = family_of(task).name
    made = getattr(fusion, "fusion", getattr(fusion, "rule", fusion))
    if fusion is not None and _ours(made) and (other := getattr(made, "family", "categorical")) != own:
        raise ConfigurationError(
            f"The fusion {getattr(made, '__name__', type(made).__name__)} is for predictions of the family {other}, but {task.name} is "
            f"{own}: take {task.fusion}, or auto."
        )
    if loss is not None and _ours(loss) and (other := distillation_properties(loss).family) != own:
        fitting = [name for name, known in ALL_LOSSES.items() if distillation_properties(known).family == own]
        raise ConfigurationError(
            f"The distillation loss is for predictions of the family {other}, but {task.name} is {own}: take {' or '.join(fitting)}."
        )


def refuse_unfit_loss(task: Task, loss: Callable[..., Any], outputs: int) -> None:
    """Refuse a distillation loss of another family, or one that says nothing of so few classes.

    Args:
        task: Whose predictions are learnt.
        loss: The loss.
        outputs: How many the student's head has.

    Raises:
        ConfigurationError: It is so.
    """
    refuse_other_family(task, loss=loss)
    refuse_few_outputs(loss, outputs)


def _ours(method: Any) -> bool:
    """Whether it is built in, or says its family: of the user's own that says nothing, nothing is known."""
    inner = method
    while hasattr(inner, "func"):
        inner = inner.func
    own = inner if hasattr(inner, "__module__") and hasattr(inner, "__qualname__") else type(inner)
    return (
        own.__module__.startswith("hf_distill.") or hasattr(inner, "family") or hasattr(inner, "properties")
    )

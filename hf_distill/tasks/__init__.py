"""What differs between tasks: one file per task and a table; nothing else in the package asks which task it is.

A task is one frozen dataclass with the attributes and methods of `Task`, in a file of this folder, and one line in the
table below; one of a user's own is passed as an object.
"""

from __future__ import annotations

from ..lookup import build
from .task import Task
from .text_classification import TextClassification

TASKS: dict[str, Task] = {
    "text-classification": TextClassification(),
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

"""What one process finds out and all others are told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list

from .errors import HfDistillError


def once(compute: Callable[[], Any], accelerator: Accelerator | PartialState) -> Any:
    """Run on the main process; every process gets the result, or the same error of ours.

    Args:
        compute: A function of no arguments; its result can be pickled.
        accelerator: Knows the processes.

    Example:
        >>> once(lambda: 3, Accelerator(cpu=True))
        3
    """
    outcome: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            outcome = [compute()]
        except HfDistillError as error:
            outcome = [error]
    (result,) = broadcast_object_list(outcome)
    if isinstance(result, HfDistillError):
        raise result
    return result

"""What one process finds out and all others are told, and what it says once for all of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .errors import HfDistillError

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState


def process() -> int:
    """This process's number among those of the run."""
    return int(os.environ.get("RANK", "0"))


def say(text: str) -> None:
    """Print, once for all processes."""
    if process() == 0:
        print(text, flush=True)


def once(compute: Callable[[], Any], accelerator: Accelerator | PartialState) -> Any:
    """Run on the main process; every process gets the result, or the same error of ours.

    Args:
        compute: A function of no arguments; its result can be pickled.
        accelerator: Knows the processes.

    Example:
        >>> from accelerate import Accelerator
        >>> once(lambda: 3, Accelerator(cpu=True))
        3
    """
    from accelerate.utils import broadcast_object_list

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

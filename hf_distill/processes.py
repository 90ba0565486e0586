"""The processes of a run: what one finds out and tells the others, what it says once for all, and how each is ended."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

from .errors import HfDistillError

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState

PARENT = "HF_DISTILL_PARENT"
"""Names, to a process that was started for one purpose, the process it must not outlive."""

_AGAIN = 1.0
_told: list[int] = []


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


# ---- How a process is ended: SIGTERM and SIGINT are noted where work can be finished, and end it in good order elsewhere ----


class Terminated(SystemExit):
    """SIGTERM, as an exception: nothing takes it for an error, and what must be put away is."""


@dataclass
class Request:
    """Whether this process was told to stop.

    Attributes:
        number: Of the signal; 0: it was not.
        at: When it was told first.
    """

    number: int = 0
    at: float = 0.0


@contextmanager
def noted() -> Iterator[Request]:
    """Note SIGTERM and SIGINT instead of ending; a second SIGINT, a second later, interrupts at once.

    Schedulers and launchers send SIGTERM to a whole group, often beside a SIGINT: told twice is no hurry, but Ctrl-C twice is.

    Yields:
        The request, filled in by the first signal.
    """
    request = Request()

    def note(number: int, frame: FrameType | None) -> None:
        if not request.number:
            request.number, request.at = number, time.monotonic()
            _told.append(number)
            if os.environ.get("RANK", "0") == "0":
                # Not print: a signal may come while something else is printing.
                os.write(2, f"\n{signal.Signals(number).name}: the step is finished and saved.\n".encode())
        elif number == signal.SIGINT and time.monotonic() - request.at > _AGAIN:
            raise KeyboardInterrupt

    with _handled({signal.SIGTERM: note, signal.SIGINT: note}):
        yield request


def told() -> bool:
    """Whether this process has noted a signal to stop, which whoever sent it waits for: no time to linger."""
    return bool(_told)


@contextmanager
def terminated() -> Iterator[None]:
    """Make SIGTERM, which schedulers send, an exception: left to itself it ends this process and puts nothing away.

    Raises:
        Terminated: It came.
    """

    def end(number: int, frame: FrameType | None) -> None:
        raise Terminated(128 + number)

    with _handled({signal.SIGTERM: end}):
        yield


def end_with_parent() -> None:
    """End this process when the one that `PARENT` names is gone, however that ended; without it do nothing.

    A thread looks, since a parent that is killed tells nobody.
    """
    parent = os.environ.pop(PARENT, "")
    if not parent.isdigit() or not hasattr(os, "getppid"):
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="ends with its parent", daemon=True).start()


@contextmanager
def _handled(handlers: dict[int, Callable[[int, FrameType | None], Any]]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # no other thread may say what a signal does
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(
                number, handler or signal.SIG_DFL
            )  # None: a library's own, which cannot be put back

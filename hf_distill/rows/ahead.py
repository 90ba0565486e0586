"""Work that is done before it is asked for, by a thread beside the one that asks."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

Made = TypeVar("Made")

_IDLE = 1.0


class SideThread:
    """A thread that does one job after the other, in their order.

    It begins with the first job and ends when it is closed, and without that after a second in which it was given nothing:
    whatever becomes of those who asked, no thread is left behind.

    Args:
        name: Of the thread.

    Example:
        >>> side = SideThread("adds")
        >>> side.submit(lambda: 1 + 1).result()
        2
        >>> side.close()
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, job: Callable[[], Made]) -> Future[Made]:
        """Have a job done.

        Args:
            job: A function of no arguments.

        Returns:
            What becomes of it: its result, or the error that it raised.
        """
        future: Future[Made] = Future()
        with self._changed:
            assert not self._closed, "it is closed"
            self._jobs.append((future, job))
            if self._thread is None or not self._thread.is_alive():  # not: in a forked process
                self._thread = threading.Thread(target=self._work, name=self._name)
                self._thread.start()
            self._changed.notify()
        return future

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._jobs and not self._closed:
                    self._changed.wait(_IDLE)
                if not self._jobs:
                    self._thread = None
                    return
                future, job = self._jobs.popleft()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(job())
                except BaseException as error:  # raised where the result is asked for
                    future.set_exception(error)
            del future, job  # what was made belongs to who asked for it, not to a thread that waits

    def close(self, *, finish: bool = False) -> None:
        """End the thread, after the job that it is doing.

        Args:
            finish: Whether the jobs that it was given are done before; else they are cancelled.
        """
        with self._changed:
            self._closed = True
            if not finish:
                for future, _ in self._jobs:
                    future.cancel()
                self._jobs.clear()
            thread = self._thread
            self._changed.notify()
        if thread is not None:
            thread.join()


def made_ahead(jobs: Iterable[Callable[[], Made]], ahead: int, name: str) -> Iterator[Made]:
    """What jobs make, in their order, while a thread does those that come next.

    The jobs are drawn by the thread that asks, so whatever decides them sees one thread. An error comes at its place in
    the order: what was to be made before it is given out first.

    Args:
        jobs: Functions of no arguments.
        ahead: How many are done before they are asked for.
        name: Of the thread.

    Example:
        >>> import functools
        >>> list(made_ahead((functools.partial(pow, i, 2) for i in range(4)), 2, "squares"))
        [0, 1, 4, 9]
    """
    side, drawn, waiting = SideThread(name), iter(jobs), deque[Future[Made]]()
    ended, failed = False, None
    try:
        while True:
            while not ended and len(waiting) <= ahead:
                try:
                    waiting.append(side.submit(next(drawn)))
                except StopIteration:
                    ended = True
                except Exception as error:  # not what ends the process
                    ended, failed = True, error
            if not waiting:
                break
            yield waiting.popleft().result()
        if failed is not None:
            raise failed
    finally:
        side.close()
        getattr(drawn, "close", lambda: None)()  # what draws may itself have a thread

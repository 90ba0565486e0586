"""Work in a process that is forked from a warm one, so that killing many costs no imports."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from tqdm.std import tqdm


def _all(kind: type) -> Iterator[type]:
    yield kind
    for own in kind.__subclasses__():
        yield from _all(own)


def started(work: Callable[[], Any]) -> int:
    """Run in a forked process, and go on meanwhile; returns its number."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 99
        # tqdm's lock is one for a process and all its children: who is killed while he holds it would stop all others.
        lock = threading.RLock()
        for bar in _all(tqdm):
            bar.set_lock(lock)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                work()
            code = 0
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)
    return child


def forked(work: Callable[[], Any]) -> int:
    """Run in a forked process to its end; returns its exit code, negative after a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(started(work), 0)[1])

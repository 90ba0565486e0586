"""Work done ahead: in order, errors at their place, and no thread left behind."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from hf_distill.processes import Terminated, terminated
from hf_distill.rows.ahead import SideThread, made_ahead


def threads(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


def waited(until, seconds: float = 5.0) -> bool:
    """Whether something comes true soon."""
    end = time.monotonic() + seconds
    while not until() and time.monotonic() < end:
        time.sleep(0.01)
    return until()


def test_made_in_order_ahead_and_only_so_far():
    drawn, made = [], []

    def jobs():
        for i in range(6):
            drawn.append((i, threading.current_thread().name))
            yield lambda i=i: made.append(i) or (i, threading.current_thread().name)

    results = made_ahead(jobs(), 2, "makes")
    assert next(results) == (0, "makes")
    assert waited(lambda: made == [0, 1, 2])
    # Whoever asks draws, so that what decides the jobs sees one thread.
    assert drawn == [(i, "MainThread") for i in range(3)]
    assert [i for i, _ in results] == [1, 2, 3, 4, 5] and not threads("makes")


@pytest.mark.parametrize("where", ["drawing", "making"])
def test_an_error_comes_at_its_place_and_ends_the_thread(where):
    def jobs():
        yield lambda: 1
        yield lambda: 2
        if where == "drawing":
            raise ValueError("third")
        yield lambda: {}["third"]
        yield lambda: pytest.fail("nothing is made after it")

    found = []
    with pytest.raises((ValueError, KeyError), match="third"):
        for result in made_ahead(jobs(), 0 if where == "making" else 3, "fails"):
            found.append(result)
    assert found == [1, 2] and not threads("fails")


def test_who_breaks_off_leaves_no_thread_and_no_job():
    def jobs():
        try:
            yield from (lambda i=i: i for i in range(100))
        finally:
            closed.append(True)

    closed: list[bool] = []
    results = made_ahead(jobs(), 2, "broken off")
    next(results)
    results.close()
    assert closed == [True] and not threads("broken off")


def test_a_thread_without_work_ends_by_itself_and_begins_again():
    side = SideThread("idles")
    assert side.submit(lambda: 1).result() == 1 and threads("idles")
    assert waited(lambda: not threads("idles"))
    assert side.submit(lambda: 2).result() == 2
    with pytest.raises(ZeroDivisionError):
        side.submit(lambda: 1 / 0).result()
    side.close()
    assert not threads("idles")


def test_closed_it_finishes_what_it_was_given_or_leaves_it():
    for finish in (True, False):
        side, done = SideThread("closes"), []
        begun, go = threading.Event(), threading.Event()
        side.submit(lambda begun=begun, go=go: begun.set() or go.wait(5))
        later = side.submit(lambda done=done: done.append(1))
        begun.wait(5)
        threading.Timer(0.05, go.set).start()
        side.close(finish=finish)
        assert done == [1] * finish and later.cancelled() != finish


def test_sigterm_is_not_waited_with_until_the_job_is_done():
    go = threading.Event()
    with pytest.raises(Terminated), terminated():
        threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
        threading.Timer(1.0, go.set).start()
        for _ in made_ahead([lambda: go.wait(5)], 1, "waits"):
            pytest.fail("it was told to end before")
    assert not threads("waits")


def test_a_forked_process_has_a_thread_of_its_own():
    side = SideThread("forks")
    side.submit(lambda: None).result()
    child = os.fork()
    if child == 0:
        os._exit(side.submit(lambda: 7).result())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    side.close()

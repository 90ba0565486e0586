"""How long calls take beside each other: in turns, so that whatever else the machine does slows all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


def take_turns(
    calls: Mapping[str, Callable[[], Any]], *, rounds: int, seconds: float = 10.0
) -> dict[str, list[float]]:
    """Time some calls, one after the other in every round.

    Args:
        calls: By name, without arguments.
        rounds: How many rounds at most, after one that warms up and does not count.
        seconds: No further round begins after this.

    Returns:
        Seconds of each round by name; at least one round.

    Example:
        >>> {name: len(times) for name, times in take_turns({"a": list, "b": dict}, rounds=3).items()}
        {'a': 3, 'b': 3}
    """
    begun, times = time.perf_counter(), {name: [] for name in calls}
    for counted in range(rounds + 1):
        for name, call in calls.items():
            _finish()
            start = time.perf_counter()
            call()
            _finish()
            if counted:
                times[name].append(time.perf_counter() - start)
        if counted and time.perf_counter() - begun > seconds:
            break
    return times


def _finish() -> None:
    # A device works on after the call has returned.
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()

"""How long calls take beside each other: in turns, so that whatever else the machine does slows all of them alike.

Shapes: B rows of a batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

Row = TypeVar("Row")

Inputs = Mapping[str, Tensor]
"""Of one forward: tensors by name, each with B rows."""

_MOST_ROWS = 256
# Calls before those that count: allocators, caches and the choice of kernels settle.
_WARM_UP = 3
# As many times are enough for a median and a 95th percentile; of a slow model there are at least a few.
_MOST, _LEAST = 400, 5
# Of the time that one call has: long enough that the next one finds no cache or thread of the one before it in use.
_STRETCH = 0.02


class Pace(NamedTuple):
    """How fast rows are answered.

    Attributes:
        singles: Seconds of each single row, in the order of the rows.
        throughput: Rows per second in batches of B.
    """

    singles: tuple[float, ...]
    throughput: float


def time_rows(
    calls: Mapping[str, Callable[[Inputs], Any]],
    singles: Sequence[Inputs],
    batches: Sequence[Inputs],
    *,
    seconds: float,
    show: bool = False,
) -> dict[str, Pace]:
    """Time forwards on rows, and where there are several in turns, a stretch of rows each.

    Args:
        calls: The forwards, by name.
        singles: Inputs of one row each, every one taken once at most.
        batches: Inputs of B rows each, taken again and again; the last may have fewer.
        seconds: About how long each forward is timed, half of it on single rows; a slow one on a few at least.
        show: Whether a bar shows the time left.

    Example:
        >>> rows = [{"input_ids": torch.ones(1, 4)}] * 6
        >>> paces = time_rows({"a": len, "b": len}, rows, rows, seconds=0.1)
        >>> list(paces), len(paces["b"].singles), paces["a"].throughput > 0
        (['a', 'b'], 6, True)
    """
    line = "{l_bar}{bar}| {elapsed}<{remaining}"
    with tqdm(
        total=seconds * len(calls), desc="Timing", bar_format=line, leave=False, disable=not show
    ) as bar:
        ones = _turns(calls, singles, seconds / 2, bar, most=min(_MOST, len(singles)))
        whole = _turns(calls, batches, seconds / 2, bar, most=_MOST)
    sizes = [len(next(iter(inputs.values()))) for inputs in batches]
    return {
        name: Pace(
            tuple(ones[name]), sum(sizes[i % len(sizes)] for i in range(len(whole[name]))) / sum(whole[name])
        )
        for name in calls
    }


def _turns(
    calls: Mapping[str, Callable[[Inputs], Any]],
    inputs: Sequence[Inputs],
    seconds: float,
    bar: Any,
    *,
    most: int,
) -> dict[str, list[float]]:
    """Times of the same inputs by name, until each call has had its seconds; a few that warm up do not count.

    The bar, in seconds, moves between the stretches, so that it is in nobody's time.
    """
    share, shown = seconds * len(calls), 0.0
    for call in calls.values():
        _timed(call, [inputs[0]] * _WARM_UP, seconds / 2)
    begun, times = time.perf_counter(), {name: [] for name in calls}
    done = 0
    while done < most and (done < _LEAST or time.perf_counter() - begun < share):
        stretch = [inputs[i % len(inputs)] for i in range(done, most)]
        # The first call says how many rows a stretch has; the others take the same.
        limit = _STRETCH * seconds
        for name, call in calls.items():
            found = _timed(call, stretch, limit)
            times[name] += found
            stretch, limit = stretch[: len(found)], math.inf
        done += len(stretch)
        now = min(share, time.perf_counter() - begun)
        bar.update(now - shown)
        shown = now
    bar.update(share - shown)
    return times


def _timed(call: Callable[[Inputs], Any], inputs: Sequence[Inputs], limit: float) -> list[float]:
    """Seconds of each input, until they are more than the limit."""
    times: list[float] = []
    for one in inputs:
        _finish()
        start = time.perf_counter()
        call(one)
        _finish()
        times.append(time.perf_counter() - start)
        if sum(times) > limit:
            break
    return times


def timed_rows(rows: Iterable[Row], most: int = _MOST_ROWS) -> list[Row]:
    """Rows to time on, evenly from all of them, in an order that mixes lengths.

    Example:
        >>> timed_rows(["a", "b", "c", "d"], 2)
        ['a', 'c']
    """
    given = list(rows)
    return given[:: max(1, -(-len(given) // most))]


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

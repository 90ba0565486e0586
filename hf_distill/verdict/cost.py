"""What an answer costs: size, latency of single rows, throughput of batches, measured on this machine, one model at a time.

Shapes: B rows of a batch.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..views import TokenView, named_inputs
from .figures import Cost
from .systems import ENSEMBLE, STUDENT, TEACHER, TOGETHER

SECONDS = 5.0
"""About how long one model is measured."""

BATCH_SIZE = 32
"""B of the throughput."""

_MOST_ROWS = 256
# Forwards before those that count: allocators, caches and the choice of kernels settle.
_WARM_UP = 3
# As many latencies are enough for a median and a 95th percentile; of a slow model there are at least a few.
_MOST, _LEAST = 400, 5


class Timing(NamedTuple):
    """What one model took.

    Attributes:
        singles: Seconds of each single row, in the order of the rows, which is the same for every model.
        throughput: Rows per second in batches of B.
        parameters: How many.
        bytes: Of parameters and buffers.
    """

    singles: tuple[float, ...]
    throughput: float
    parameters: int
    bytes: int


def time_model(
    model: PreTrainedModel,
    view: TokenView,
    texts: Sequence[Sequence[str]],
    *,
    device: torch.device,
    batch_size: int = BATCH_SIZE,
    seconds: float = SECONDS,
) -> Timing:
    """Measure a model's forward on real rows, without tokenizing, in the type of its weights.

    Args:
        model: Moved to the device, and back afterwards.
        view: How it reads text.
        texts: Rows of one text, or two for pairs; as many single rows as the time allows are taken from the front.
        device: Where it runs.
        batch_size: B of the throughput.
        seconds: Half of it for single rows, half for batches; a model that is slower is measured a few times.

    Example:
        >>> timing = time_model(
        ...     bert, TokenView(bert_tokenizer, 32), [["a fine film"]] * 4, device=torch.device("cpu"), seconds=0.1
        ... )
        >>> timing.parameters == bert.num_parameters(), min(timing.singles) > 0
        (True, True)
    """
    home, training = next(model.parameters()).device, model.training
    model.to(device).eval()
    known = named_inputs(model)

    def batches(size: int) -> list[dict[str, Tensor]]:
        return [dict(_collate(view, texts[i : i + size], known, device)) for i in range(0, len(texts), size)]

    try:
        with torch.inference_mode():
            run = _timed(model, device)
            singles = list(_measured(run, batches(1), seconds / 2, most=min(_MOST, len(texts))))
            whole = batches(batch_size)
            taken = list(_measured(run, whole, seconds / 2, most=_MOST))
    finally:
        model.to(home).train(training)
    rows = sum(next(iter(whole[i % len(whole)].values())).shape[0] for i in range(len(taken)))
    size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    return Timing(tuple(singles), rows / sum(taken), model.num_parameters(), size)


def _collate(
    view: TokenView, texts: Sequence[Sequence[str]], known: frozenset[str], device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    encoded = view.encode(list(zip(*texts, strict=True)))
    rows = [{key: values[i] for key, values in encoded.items()} for i in range(len(texts))]
    inputs = view.collate(rows, torch.zeros(len(rows), dtype=torch.int64))
    return ((key, value.to(device)) for key, value in inputs.items() if key in known)


def _timed(model: PreTrainedModel, device: torch.device) -> Callable[[Mapping[str, Tensor]], float]:
    def run(inputs: Mapping[str, Tensor]) -> float:
        _finish(device)
        began = time.perf_counter()
        model(**inputs)
        _finish(device)
        return time.perf_counter() - began

    return run


def _finish(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _measured(
    run: Callable[[Mapping[str, Tensor]], float],
    inputs: Sequence[Mapping[str, Tensor]],
    seconds: float,
    *,
    most: int,
) -> Iterator[float]:
    """Times of the inputs in turn, until the time is over; a few that warm up do not count."""
    began = time.perf_counter()
    for _ in range(_WARM_UP):
        run(inputs[0])
        if time.perf_counter() - began > seconds / 2:
            break
    began = time.perf_counter()
    for i, batch in enumerate(itertools.islice(itertools.cycle(inputs), most)):
        if i >= min(_LEAST, most) and time.perf_counter() - began > seconds:
            break
        yield run(batch)


def measure_costs(
    student: Callable[[], Timing],
    teachers: Mapping[str, Callable[[], Timing]],
    *,
    show: bool = True,
) -> dict[str, Cost]:
    """Time student and teachers, one after another, and add up what ensembles cost.

    An ensemble's latency of a row is the sum of its teachers', which take turns on one device.

    Args:
        student: Times the student.
        teachers: By name.
        show: Whether a bar shows how far it is.

    Example:
        >>> costs = measure_costs(
        ...     lambda: Timing((1.0, 3.0), 2.0, 10, 40), {"a": lambda: Timing((2.0, 2.0), 1.0, 100, 400)}, show=False
        ... )
        >>> costs["student+teachers"].p50, costs["student+teachers"].throughput
        (4.0, 0.6666666666666666)
    """
    waiting = {STUDENT: student, **{f"{TEACHER}{name}": timing for name, timing in teachers.items()}}
    bar = tqdm(waiting.items(), desc="Timing models", leave=False, disable=None if show else True)
    timings = {name: timing() for name, timing in bar}
    costs = {name: _cost([timing]) for name, timing in timings.items()}
    each = [timings[f"{TEACHER}{name}"] for name in teachers]
    if each:
        costs[ENSEMBLE] = _cost(each)
        costs[TOGETHER] = _cost([timings[STUDENT], *each])
    return costs


def _cost(timings: Sequence[Timing]) -> Cost:
    rows = min(len(timing.singles) for timing in timings)
    together = np.sum([timing.singles[:rows] for timing in timings], axis=0)
    return Cost(
        sum(timing.parameters for timing in timings),
        sum(timing.bytes for timing in timings),
        float(np.quantile(together, 0.5)),
        float(np.quantile(together, 0.95)),
        1 / sum(1 / timing.throughput for timing in timings),
    )


def timed_rows(texts: Iterable[Sequence[str]], most: int = _MOST_ROWS) -> list[Sequence[str]]:
    """Rows to time on, evenly from all of them, in an order that mixes lengths.

    Example:
        >>> timed_rows([["a"], ["b"], ["c"], ["d"]], 2)
        [['a'], ['c']]
    """
    rows = list(texts)
    return rows[:: max(1, -(-len(rows) // most))]


def conditions(device: torch.device, split: str, rows: int, batch_size: int = BATCH_SIZE) -> str:
    """Under what was measured, as a sentence.

    Example:
        >>> conditions(torch.device("cpu"), "test", 64).split(", ")[-2]
        'over up to 64 test rows'
    """
    where = (
        f"cpu with {torch.get_num_threads()} thread(s), {os.cpu_count()} cores"
        if device.type == "cpu"
        else f"{torch.cuda.get_device_name(device) if device.type == 'cuda' else device}"
    )
    return (
        f"Forwards alone, without tokenizing, on {where}: latency of single rows, throughput of batches of {batch_size}, "
        f"over up to {rows} {split} rows, weights in the type they are stored in. An ensemble's teachers take turns."
    )


def busy(load: float | None = None, cores: int | None = None) -> str:
    """Why latencies should not be trusted: other programs want the cores too. Empty where they may.

    Args:
        load: How many processes want to run; None: the machine's average over the last minute.
        cores: How many can; None: the machine's.

    Example:
        >>> busy(load=2.0, cores=2)
        ''
    """
    cores = cores or os.cpu_count() or 1
    if load is None:
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    # What this run did itself before the timing is part of the load, so that a little more than the cores is no sign.
    if load <= 1.5 * cores:
        return ""
    return (
        f"The machine was busy with other work while models were timed (load {load:.1f} on {cores} cores): latencies are "
        "longer than they need be and do not compare well, so the verdict names none."
    )

"""What an answer costs: size, latency of single rows, throughput of batches, measured on this machine, one model at a time.

Shapes: B rows of a batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..evaluation.timing import time_rows
from ..rows.views import TokenView, named_inputs
from .numbers import Cost
from .systems import ENSEMBLE, STUDENT, TEACHER, TOGETHER

SECONDS = 5.0
"""About how long one model is measured."""

BATCH_SIZE = 32
"""B of the throughput."""


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
            forward = {"": lambda inputs: model(**inputs)}
            pace = time_rows(forward, batches(1), batches(batch_size), seconds=seconds)[""]
    finally:
        model.to(home).train(training)
    size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    return Timing(pace.singles, pace.throughput, model.num_parameters(), size)


def _collate(
    view: TokenView, texts: Sequence[Sequence[str]], known: frozenset[str], device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    encoded = view.encode(list(zip(*texts, strict=True)))
    rows = [{key: values[i] for key, values in encoded.items()} for i in range(len(texts))]
    inputs = view.collate(rows, torch.zeros(len(rows), dtype=torch.int64))
    return ((key, value.to(device)) for key, value in inputs.items() if key in known)


def measure_costs(
    student: Callable[[], Timing],
    teachers: Mapping[str, Callable[[], Timing | None]],
    *,
    show: bool = True,
) -> dict[str, Cost]:
    """Time student and teachers, one after another, and add up what ensembles cost.

    An ensemble's latency of a row is the sum of its teachers', which take turns on one device.

    Args:
        student: Times the student.
        teachers: By name; of one that returns None nothing is known, and nothing of the ensemble.
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
    timings = {name: made for name, timing in bar if (made := timing()) is not None}
    costs = {name: _cost([timing]) for name, timing in timings.items()}
    each = [timings[name] for name in waiting if name in timings and name != STUDENT]
    if each and len(each) == len(teachers):
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


def conditions(device: torch.device, split: str, rows: int, batch_size: int = BATCH_SIZE) -> str:
    """Under what was measured, as a sentence.

    Example:
        >>> conditions(torch.device("cpu"), "test", 64).split(", ")[-2]
        'over up to 64 test rows'
    """
    return (
        f"Forward passes alone, without tokenizing, on {place(device)}: latency of single rows, throughput of batches of {batch_size}, "
        f"over up to {rows} {split} rows, weights in the type they are stored in. An ensemble's teachers take turns."
    )


def place(device: torch.device) -> str:
    """Where a model runs, as precisely as latencies need it.

    Example:
        >>> place(torch.device("cpu")).startswith("cpu with 1 thread(s), ")
        True
    """
    if device.type == "cpu":
        return f"cpu with {torch.get_num_threads()} thread(s), {os.cpu_count()} cores"
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def busy(load: float | None = None, cores: int | None = None) -> str:
    """Why latencies should not be trusted: other programs want the cores too. Empty where they may.

    Args:
        load: How many processes want to run; None: the machine's average over the last minute.
        cores: How many can; None: the machine's.

    Example:
        >>> busy(load=2.0, cores=2)
        ''
    """
    much = overload(load, cores)
    if not much:
        return ""
    return (
        f"The machine was busy with other work while models were timed ({much}): latencies are longer than they need be and "
        "do not compare well, so the verdict names none."
    )


def overload(load: float | None = None, cores: int | None = None) -> str:
    """How many processes want how many cores, where that is too many; the arguments are those of `busy`.

    Example:
        >>> overload(load=5.0, cores=2), overload(load=2.0, cores=2)
        ('load 5.0 on 2 cores', '')
    """
    cores = cores or os.cpu_count() or 1
    if load is None:
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    # What this run did itself before the timing is part of the load, so that a little more than the cores is no sign.
    return f"load {load:.1f} on {cores} cores" if load > 1.5 * cores else ""

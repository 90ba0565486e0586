"""What an answer costs: size, latency of single rows, throughput of batches, measured on this machine.

Calls are timed beside each other in turns, so that whatever else the machine does slows all of them alike.

Shapes: B rows of a batch, L tokens of a row.
"""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..markdown import markdown_table
from ..rows.views import View, named_inputs, position_limit, text_batches
from ..teachers.teacher import Teacher, TeacherSource

Row = TypeVar("Row")

Inputs = Mapping[str, Tensor]
"""Of one forward: tensors by name, each with B rows."""

SECONDS = 5.0
"""About how long one model is measured."""

BATCH_SIZE = 32
"""B of the throughput."""

_MOST_ROWS = 256
# Calls before those that count: allocators, caches and the choice of kernels settle.
_WARM_UP = 3
# As many times are enough for a median and a 95th percentile; of a slow model there are at least a few.
_MOST, _LEAST = 400, 5
# Of the time that one call has: long enough that the next one finds no cache or thread of the one before it in use.
_STRETCH = 0.02
# Of an image, where a model does not say.
_USUAL_SIDE = 224
# No further round begins after this: a large teacher on a slow machine must not hold up a training.
_ROUNDS_SECONDS = 10.0


class Cost(NamedTuple):
    """What a system costs per answer; None where that is not known.

    Attributes:
        parameters: How many.
        bytes: Of the weights in memory.
        p50, p95: Median and 95th percentile of the latency of one row.
        throughput: Rows per second in batches.
    """

    parameters: int | None = None
    bytes: int | None = None
    p50: float | None = None
    p95: float | None = None
    throughput: float | None = None


class Pace(NamedTuple):
    """How fast rows are answered.

    Attributes:
        singles: Seconds of each single row, in the order of the rows.
        throughput: Rows per second in batches of B.
    """

    singles: tuple[float, ...]
    throughput: float


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


def take_turns(
    calls: Mapping[str, Callable[[Inputs], Any]],
    inputs: Sequence[Inputs],
    *,
    seconds: float,
    most: int = _MOST,
    least: int = _LEAST,
    bar: Any = None,
) -> dict[str, list[float]]:
    """Time calls on the same inputs in turns, a stretch of inputs each, until each call has had its seconds.

    Args:
        calls: By name.
        inputs: What they are called with, again and again.
        seconds: About how long each call is timed; a few calls that warm up do not count.
        most: Times of each call at most.
        least: Times of each call that are taken however slow it is.
        bar: Of tqdm, in seconds; it moves between the stretches, so that it is in nobody's time.

    Returns:
        Seconds of each input by the call's name, as many for every call.

    Example:
        >>> times = take_turns({"a": len, "b": len}, [{}], seconds=0.1, most=3)
        >>> {name: len(own) for name, own in times.items()}
        {'a': 3, 'b': 3}
    """
    share, shown, done = seconds * len(calls), 0.0, 0
    for call in calls.values():
        _timed(call, [inputs[0]] * _WARM_UP, seconds / 2)
    begun, times = time.perf_counter(), {name: [] for name in calls}
    while done < most and (done < least or time.perf_counter() - begun < share):
        stretch = [inputs[i % len(inputs)] for i in range(done, most)]
        # The first call says how many rows a stretch has; the others take the same.
        limit = _STRETCH * seconds
        for name, call in calls.items():
            found = _timed(call, stretch, limit)
            times[name] += found
            stretch, limit = stretch[: len(found)], math.inf
        done += len(stretch)
        if bar is not None:
            now = min(share, time.perf_counter() - begun)
            bar.update(now - shown)
            shown = now
    if bar is not None:
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


def _finish() -> None:
    # A device works on after the call has returned.
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def rows_per_second(times: Sequence[float], inputs: Sequence[Inputs]) -> float:
    """The throughput of inputs that were taken again and again, as `take_turns` does.

    Example:
        >>> rows_per_second([0.5, 0.5, 1.0], [{"ids": torch.ones(4, 2)}, {"ids": torch.ones(2, 2)}])
        5.0
    """
    sizes = [len(next(iter(own.values()))) for own in inputs]
    return sum(sizes[i % len(sizes)] for i in range(len(times))) / sum(times)


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
        ones = take_turns(calls, singles, seconds=seconds / 2, most=min(_MOST, len(singles)), bar=bar)
        whole = take_turns(calls, batches, seconds=seconds / 2, bar=bar)
    return {name: Pace(tuple(ones[name]), rows_per_second(whole[name], batches)) for name in calls}


def timed_rows(rows: Iterable[Row], most: int = _MOST_ROWS) -> list[Row]:
    """Rows to time on, evenly from all of them, in an order that mixes lengths.

    Example:
        >>> timed_rows(["a", "b", "c", "d"], 2)
        ['a', 'c']
    """
    given = list(rows)
    return given[:: max(1, -(-len(given) // most))]


def time_model(
    model: PreTrainedModel,
    view: View,
    texts: Sequence[Sequence[Any]],
    *,
    device: torch.device,
    batch_size: int = BATCH_SIZE,
    seconds: float = SECONDS,
) -> Timing:
    """Measure a model's forward on real rows, without what its view does, in the type of its weights.

    Args:
        model: Moved to the device, and back afterwards.
        view: How it reads rows.
        texts: Rows of content as the view takes it, one text, or two for pairs; as many single rows as the time allows are taken from the front.
        device: Where it runs.
        batch_size: B of the throughput.
        seconds: Half of it for single rows, half for batches; a model that is slower is measured a few times.

    Example:
        >>> from hf_distill.rows.views import TokenView
        >>> timing = time_model(
        ...     bert, TokenView(bert_tokenizer, 32), [["a fine film"]] * 4, device=torch.device("cpu"), seconds=0.1
        ... )
        >>> timing.parameters == bert.num_parameters(), min(timing.singles) > 0
        (True, True)
    """
    known, columns = named_inputs(model), list(zip(*texts, strict=True))
    singles, batches = (
        [
            {key: batch[key].to(device) for key in batch if key in known}
            for batch in text_batches(view, columns, size)
        ]
        for size in (1, batch_size)
    )
    with evaluating(model, device):
        pace = time_rows({"": lambda inputs: forward(model, inputs)}, singles, batches, seconds=seconds)[""]
    return Timing(pace.singles, pace.throughput, model.num_parameters(), weight_bytes(model))


@contextlib.contextmanager
def evaluating(model: nn.Module, device: torch.device | None = None) -> Iterator[None]:
    """Switch a model and all in it to evaluation mode, and each back to the mode it was in at the end.

    Args:
        model: The model.
        device: Where it is to be meanwhile; None: where it is.
    """
    home, modes = next(model.parameters()).device, [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        if device is not None:
            model.to(device)
        yield
    finally:
        if device is not None:
            model.to(home)
        for module, training in modes:
            module.training = training


def forward(model: PreTrainedModel, inputs: Inputs) -> None:
    """A model's forward in inference mode, for what it takes."""
    with torch.inference_mode():
        model(**inputs)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers, as they are in memory."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def made_inputs(model: PreTrainedModel, batch_size: int, length: int) -> dict[str, Tensor]:
    """A batch of the model's kind, where the model is: (B, L) tokens, or (B, channels, height, width) pixels.

    Args:
        model: The model.
        batch_size: B.
        length: L; less where the model has fewer positions.
    """
    config, device, known = model.config, next(model.parameters()).device, named_inputs(model)
    if "pixel_values" in known:
        size = getattr(config, "image_size", None) or _USUAL_SIDE  # a net of convolutions takes any
        sides = size if isinstance(size, (list, tuple)) else [size] * 2
        channels = getattr(config, "num_channels", 3)
        return {"pixel_values": torch.zeros(batch_size, channels, *sides, device=device)}
    # Any token will do that is no padding, which positions and heads skip.
    token = next(i for i in range(config.vocab_size) if i != config.pad_token_id)
    tokens = torch.full((batch_size, min(length, position_limit(model) or length)), token, device=device)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return {name: value for name, value in inputs.items() if name in known}


def describe_student(
    student: PreTrainedModel,
    teachers: Sequence[TeacherSource],
    *,
    batch_size: int = 8,
    length: int = 64,
    rounds: int = 5,
) -> str:
    """A Markdown table of parameters, bytes, and how much faster the student's forward is than each teacher's.

    Student and teacher take turns on batches of the same shape, on the student's device and in inference mode. The
    figures are medians over the rounds, for the speed-up of each round's ratio; they hold for this machine, now.

    Args:
        student: The student.
        teachers: The teachers; one whose model is not in memory, such as a cached one, is not measured.
        batch_size: B.
        length: L; less where a model has fewer positions. Models of images get images of their own size.
        rounds: How often each pair takes turns at most, after some that warm up and do not count.

    Example:
        >>> print(describe_student(student, [teacher], batch_size=2, length=8, rounds=1))
        | model   | parameters | bytes  | forward | student is faster |
        |---------|------------|--------|---------|-------------------|
        | student | ...
        | bert    | ...
        <BLANKLINE>
        Forward of batches of 2 x 8 on cpu, ... thread(s), in inference mode: medians of 1 round(s) in turns.
    """
    models = [student, *(teacher.model for teacher in teachers if isinstance(teacher, Teacher))]
    length = min(length, *(position_limit(model) or length for model in models))
    rows, own, least = [], [], rounds
    for teacher in teachers:
        parameters = getattr(teacher, "num_parameters", None)
        cells = [teacher.name, "–" if parameters is None else f"{parameters:,}", "–", "–", "–"]
        if isinstance(teacher, Teacher):
            pair = {"student": student, "teacher": teacher.model}
            with evaluating(student), evaluating(teacher.model, student.device):
                ours, theirs = forwards_in_turns(pair, batch_size, length, rounds=rounds).values()
            own, least = own + ours, min(least, len(ours))
            faster = statistics.median(slow / fast for fast, slow in zip(ours, theirs, strict=True))
            cells[2:] = [f"{weight_bytes(teacher.model):,}", _milliseconds(theirs), f"{faster:.1f} x"]
        rows.append(cells)
    first = [
        *("student", f"{student.num_parameters():,}", f"{weight_bytes(student):,}"),
        *(_milliseconds(own) if own else "–", ""),
    ]
    table = markdown_table(["model", "parameters", "bytes", "forward", "student is faster"], [first, *rows])
    if not own:
        return table
    return (
        f"{table}\n\nForward of batches of {batch_size} x {length} on {device_name(student.device)}, in inference mode: "
        f"medians of {least} round(s) in turns."
    )


def forwards_in_turns(
    models: Mapping[str, PreTrainedModel], batch_size: int, length: int, *, rounds: int
) -> dict[str, list[float]]:
    """Seconds of the models' forwards on `made_inputs`, in turns, by name.

    Args:
        models: In evaluation mode, by name.
        batch_size: B.
        length: L at most.
        rounds: How often each is timed at most; once at least, and no further round begins after ten seconds.
    """

    def call(model: PreTrainedModel) -> Callable[[Inputs], None]:
        batch = made_inputs(model, batch_size, length)
        return lambda _: forward(model, batch)

    calls = {name: call(model) for name, model in models.items()}
    return take_turns(calls, [{}], seconds=_ROUNDS_SECONDS / len(calls), most=rounds, least=1)


def _milliseconds(seconds: Sequence[float]) -> str:
    return f"{1000 * statistics.median(seconds):.1f} ms"


def measure_costs(
    timings: Mapping[str, Callable[[], Timing | None]],
    together: Mapping[str, Sequence[str]],
    *,
    show: bool = True,
) -> dict[str, Cost]:
    """Time systems, one after another, and add up what those cost that ask several of them.

    The latency of a row is then the sum of theirs, as they take turns on one device.

    Args:
        timings: Time each system, by name; of one that returns None nothing is known, nor of those that ask it.
        together: Whom a system asks, by its name; one that asks nobody is left out.
        show: Whether a bar shows how far it is.

    Example:
        >>> costs = measure_costs(
        ...     {"student": lambda: Timing((1.0, 3.0), 2.0, 10, 40), "a": lambda: Timing((2.0, 2.0), 1.0, 100, 400)},
        ...     {"student+teachers": ["student", "a"]}, show=False
        ... )
        >>> costs["student+teachers"].p50, costs["student+teachers"].throughput
        (4.0, 0.6666666666666666)
    """
    bar = tqdm(timings.items(), desc="Timing models", leave=False, disable=None if show else True)
    made = {name: found for name, timing in bar if (found := timing()) is not None}
    asked = {name: [name] for name in made}
    asked |= {name: list(of) for name, of in together.items() if of and set(of) <= made.keys()}
    return {name: _cost([made[one] for one in of]) for name, of in asked.items()}


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


def device_name(device: torch.device) -> str:
    """What a device is called where a rough figure was measured.

    Example:
        >>> device_name(torch.device("cpu")).startswith("cpu, ")
        True
    """
    if device.type == "cpu":
        return f"cpu, {torch.get_num_threads()} thread(s)"
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def place(device: torch.device) -> str:
    """Where a model runs, as precisely as latencies need it.

    Example:
        >>> place(torch.device("cpu"))  # doctest: +ELLIPSIS
        'cpu with 1 thread(s), ... cores'
    """
    return (
        f"cpu with {torch.get_num_threads()} thread(s), {os.cpu_count()} cores"
        if device.type == "cpu"
        else device_name(device)
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

"""How every benchmark measures: interleaved rounds in one run, medians, ratios within a round, the machine."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

Action = Callable[[], object]


class Seconds(NamedTuple):
    """What an action took.

    Attributes:
        wall: By the clock.
        cpu: Of processors, over all threads of the process: what a busy machine disturbs least.
    """

    wall: float
    cpu: float


Times = dict[str, list[Seconds]]


def arguments(description: str) -> argparse.Namespace:
    """The options every benchmark has; sets threads and silences progress bars before torch is used."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, after one that is not")
    parser.add_argument("--quick", action="store_true", help="little data and two rounds: whether it runs")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch on the CPU")
    options = parser.parse_args()
    if options.quick:
        options.rounds = min(options.rounds, 2)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    import torch
    import transformers

    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here")
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return options


def interleaved(actions: Mapping[str, Action], options: argparse.Namespace) -> Times:
    """Seconds of every action in every round; each round runs all of them, beginning with another one.

    Args:
        actions: What to time, by name.
        options: Of `arguments`.
    """
    names = list(actions)
    times: Times = {name: [] for name in names}
    for number in range(options.rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            with contextlib.redirect_stdout(io.StringIO()):  # logs and label plans of the trainers
                taken = stopwatch(actions[name], options.device)
            if number:  # the first round warms up
                times[name].append(taken)
    return times


def stopwatch(action: Action, device: str) -> Seconds:
    """What an action takes, its work on the device included."""
    wait(device)
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    wait(device)
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def wait(device: str) -> None:
    """Until the device has done all it was asked to."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


@dataclass(frozen=True)
class Claim:
    """A ratio that must not exceed a bound.

    Args:
        what: The ratio in words.
        values: One ratio per round, by the clock.
        bound: The largest median that keeps the claim; None: only reported.
        cpu_values: The same of processor time, where that was measured.
    """

    what: str
    values: Sequence[float]
    bound: float | None = None
    cpu_values: Sequence[float] = ()

    @classmethod
    def of(cls, times: Times, above: str, below: str | Sequence[str], bound: float | None = None) -> Claim:
        """``above`` ÷ the sum of ``below``, round by round: what disturbs a round disturbs both."""
        parts = [below] if isinstance(below, str) else list(below)
        wall, cpu = (
            [
                getattr(times[above][i], clock) / sum(getattr(times[part][i], clock) for part in parts)
                for i in range(len(times[above]))
            ]
            for clock in Seconds._fields
        )
        named = parts[0] if len(parts) == 1 else f"({' + '.join(parts)})"
        return cls(f"{above} ÷ {named}", wall, bound, cpu)

    def row(self) -> list[str]:
        """Its cells of the table."""
        median = statistics.median(self.values)
        cpu = f"{statistics.median(self.cpu_values):.3f}" if self.cpu_values else "–"
        bound = "–" if self.bound is None else f"≤ {self.bound:.2f}"
        met = "–" if self.bound is None else "yes" if median <= self.bound else "NO"
        return [self.what, f"{median:.3f}", _range(self.values, ".3f"), cpu, bound, met]


def show(
    title: str,
    claims: Sequence[Claim],
    options: argparse.Namespace,
    *,
    times: Times | None = None,
    amounts: Mapping[str, Sequence[float]] | None = None,
    unit: str = "s",
) -> None:
    """Print what was measured, the claims, and the machine, as Markdown.

    Args:
        title: What it is about.
        claims: The ratios.
        options: Of `arguments`.
        times: What the ratios were made of.
        amounts: What else was measured, per round, in ``unit``.
    """
    from hf_distill.markdown import markdown_table

    amounts = {name: [taken.wall for taken in values] for name, values in (times or {}).items()} | dict(
        amounts or {}
    )
    rows = []
    for name, values in amounts.items():
        form = ",.0f" if max(values) >= 1000 else ".4g"
        rows.append([name, f"{statistics.median(values):{form}}", _range(values, form)])
    print(f"\n## {title}\n")
    print(markdown_table(["measured", f"median {unit}", "min–max"], rows) + "\n")
    if claims:
        header = ["ratio", "median", "min–max", "of CPU time", "bound", "met"]
        print(markdown_table(header, [claim.row() for claim in claims]) + "\n")
    print(f"{machine(options)}; {options.rounds} rounds", flush=True)


def machine(options: argparse.Namespace) -> str:
    """The machine, the versions and how busy it was, in one line."""
    import torch
    import transformers

    if options.device == "cuda":
        name = f"{torch.cuda.get_device_name()}, host {_processor()}"
    else:
        waiting = os.environ.get("OMP_WAIT_POLICY", "default").lower()
        name = f"{_processor()}, {os.cpu_count()} cores, threads {options.threads} (waiting: {waiting})"
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{name}{load}; torch {torch.__version__}, transformers {transformers.__version__}"


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _range(values: Sequence[float], form: str) -> str:
    return f"{min(values):{form}}–{max(values):{form}}"


def idle(actions: Mapping[str, Action], options: argparse.Namespace) -> list[Claim]:
    """The share of time in which the GPU idles, of each action; nothing on a CPU."""
    if options.device != "cuda":
        return []
    return [Claim(f"GPU idle, {name}", [idle_share(action)]) for name, action in actions.items()]


def bound(options: argparse.Namespace, cpu: float, gpu: float) -> float:
    """What a claim allows on the device."""
    return gpu if options.device == "cuda" else cpu


def idle_share(action: Action) -> float:
    """Share of the time in which no kernel and no copy runs on the GPU; overlapping ones count once."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with contextlib.redirect_stdout(io.StringIO()), profile(activities=[ProfilerActivity.CUDA]) as trace:
        total = stopwatch(action, "cuda").wall
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in trace.events()
        if event.device_type == DeviceType.CUDA
    )
    busy, until = 0.0, float("-inf")
    for start, end in spans:
        busy += max(end - max(start, until), 0.0)
        until = max(until, end)
    return 1 - busy / 1e6 / total  # the profiler counts microseconds

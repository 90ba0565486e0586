"""Trainings in processes of their own, as many at a time as cores or GPUs allow, with one bar for all of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm.auto import tqdm

from ...errors import HfDistillError
from ...processes import PARENT, terminated

STEPS_FILE = "steps_done"
LOG_FILE = "log.txt"

_POLL = 0.2
_KEPT = "What was finished is kept: the same command goes on from there."
# What a launcher said to this process and must not say to another: it would wait for company that never comes.
_LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        name: What messages call it.
        arguments: Of the package's own command.
        folder: Gets `LOG_FILE`; the job writes `STEPS_FILE` there.
        steps: How many it will take.
    """

    name: str
    arguments: tuple[str, ...]
    folder: Path
    steps: int


class Place(NamedTuple):
    """A core or a GPU that jobs may have.

    Attributes:
        added: What the environment of a job there has besides.
        threads: How many threads a job may have at most, one for each such place that it takes; 0: jobs take one place each.
    """

    added: Mapping[str, str] = {}
    threads: int = 0


def places(device: str, environment: Mapping[str, str] = os.environ) -> list[Place]:
    """Where jobs run at the same time: on a CPU a place per core, on GPUs one each.

    Elsewhere there is one place, and with one place the jobs may as well run in this process.

    Args:
        device: ``cpu``, ``cuda`` or what else torch calls it.
        environment: Says how many threads are wanted and which GPUs may be seen.

    Example:
        >>> places("mps")
        [Place(added={}, threads=0)]
    """
    if device == "cuda":
        count = torch.cuda.device_count()
        seen = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        names = seen if len(seen) == count else [str(i) for i in range(count)]
        return [Place({"CUDA_VISIBLE_DEVICES": name}) for name in names]
    if device != "cpu":
        return [Place()]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = environment.get("OMP_NUM_THREADS", "")
    most = min(cores, int(given)) if given.isdigit() and int(given) > 0 else cores
    return [Place(threads=most)] * cores


def starting(waiting: int, free: int, places: int) -> list[int]:
    """How many of the free places each job takes that is to start now.

    Whoever starts shares what is free with those that start beside it. Where more jobs wait than there are places, those
    that make no full round go first and have the whole machine between them: a last one would have a part of it, and the
    rest would idle, since a running job takes no more.

    Args:
        waiting: How many jobs there are to start.
        free: How many places are free.
        places: How many there are.

    Example:
        >>> starting(3, 2, 2), starting(2, 2, 2), starting(1, 2, 2), starting(3, 8, 8)
        ([2], [1, 1], [2], [3, 3, 2])
    """
    jobs = min(waiting, free)
    if free == places < waiting and waiting % places:
        jobs = waiting % places
    return [free // jobs + (i < free % jobs) for i in range(jobs)]


def run_jobs(
    jobs: Sequence[Job],
    where: Sequence[Place],
    *,
    program: Sequence[str] = (sys.executable, "-P", "-m", "hf_distill"),
    show: bool = True,
    wait: Callable[[float], None] = time.sleep,
) -> None:
    """Run every job, as many at a time as there are places; what was finished when one fails stays finished.

    Jobs find their modules where this process finds them, and end with it, however it ends: where it is told to, they save
    what they have; where it is killed, so are they.

    Args:
        jobs: The trainings.
        where: Of `places`.
        program: What the arguments are given to.
        show: Whether a line says which job begins, and on a terminal a bar how far they are.
        wait: Sleeps.

    Raises:
        HfDistillError: A job could not be started, or failed; the message then has the end of its log.
    """
    waiting, running = list(jobs), {}
    bar = tqdm(
        total=sum(job.steps for job in jobs),
        desc=f"Verdict: {len(jobs)} trainings, {len(where)} at a time",
        unit="step",
        dynamic_ncols=True,
        disable=None if show else True,
    )
    done = 0
    with terminated():
        try:
            while waiting or running:
                free = [place for place in range(len(where)) if not any(place in taken for taken in running)]
                for count in _counts(len(waiting), free, where):
                    job, taken = waiting.pop(0), tuple(free[:count])
                    del free[:count]
                    if show:
                        number = f"{len(jobs) - len(waiting)} of {len(jobs)}"
                        bar.write(f"{job.name} begins ({number}); its log is {job.folder / LOG_FILE}")
                        sys.stdout.flush()
                    running[taken] = job, _started(job, _added([where[i] for i in taken]), program)
                for taken, (job, process) in list(running.items()):
                    if process.poll() is None:
                        continue
                    del running[taken]
                    if process.returncode != 0:
                        raise _failure(job, process.returncode)
                    done += job.steps
                now = done + sum(_steps(job) for job, _ in running.values())
                bar.update(now - bar.n)
                if running:
                    wait(_POLL)
        finally:
            for _, process in running.values():
                process.terminate()
            for _, process in running.values():
                process.wait()
            bar.close()


def _counts(waiting: int, free: Sequence[int], where: Sequence[Place]) -> list[int]:
    """How many places each job takes that starts now: cores are shared out, of other places each takes one."""
    if not free or not waiting:
        return []
    if where[free[0]].threads:
        return starting(waiting, len(free), len(where))
    return [1] * min(waiting, len(free))


def _added(taken: Sequence[Place]) -> dict[str, str]:
    """What the environment of a job has besides that takes these places."""
    threads = min(len(taken), taken[0].threads)
    return {**taken[0].added, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}


def _started(job: Job, added: Mapping[str, str], program: Sequence[str]) -> subprocess.Popen[bytes]:
    kept = {name: value for name, value in os.environ.items() if name not in _LAUNCHERS}
    # `python -m` looks into the working directory first: another copy of the package there would do the training.
    modules = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / STEPS_FILE).unlink(missing_ok=True)
        with (job.folder / LOG_FILE).open("wb") as log:
            return subprocess.Popen(
                [*program, *job.arguments],
                env={**kept, "PYTHONPATH": modules, PARENT: str(os.getpid()), **added},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
    except OSError as error:
        raise HfDistillError(f"{job.name} could not be started: {error}. {_KEPT}") from error


def _steps(job: Job) -> int:
    try:
        return min(job.steps, int((job.folder / STEPS_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return 0


def _failure(job: Job, code: int) -> HfDistillError:
    path = job.folder / LOG_FILE
    lines = path.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    end = "\n".join(f"    {line}" for line in [line for line in lines if line.strip()][-12:])
    ending = f"ended with exit code {code}"
    if code < 0:
        ending = f"was ended by signal {-code} ({signal.strsignal(-code)})"
        if -code == signal.SIGKILL:
            ending += (
                ", as the system does where memory runs out (fewer cores, `taskset -c 0 hf-distill …`, or fewer GPUs in "
                "CUDA_VISIBLE_DEVICES let fewer trainings run at a time)"
            )
    error = HfDistillError(f"{job.name} {ending}. The end of {path}:\n{end}\n{_KEPT}")
    error.exit_code = code if code in (2, 3, 4, 5, 130, 143) else 1
    return error

"""Kills whole runs at drawn moments, and starts them again: the cache, the training, its evaluations, the verdict, a search.

Each run is a process forked from a warm one, so that no time goes into imports. Every other kill is a timer whose signal
nothing handles, which the system keeps wherever the process is; the others are the middle of a change to the disk, of
`kill_points`. A run that was killed is started again with `--resume`, and without where that finds no checkpoint; what it then
leaves is compared with what an undisturbed run leaves, byte by byte and number by number.

``python tests/faults/kill_runs.py [KILLS OF EACH PHASE]`` prints the table of docs/reliability.md.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import kill_points
import numpy as np
from forking import forked

PHASES = ("cache build", "training", "evaluation", "verdict", "search")
"""Where runs are killed; the first four are those of `hf-distill train`."""

# What a report says of time, and its words on that and on the numbers: no two runs have the same. And the one figure of
# Trainer's that is of the steps since it was started last.
_TIMED = re.compile(
    "cost|seconds|per_second|runtime|conditions|place|teachers_share|busy|notes|sentences|train_loss|^date$"
)


def recipe(given: Path, out: Path) -> dict[str, Any]:
    """A recipe with everything that can be interrupted: a cache, checkpoints, evaluations, two seeds, a search."""
    return {
        "data": {
            "files": {split: str(given / f"{split}.jsonl") for split in ("train", "validation", "test")},
            "label_names": ["negative", "positive"],
        },
        "teachers": {"models": [str(given / "a"), str(given / "b")], "cache_dir": str(out / "cache")},
        "student": {
            "config": {"model_type": "distilbert", "dim": 8, "hidden_dim": 8, "n_layers": 1, "n_heads": 2},
            "tokenizer": str(given / "a"),
        },
        "fusion": "log_pool",
        "training": {
            "output_dir": str(out / "run"), "use_cpu": True, "disable_tqdm": True, "max_steps": 9, "learning_rate": 1e-2,
            "per_device_train_batch_size": 4, "logging_steps": 1, "report_to": "none", "seed": 3,
            "save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 3, "save_total_limit": 1,
            "load_best_model_at_end": True, "metric_for_best_model": "loss", "dataloader_pin_memory": False,
        },
        "evaluation": {"seeds": 2, "metrics": ["accuracy"]},
        "search": {"temperature": [1, 8], "learning_rate": [1e-3, 1e-1, "log"]},
    }  # fmt: skip


def make_given(given: Path, tokenizer: Any) -> None:
    """Write rows and two teachers."""
    from conftest import make_bert

    given.mkdir()
    words = ["good", "bad", "fine", "dull", "film", "plot", "scene"]
    for number, (split, count) in enumerate((("train", 40), ("validation", 12), ("test", 12))):
        rows = [
            {"text": f"{words[i % 7]} {words[(i * i + number) % 7]} {words[i // 7]}", "label": ("negative", "positive")[i % 2]}
            for i in range(count)
        ]  # fmt: skip
        (given / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for seed, name in enumerate("ab"):
        make_bert(tokenizer, ["negative", "positive"], seed=seed).save_pretrained(given / name)
        tokenizer.save_pretrained(given / name)


def warm() -> None:
    """Import all that a run needs."""
    import evaluate  # noqa: F401
    import matplotlib.backends.backend_agg  # noqa: F401
    import optuna.storages  # noqa: F401
    import sklearn.metrics  # noqa: F401

    import hf_distill.publishing.card  # noqa: F401
    import hf_distill.runs.search.searching
    import hf_distill.runs.train  # noqa: F401


class Phase:
    """Which phase this process is in, and for how long it was in each."""

    def __init__(self, ring: Callable[[str, float], float | None] = lambda phase, seconds: None) -> None:
        self.now, self.seconds = "", dict.fromkeys(PHASES, 0.0)
        self._ring, self._since = ring, time.monotonic()

    def turn(self, phase: str) -> None:
        """Go over into a phase, and wind the clock that ends this process in it."""
        now = time.monotonic()
        if self.now:
            self.seconds[self.now] += now - self._since
        self.now, self._since = phase, now
        left = self._ring(phase, self.seconds.get(phase, 0.0))
        signal.setitimer(signal.ITIMER_REAL, 0 if left is None else max(left, 1e-4))

    def of(self, owner: Any, name: str, phase: str, within: tuple[str, ...]) -> None:
        """Have a function be a phase where none of some others runs."""
        real = getattr(owner, name)

        def call(*args: Any, **options: Any) -> Any:
            before = self.now
            if before in within:
                return real(*args, **options)
            self.turn(phase)
            try:
                return real(*args, **options)
            finally:
                self.turn(before)

        setattr(owner, name, call)

    def watch(self) -> None:
        """Have every phase told from here on, in this process."""
        import hf_distill.runs.search.searching as searching
        from hf_distill.runs.verdict.judgement import Verdict
        from hf_distill.teachers.cache.build import TeacherCache
        from hf_distill.training.trainer import MultiTeacherDistillationTrainer as Ours

        whole = ("verdict", "search")
        self.of(TeacherCache, "add", "cache build", whole)
        self.of(Ours, "train", "training", whole)
        self.of(Ours, "evaluate", "evaluation", whole)
        self.of(Verdict, "judge", "verdict", ())
        self.of(searching, "search_recipe", "search", ())


def run(given: Path, out: Path, phase: str, *, again: bool = False) -> None:
    """What the command does: `train`, or `search` where that is the phase; `again` as its user starts it after a kill."""
    import datasets

    from hf_distill.errors import ConfigurationError, CorruptStateError
    from hf_distill.recipe import Setup, load_recipe
    from hf_distill.runs.search import searching
    from hf_distill.runs.train import train_recipe

    # On one core the trainings of a verdict take place in the run's own process.
    os.sched_setaffinity(0, {random.choice(sorted(os.sched_getaffinity(0)))})
    datasets.config.HF_DATASETS_CACHE = out / "datasets"
    file = out / "recipe.yaml"
    file.write_text(json.dumps(recipe(given, out)))
    if phase == "search":
        searching.search_recipe(Setup(load_recipe(file)), trials=4)
        return
    if again:
        try:
            train_recipe(Setup(load_recipe(file)), resume="last")
            return
        except (ConfigurationError, CorruptStateError) as error:
            if "checkpoint" not in str(error):
                raise
    train_recipe(Setup(load_recipe(file)))


def left(out: Path, phase: str) -> dict[str, Any]:
    """What a finished run leaves and must not differ, by name."""
    found: dict[str, Any] = {}
    for path in sorted(out.glob("cache/**/*")):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(out).parts):
            found[str(path.relative_to(out))] = _digest(path.read_bytes())
    if phase == "search":
        import sqlite3

        folder = out / "run-search"
        with contextlib.closing(sqlite3.connect(folder / "study.db")) as base:
            found["trials"] = base.execute(
                "select p.param_name, p.param_value, v.value from trials t join trial_params p using (trial_id) "
                "join trial_values v using (trial_id) where t.state = 'COMPLETE' order by t.number, p.param_name"
            ).fetchall()
        lines = (folder / "best.yaml").read_text().replace(str(out), "").splitlines()
        found["best.yaml"] = [line for line in lines if line[:1] != "#"]  # that says the trial's number
        return found
    for path in sorted((out / "run").glob("**/*.safetensors")):
        if "checkpoint" not in str(path):
            found[str(path.relative_to(out))] = _digest(path.read_bytes())
    for path in sorted((out / "run" / "verdict").glob("rows-*.npz")):
        with np.load(path) as file:
            found[path.name] = {name: _digest(file[name].tobytes()) for name in file.files if name != "about"}
    report = _untimed(json.loads((out / "run" / "report.json").read_text().replace(str(out), "")))
    return found | {f"report.json: {name}": value for name, value in report.items()}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _untimed(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _untimed(value) for key, value in content.items() if not _TIMED.search(key)}
    return [_untimed(item) for item in content] if isinstance(content, list) else content


def killed_runs(
    tokenizer: Any, folder: Path, kills: int, phases: Any = PHASES, seed: int = 12
) -> Iterator[tuple[str, int, int, list[str]]]:
    """Kill runs in every phase, go on from what each leaves, and compare.

    Args:
        tokenizer: Of teachers and student.
        folder: Empty.
        kills: In each phase.
        phases: Of `PHASES`.
        seed: Of the moments.

    Yields:
        Per phase its name, how many runs were killed in it by the clock, how many at a change to the disk, what went wrong.
    """
    warm()
    given = folder / "given"
    if forked(lambda: make_given(given, tokenizer)):
        raise RuntimeError("the teachers could not be made")
    undisturbed: dict[bool, Whole] = {}
    for phase in phases:
        searches = phase == "search"
        if searches not in undisturbed:
            undisturbed[searches] = _undisturbed(given, folder / f"whole-{searches}", phase)
        whole, drawn = undisturbed[searches], random.Random(f"{seed} {phase}")
        wrong, tried = [], [0, 0]
        for number in range(kills):
            # An evaluation changes nothing on the disk.
            by_clock = number % 2 == 0 or not whole.changes[phase]
            out = folder / "out"
            what, killed = _killed(given, out, phase, whole, drawn, by_clock)
            tried[not by_clock] += 1
            if not killed:
                wrong.append(f"{what}: not killed")
            elif forked(functools.partial(run, given, out, phase, again=True)) != 0:
                wrong.append(f"{what}: did not go on")
            elif differing := _differing(_left(out, phase), whole.left):
                wrong.append(f"{what}: {differing}")
            shutil.rmtree(out, ignore_errors=True)
        yield phase, tried[0], tried[1], wrong


class Whole(NamedTuple):
    """A run that nothing disturbs.

    Attributes:
        left: What it leaves, as texts.
        seconds: For how long it is in each phase.
        changes: How often it changes the disk in each.
    """

    left: dict[str, str]
    seconds: dict[str, float]
    changes: dict[str, int]


def _killed(
    given: Path, out: Path, phase: str, whole: Whole, drawn: random.Random, by_clock: bool
) -> tuple[str, bool]:
    """Begin a run that is killed in a phase; returns at which moment, and whether it was."""
    what = ""
    for attempt in range(4):  # this time it may be faster than the one that was measured
        out.mkdir()
        if by_clock:
            moment = drawn.uniform(0, whole.seconds[phase]) * 0.8**attempt
            what = f"{phase}, after {moment:.3f} of {whole.seconds[phase]:.3f} s"
            code = forked(functools.partial(_by_clock, given, out, phase, moment))
        else:
            point = drawn.randrange(whole.changes[phase])
            what = f"{phase}, change {point} of {whole.changes[phase]}"
            code = forked(functools.partial(_by_change, given, out, phase, point))
        if code:
            return what, code == (-signal.SIGALRM if by_clock else -signal.SIGKILL)
        shutil.rmtree(out)
    return what, False


def _differing(found: dict[str, str], meant: dict[str, str]) -> str:
    """Which of what is left is other than it is meant to be, with the place of the first."""
    names = sorted(name for name in found.keys() | meant if found.get(name) != meant.get(name))
    if not names:
        return ""
    pair = [texts.get(names[0], "") for texts in (found, meant)]
    at = max(0, len(os.path.commonprefix(pair)) - 60)
    return f"other {', '.join(names)}: {' instead of '.join(text[at : at + 120] for text in pair)}"


def _left(out: Path, phase: str) -> dict[str, str]:
    """As `left`, each as a text."""
    return {name: json.dumps(value, sort_keys=True) for name, value in left(out, phase).items()}


def _undisturbed(given: Path, out: Path, phase: str) -> Whole:
    """Run twice without a fault: for its time, and for its changes to the disk."""
    out.mkdir()

    def whole() -> None:
        watched = Phase()
        watched.watch()
        run(given, out, phase)
        (out / "seconds").write_text(json.dumps(watched.seconds))

    def counted() -> None:
        watched, inside = Phase(), out / "counted"
        watched.watch()
        inside.mkdir()
        changes = dict.fromkeys(PHASES, 0)
        with kill_points.points(inside, -1, lambda: bool(watched.now)) as seen:
            turn = watched.turn

            def turning(to: str) -> None:
                if watched.now:
                    changes[watched.now] += len(seen)
                seen.clear()
                turn(to)

            watched.turn = turning
            run(given, inside, phase)
        (out / "changes").write_text(json.dumps(changes))

    if forked(whole) or forked(counted):
        raise RuntimeError("the run that nothing disturbs did not end well")
    meant, again = _left(out, phase), _left(out / "counted", phase)
    if differing := _differing(again, meant):
        raise RuntimeError(f"two runs that nothing disturbs differ: {differing}")
    return Whole(meant, json.loads((out / "seconds").read_text()), json.loads((out / "changes").read_text()))


def _by_clock(given: Path, out: Path, phase: str, moment: float) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    Phase(lambda now, seconds: moment - seconds if now == phase else None).watch()
    run(given, out, phase)


def _by_change(given: Path, out: Path, phase: str, point: int) -> None:
    watched = Phase()
    watched.watch()
    with kill_points.points(out, point, lambda: watched.now == phase):
        run(given, out, phase)


if __name__ == "__main__":
    here = Path(__file__).resolve()
    sys.path[:0] = [str(here.parent), str(here.parents[1]), str(here.parents[2])]
    import torch

    torch.set_num_threads(1)
    print(
        "| killed in | by the clock | at a change to the disk | went on, equal to the bit |\n|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as name:
        for what, clock, change, wrong in killed_runs(
            kill_points.small_tokenizer(), Path(name), int((sys.argv[1:] or ["6"])[0])
        ):
            print(
                f"| {what} | {clock} | {change} | {clock + change - len(wrong)} |",
                *wrong,
                sep="\n    ",
                flush=True,
            )

"""Kills a run at every point of writing and removing, each in a process forked from a warm one, and goes on from what is left.

``python tests/faults/kill_points.py [POINTS]`` prints the table of docs/reliability.md.
"""

from __future__ import annotations

import builtins
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from forking import forked

_OPEN, _SAVE = builtins.open, torch.save
# What changes a disk. Each call is two points, before it and after it; a file that is written has one in the middle besides.
_CALLS = ("replace", "rename", "unlink", "rmdir", "mkdir", "fsync", "open")


@contextlib.contextmanager
def points(inside: Path, at: int, begin: Callable[[], bool] = lambda: True) -> Iterator[list[str]]:
    """Count what is done to the files of a folder, and kill this process at one point.

    Args:
        inside: The folder.
        at: Which point is the last thing that this process does; -1: none.
        begin: Whether points count yet.

    Yields:
        What was counted, filled while it goes on.
    """
    seen: list[str] = []
    named: dict[int, str] = {}
    real = {name: getattr(os, name) for name in _CALLS}

    def point(what: str) -> None:
        if begin():
            seen.append(what)
            if len(seen) - 1 == at:
                os.kill(os.getpid(), signal.SIGKILL)

    def ours(path: Any) -> bool:
        if isinstance(path, int):
            return True
        return str(inside) in os.path.abspath(os.fspath(path))

    def wrapped(name: str) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **options: Any) -> Any:
            relative = options.get("dir_fd") is not None  # of shutil.rmtree
            if not (relative or ours(path)):
                return real[name](path, *args, **options)
            label = f"{name} {named.get(path, '?') if isinstance(path, int) else Path(os.fspath(path)).name}"
            if name != "open":
                point(f"before {label}")
            result = real[name](path, *args, **options)
            if name == "open":
                named[result] = Path(os.fspath(path)).name
            else:
                point(f"after {label}")
            return result

        return call

    def written(save: Callable[..., Any], where: int) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            path = args[where] if len(args) > where else None
            if not isinstance(path, (str, Path)) or not ours(path):
                return save(*args, **options)
            name = Path(path).name
            point(f"before writing {name}")
            result = save(*args, **options)
            content = Path(path).read_bytes()
            if begin():
                _OPEN(path, "wb").write(content[: len(content) // 2])
                point(f"half of {name}")
                _OPEN(path, "wb").write(content)
            point(f"after writing {name}")
            return result

        return call

    def opened(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if isinstance(path, (str, Path)) and set(mode) & set("wax") and ours(path):
            point(f"before opening {Path(path).name}")
            file = _OPEN(path, mode, *args, **options)
            point(f"opened {Path(path).name}")
            return file
        return _OPEN(path, mode, *args, **options)

    import transformers.modeling_utils as modeling

    for name in _CALLS:
        setattr(os, name, wrapped(name))
    builtins.open, torch.save = opened, written(_SAVE, 1)
    first = modeling.safe_save_file
    modeling.safe_save_file = written(first, 1)
    try:
        yield seen
    finally:
        for name in _CALLS:
            setattr(os, name, real[name])
        builtins.open, torch.save, modeling.safe_save_file = _OPEN, _SAVE, first


SCENES = {
    "a save": {},
    "a save, one checkpoint kept": {"save_total_limit": 1},
    "a save, the best kept too": {
        "save_total_limit": 1, "eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True,
        "metric_for_best_model": "loss", "greater_is_better": True,
    },
}  # fmt: skip
"""What is asked of the run."""


def killed_everywhere(
    tokenizer: Any, folder: Path, how_many: int, scenes: Any = tuple(SCENES), seed: int = 12
) -> Iterator[tuple[str, int, int, list[str]]]:
    """Kill runs at drawn points of their third save and of what follows, in rotation and in resuming; go on from each.

    Yields:
        Per scene its name, the points that there are, those that were tried, and what went wrong.
    """
    from faulty import kept, run, weights

    for number, scene in enumerate(scenes):
        for resumed in (False, True):
            place = folder / f"{number}{resumed}"
            place.mkdir()
            options = SCENES[scene]

            def whole(place: Path = place, options: Any = options) -> None:
                trainer = run(place / "whole", tokenizer, **options)
                trainer.train()
                _SAVE(weights(trainer), place / "meant")

            assert forked(whole) == 0
            meant = torch.load(place / "meant", weights_only=True)
            start = place / "start"
            if resumed:

                def begun(start: Path = start, options: Any = options) -> None:
                    trainer = run(start, tokenizer, **options)
                    trainer.add_callback(_stop_in_third(trainer))
                    trainer.train()

                assert forked(begun) == -signal.SIGKILL
            else:
                start.mkdir()

            def attempt(at: int, out: Path, options: Any = options, resumed: bool = resumed) -> None:
                trainer = run(out, tokenizer, **options)
                with points(out, at, lambda: resumed or trainer.state.global_step >= 3) as seen:
                    trainer.train(resume_from_checkpoint=True if resumed else None)
                if at == -1:
                    (out.parent / "points").write_text("\n".join(seen))

            shutil.copytree(start, place / "counted")
            assert forked(lambda place=place: attempt(-1, place / "counted")) == 0
            known = (place / "points").read_text().splitlines()
            shutil.rmtree(place / "counted")
            drawn = sorted(random.Random(seed).sample(range(len(known)), min(how_many, len(known))))
            wrong = []
            for at in drawn:
                out = place / "out"
                shutil.copytree(start, out)

                def go_on(out: Path = out, options: Any = options, meant: Any = meant) -> None:
                    trainer = run(out, tokenizer, **options)
                    trainer.train(resume_from_checkpoint=True)
                    assert kept(weights(trainer), meant), "other weights"

                code = forked(lambda at=at, out=out: attempt(at, out))
                if code != -signal.SIGKILL:
                    wrong.append(f"{known[at]}: not killed, exit code {code}")
                elif forked(go_on) != 0:
                    wrong.append(f"{known[at]}: not resumed; left {sorted(p.name for p in out.iterdir())}")
                shutil.rmtree(out, ignore_errors=True)
            yield f"{scene}{', in a resumed run' if resumed else ''}", len(known), len(drawn), wrong


def _stop_in_third(trainer: Any) -> Any:
    """Kills the process half way through its third save."""
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                trainer._save_rng_state = lambda folder: os.kill(os.getpid(), signal.SIGKILL)

    return Stop()


def small_tokenizer() -> Any:
    """Of a few words."""
    from transformers import BertTokenizer

    words = "[PAD] [UNK] [CLS] [SEP] [MASK] good bad fine dull film plot scene"
    return BertTokenizer({word: i for i, word in enumerate(words.split())}, model_max_length=32)


if __name__ == "__main__":
    here = Path(__file__).resolve()
    sys.path[:0] = [str(here.parent), str(here.parents[1]), str(here.parents[2])]
    torch.set_num_threads(1)
    print("| killed in | points | killed | went on, equal to the bit |\n|---|---|---|---|")
    for what, count, tried, wrong in killed_everywhere(
        small_tokenizer(), Path(tempfile.mkdtemp()), int((sys.argv[1:] or ["17"])[0])
    ):
        print(f"| {what} | {count} | {tried} | {tried - len(wrong)} |", *wrong, sep="\n    ", flush=True)

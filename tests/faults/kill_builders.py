"""Two builders of one cache, killed at drawn moments and started again until it is built.

``python tests/faults/kill_builders.py [ROUNDS]`` prints the row of docs/reliability.md.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kill_points
import kill_runs
from forking import forked, started

SHARD_ROWS, KILLS = 4, 12


def build(given: Path, cache: Path) -> None:
    """What one builder does: two teachers, the rows of the training in shards of four."""
    import datasets

    from hf_distill.teachers.cache.build import cache_teacher_outputs

    rows = datasets.Dataset.from_json(str(given / "train.jsonl"), cache_dir=str(cache.parent / "datasets"))
    folders = [str(given / name) for name in "ab"]
    cache_teacher_outputs(folders, rows, cache_dir=cache, shard_rows=SHARD_ROWS)


def files(cache: Path) -> dict[str, bytes]:
    """All that a store consists of: what is hidden is a lock, or what a killed writer had begun."""
    return {
        str(path.relative_to(cache)): path.read_bytes()
        for path in sorted(cache.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(cache).parts)
    }


def killed_builders(
    tokenizer: Any, folder: Path, rounds: int, seed: int = 12
) -> Iterator[tuple[int, int, list[str]]]:
    """Build a cache by two processes, kill each at drawn moments, start it again; compare with an undisturbed build.

    Args:
        tokenizer: Of the teachers.
        folder: Empty.
        rounds: How many caches are built.
        seed: Of the moments.

    Yields:
        Per round how many builders were killed, how many shards there are, what went wrong.
    """
    from hf_distill.teachers.cache.store import cache_info

    given, drawn = folder / "given", random.Random(seed)
    assert forked(lambda: kill_runs.make_given(given, tokenizer)) == 0
    before = time.monotonic()
    assert forked(lambda: build(given, folder / "whole")) == 0
    seconds, meant = time.monotonic() - before, files(folder / "whole")
    for number in range(rounds):
        cache, killed, wrong = folder / str(number), 0, []

        def work(cache: Path = cache) -> None:
            build(given, cache)

        running = {started(work): time.monotonic() + drawn.uniform(0, seconds) for _ in range(2)}
        while running:
            time.sleep(0.001)
            for process, moment in list(running.items()):
                ended, status = os.waitpid(process, os.WNOHANG)
                if not ended and killed < KILLS and time.monotonic() > moment:
                    os.kill(process, signal.SIGKILL)
                    _, status = os.waitpid(process, 0)
                    ended = process
                if not ended:
                    continue
                del running[process]
                code = os.waitstatus_to_exitcode(status)
                if code == -signal.SIGKILL:
                    killed += 1
                    running[started(work)] = time.monotonic() + drawn.uniform(0, seconds)
                elif code:
                    wrong.append(f"a builder ended with exit code {code}")
        found = files(cache)
        if found != meant:
            wrong.append(f"other files: {sorted(name for name in found.keys() | meant if found.get(name) != meant.get(name))}")  # fmt: skip
        if any(store["damaged"] or store["rows"] != 40 for store in cache_info(cache)):
            wrong.append("the store is not whole")
        yield killed, sum(name.endswith(".ids.npy") for name in found), wrong


if __name__ == "__main__":
    here = Path(__file__).resolve()
    sys.path[:0] = [str(here.parent), str(here.parents[1]), str(here.parents[2])]
    import torch

    torch.set_num_threads(1)
    import hf_distill.teachers.cache.build  # noqa: F401

    with tempfile.TemporaryDirectory() as name:
        results = list(
            killed_builders(kill_points.small_tokenizer(), Path(name), int((sys.argv[1:] or ["10"])[0]))
        )
    print("| caches | builders killed | whole, equal to the bit |\n|---|---|---|")
    whole = sum(not wrong for *_, wrong in results)
    print(f"| {len(results)} | {sum(killed for killed, *_ in results)} | {whole} |")
    print(*(line for *_, wrong in results for line in wrong), sep="\n")

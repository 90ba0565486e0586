"""Two processes of one launch: where one dies the other ends within 10 s, and where one is told to stop both do, together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import kill_runs
import pytest
from test_distributed import LAUNCH_TWO, environment

from hf_distill.training.commits import checkpoints, problem

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@pytest.fixture(scope="module")
def given(tmp_path_factory, bert_tokenizer):
    folder = tmp_path_factory.mktemp("launches") / "given"
    kill_runs.make_given(folder, bert_tokenizer)
    return folder


@pytest.fixture
def launched(given, tmp_path):
    """Starts a launch of a long training, waits until it is where it is to be, and gives it with its processes by rank."""
    content = kill_runs.recipe(given, tmp_path)
    content["training"] |= {"max_steps": 100_000, "save_steps": 20, "eval_steps": 20, "logging_steps": 20}
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(content))
    log = (tmp_path / "log").open("w")
    launch = subprocess.Popen(
        [sys.executable, *LAUNCH_TWO, "-m", "hf_distill", "train", str(file)],
        env=environment(), stdout=log, stderr=subprocess.STDOUT,
    )  # fmt: skip

    def ready():
        end = time.monotonic() + 240
        while not list((tmp_path / "run").glob("checkpoint-*/checkpoint.json")):
            assert launch.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()[-3000:]
            time.sleep(0.05)
        return launch, _ranks(launch.pid)

    yield ready
    if launch.poll() is None:
        launch.kill()
        launch.wait()


def _ranks(launcher: int) -> dict[int, int]:
    """The processes of a launch by their rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            names = dict(
                item.split("=", 1) for item in (folder / "environ").read_text().split("\0") if "=" in item
            )
        except OSError:
            continue
        if parent == launcher and "RANK" in names:
            found[int(names["RANK"])] = int(folder.name)
    return found


def _gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("rank", [0, 1])
def test_a_dead_rank_ends_a_launch_within_ten_seconds(launched, rank, tmp_path):
    launch, ranks = launched()
    assert sorted(ranks) == [0, 1]
    before = time.monotonic()
    os.kill(ranks[rank], signal.SIGKILL)
    while not all(map(_gone, ranks.values())) and time.monotonic() - before < 60:
        time.sleep(0.02)
    other = time.monotonic() - before
    assert launch.wait(timeout=60) != 0
    seconds = time.monotonic() - before
    print(
        f"SEEN rank {1 - rank} ended {other:.1f} s and the launch {seconds:.1f} s after rank {rank} was killed"
    )
    assert other < 10 and all(map(_gone, ranks.values()))  # the launcher then only has to end itself
    assert any(problem(path) is None for path in checkpoints(tmp_path / "run"))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_of_two_ends_both_after_one_checkpoint(launched, rank, tmp_path):
    launch, ranks = launched()
    before = time.monotonic()
    os.kill(ranks[rank], signal.SIGTERM)
    assert launch.wait(timeout=60) != 0  # of the launcher; the workers' own is in what it says
    seconds = time.monotonic() - before
    print(f"SEEN both ended {seconds:.1f} s after rank {rank} was told to stop")
    assert all(map(_gone, ranks.values()))
    said = (tmp_path / "log").read_text()
    newest = checkpoints(tmp_path / "run")[0]
    step = int(newest.name.partition("-")[2])
    assert problem(newest) is None and step < 100_000
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in newest.iterdir()}
    assert f"Stopped by SIGTERM after step {step} of 100000: {newest} is saved" in said
    assert said.count("Stopped by SIGTERM") == 1 and "143" in said, said[-3000:]

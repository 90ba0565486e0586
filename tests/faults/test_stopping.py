"""SIGTERM and SIGINT finish the step, save, and say how to go on; children end with their parent, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faulty import kept, run, weights
from transformers import TrainerCallback

from hf_distill.errors import StoppedError
from hf_distill.processes import PARENT, Terminated, noted, terminated
from hf_distill.training.commits import checkpoints, problem

ROOT = Path(__file__).parents[2]


class SignalAt(TrainerCallback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, number, step):
        self.number, self.step = number, step

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(
    ("number", "options"),
    [
        (signal.SIGTERM, {"save_strategy": "no"}),
        (signal.SIGINT, {"save_steps": 2}),
        (
            signal.SIGTERM,
            {"save_strategy": "epoch", "save_total_limit": 1},
        ),  # the step that is the epoch's last
    ],
)
def test_a_signal_ends_a_training_after_a_checkpoint(tmp_path, bert_tokenizer, number, options):
    whole = run(tmp_path / "whole", bert_tokenizer, **options)
    whole.train()
    before = [signal.getsignal(which) for which in (signal.SIGTERM, signal.SIGINT)]
    step = 4 if options.get("save_strategy") == "epoch" else 3
    ended = []

    class Ends(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            ended.append(state.global_step)

    stopped = run(tmp_path / "out", bert_tokenizer, [SignalAt(number, step), Ends()], **options)
    with pytest.raises(StoppedError) as raised:
        stopped.train()
    checkpoint = tmp_path / "out" / f"checkpoint-{step}"
    assert raised.value.exit_code == 128 + number and raised.value.checkpoint == str(checkpoint)
    assert f"Stopped by {signal.Signals(number).name} after step {step} of 4: {checkpoint} is saved" in str(
        raised.value
    )
    assert checkpoints(tmp_path / "out")[0] == checkpoint and problem(checkpoint) is None and ended == [step]
    assert [signal.getsignal(which) for which in (signal.SIGTERM, signal.SIGINT)] == before
    again = run(tmp_path / "out", bert_tokenizer, **options)
    again.train(resume_from_checkpoint=True)
    assert kept(weights(again), weights(whole))


def test_told_twice(monkeypatch):
    with noted() as request:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert request.number == signal.SIGINT
        monkeypatch.setattr(time, "monotonic", lambda: request.at + 2)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_elsewhere_sigterm_is_an_exception():
    with pytest.raises(Terminated) as raised, terminated():
        os.kill(os.getpid(), signal.SIGTERM)
    assert raised.value.code == 143


@pytest.mark.parametrize("ending", ["kill", "exit"])
def test_a_child_ends_with_its_parent(tmp_path, ending):
    child = "from hf_distill.processes import end_with_parent; end_with_parent(); import time; print(1, flush=True); time.sleep(60)"
    parent = (
        "import os, subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], env={{**os.environ, {PARENT!r}: str(os.getpid())}},"
        " stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n" + ("os.kill(os.getpid(), 9)" if ending == "kill" else "os._exit(0)")
    )
    done = subprocess.run(
        [sys.executable, "-c", parent], env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True, timeout=60
    )  # fmt: skip
    number = int(done.stdout)
    for _ in range(100):
        try:
            if Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
            os.kill(number, 0)
        except (ProcessLookupError, FileNotFoundError):
            return
        time.sleep(0.1)
    os.kill(number, signal.SIGKILL)
    pytest.fail("it outlived its parent")

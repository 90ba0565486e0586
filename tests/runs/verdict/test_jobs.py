"""A verdict whose trainings several processes share: side by side on two cores, and together under a launcher."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from test_distributed import LAUNCH_TWO, environment

from conftest import sentences
from hf_distill.errors import HfDistillError
from hf_distill.runs.verdict.jobs import LOG_FILE, STEPS_FILE, Job, Place, run_jobs
from hf_distill.verdict.answers import load_rows

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
side_by_side = pytest.mark.skipif(
    len(CORES) < 2, reason="it takes two cores, and a system that shares them out"
)
PATIENCE = 400
"""Seconds after which something hangs."""

PARTS = [("student", 3), ("student", 4), ("baseline", 3), ("baseline", 4), ("single", 3), ("single", 4)]


def write_recipe(folder: Path, checkpoints: dict[str, str], held_out: datasets.Dataset) -> Path:
    """Two teachers, two seeds, a student of one teacher besides; half of the training rows have no label."""
    half = [{**row, "label": row["label"] if i % 2 else None} for i, row in enumerate(sentences(48, seed=7))]
    datasets.Dataset.from_list(half).to_json(folder / "train.jsonl")
    datasets.Dataset.from_list(sentences(20, seed=8)).to_json(folder / "validation.jsonl")
    held_out.to_json(folder / "test.jsonl")
    (folder / "tiny.yaml").write_text(f"""
data:
  files: {{train: train.jsonl, validation: validation.jsonl, test: test.jsonl}}
  label_names: [negative, positive]
teachers: {{models: [{checkpoints["bert"]}, {checkpoints["roberta"]}]}}
student: {{model: {checkpoints["student"]}}}
fusion: linear_pool
training:
  use_cpu: true
  max_steps: 6
  per_device_train_batch_size: 8
  learning_rate: 1e-2
  logging_steps: 2
  save_strategy: no
  eval_strategy: steps
  eval_steps: 2
  seed: 3
  disable_tqdm: true
  output_dir: out
evaluation: {{seeds: 2, single_teacher: true}}
""")
    return folder


@contextlib.contextmanager
def on(cores: Sequence[int]) -> Iterator[None]:
    """What is started inside has these cores: with two, two trainings run at a time; with one, all in one process."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def run(folder: Path, *command: str) -> SimpleNamespace:
    """What a command of Python's came to; nothing that it started outlives it."""
    process = subprocess.Popen(
        [sys.executable, *command], env=environment(), cwd=folder, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return SimpleNamespace(code=process.returncode, out=out, err=err)


def train(folder: Path, *overrides: str) -> SimpleNamespace:
    """The command, as it is installed: what lies in the working directory comes last."""
    return run(folder, "-P", "-m", "hf_distill", "train", "tiny.yaml", *overrides)


def begun(printed: str) -> list[tuple[str, int]]:
    """The trainings that were given processes of their own."""
    found = re.findall(r"The training of the (\w+) with seed (\d) begins", printed)
    return [(part, int(seed)) for part, seed in found]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, checkpoints, held_out) -> Path:
    return write_recipe(tmp_path_factory.mktemp("verdict"), checkpoints, held_out)


@pytest.fixture(scope="module")
def alone(folder) -> dict[tuple[str, int], object]:
    """The rows of all trainings where one process makes all of them."""
    with on(CORES[:1]):
        done = train(folder, "training.output_dir=alone")
    assert done.code == 0, done.err[-4000:]
    assert "Verdict: training 5 of 5: single, seed 4" in done.out and begun(done.out) == []
    return rows_of(folder / "alone")


def rows_of(out: Path) -> dict[tuple[str, int], object]:
    """What the trainings of a finished run answer, after a look at what lies around them."""
    names = {f"rows-{part}-{seed}.npz" for part, seed in PARTS} | {"rows-teachers.npz"}
    assert {path.name for path in (out / "verdict").iterdir()} == names
    for part, seed in PARTS[1:]:
        assert (out / f"seed-{seed}" / part / "model.safetensors").is_file()
    assert not [*out.rglob(STEPS_FILE), *out.rglob("checkpoint-*")]
    content = json.loads((out / "report.json").read_text())
    assert content["seeds"] == [3, 4] and content["rows"] == 33
    assert [(t["part"], t["seed"], t["steps"]) for t in content["trainings"]] == [
        (*part, 6) for part in PARTS
    ]
    for name in ("student", "fine-tuned, last step", "fine-tuned, best step", "student of bert"):
        assert set(content["systems"][name]["by_seed"]) == {"3", "4"}, name
    return {part: load_rows(out / "verdict" / "rows-{}-{}.npz".format(*part)) for part in PARTS}


@pytest.mark.slow
@pytest.mark.distributed
@side_by_side
def test_side_by_side_as_in_one_process_also_after_a_failure(folder, alone):
    """One of the trainings cannot save its student; the others are not made again, and all are what they are alone."""
    out = folder / "out"
    in_the_way = out / "seed-4" / "baseline" / "model.safetensors"
    in_the_way.mkdir(parents=True)
    with on(CORES[:2]):
        failed = train(folder)
        assert failed.code == 1
        # Of five, two at a time: when the fourth begins, two are there, and when it fails, the fifth may have begun.
        assert begun(failed.out)[:4] == [("baseline", 3), ("single", 3), ("student", 4), ("baseline", 4)]
        assert (
            "The training of the baseline with seed 4 ended with exit code 1. The end of out/seed-4/"
            in failed.err
        )
        assert "Is a directory" in failed.err.partition("The end of")[2]
        assert failed.err.rstrip().endswith("the same command goes on from there.")
        assert not (out / "report.json").exists()
        in_the_way.rmdir()
        done = train(folder)
    assert done.code == 0, done.err[-4000:]
    (line,) = re.findall("Finished before, and not trained again: (.*)\\.", done.out)
    kept = [(part, int(seed)) for part, seed in re.findall(r"(\w+) of seed (\d)", line)]
    assert "is of this recipe, and is not trained again" in done.out
    assert len(kept) >= 2 and ("baseline", 4) in begun(done.out)
    assert sorted(kept + begun(done.out)) == sorted(PARTS[1:])
    found = rows_of(out)
    for part, expected in alone.items():
        assert found[part].facts["weights"] == expected.facts["weights"], part
        assert found[part].key == expected.key
        for name, logs in expected.rows.log_probs.items():
            np.testing.assert_array_equal(found[part].rows.log_probs[name], logs, err_msg=f"{part} {name}")
    for part, seed in PARTS[1:]:
        log = (out / f"seed-{seed}" / part / LOG_FILE).read_text()
        assert f"seed {seed}; step 6 of 6; loss" in log and "Traceback" not in log


@pytest.mark.distributed
@side_by_side
@pytest.mark.slow
def test_data_that_change_while_it_trains_are_refused_by_the_parts(checkpoints, held_out, tmp_path):
    """Also: another package of our name in the working directory is not taken for ours, and modules there are found."""
    folder = write_recipe(tmp_path, checkpoints, held_out)
    (folder / "hf_distill").mkdir()
    (folder / "hf_distill" / "__init__.py").write_text("raise SystemExit('another package')\n")
    (folder / "mine.py").write_text("""
from pathlib import Path
from hf_distill.losses import forward_kl

def edited(*arguments, **options):
    path = Path("train.jsonl")
    path.write_text(path.read_text().replace("film", "play"))
    return forward_kl(*arguments, **options)
""")
    with on(CORES[:2]):
        done = train(folder, "losses.distill=mine:edited", "evaluation.seeds=1", "training.max_steps=1")
    assert done.code == 3, (done.out + done.err)[-4000:]
    assert begun(done.out) == [("baseline", 3), ("single", 3)]
    assert re.search(
        r"The training of the \w+ with seed 3 ended with exit code 3\. The end of out/seed-3", done.err
    )
    assert "The data of out/recipe.yaml have changed since this run read them" in done.err
    assert [path.name for path in sorted((folder / "out" / "verdict").iterdir())] == [
        "rows-student-3.npz",
        "rows-teachers.npz",
    ]


@pytest.mark.slow
@pytest.mark.distributed
@side_by_side
def test_two_processes_train_each_part_together(folder, alone):
    """They are given half the rows of a batch each, so what they train is what one process does."""
    out = folder / "launched"
    said = folder / "said"
    command = [
        *LAUNCH_TWO, "--log_dir", str(said), "--tee", "3", "-m", "hf_distill", "train", "tiny.yaml",
        "training.output_dir=launched", "training.per_device_train_batch_size=4",
    ]  # fmt: skip

    def launched() -> str:
        """What the first process printed; the second prints nothing."""
        before = set(said.glob("*")) if said.exists() else set()
        done = run(folder, *command)
        assert done.code == 0, (done.out + done.err)[-6000:]
        (now,) = set(said.glob("*")) - before
        first, second = (next(now.glob(f"*/{rank}/stdout.log")).read_text() for rank in (0, 1))
        assert second == ""
        assert "Evaluating" not in next(now.glob("*/1/stderr.log")).read_text()
        assert first.count("The report is in launched") == first.count("distilled student: accuracy") == 1
        return first

    printed = launched()
    assert [printed.count(f"Verdict: training {i} of 5: ") for i in range(1, 7)] == [1, 1, 1, 1, 1, 0]
    assert begun(printed) == []
    found = rows_of(out)
    for part, expected in alone.items():
        np.testing.assert_array_equal(found[part].rows.example_ids, expected.rows.example_ids)
        for name, logs in expected.rows.log_probs.items():
            np.testing.assert_allclose(
                found[part].rows.log_probs[name], logs, atol=1e-5, err_msg=f"{part} {name}"
            )
    answers = [found[part].rows.log_probs["last" if part[0] == "baseline" else "student"] for part in PARTS]
    for i, one in enumerate(answers):
        for other in answers[:i]:
            assert np.abs(one - other).max() > 1e-4

    # Again, with one part lost: both processes find the others, and train that one.
    (out / "verdict" / "rows-single-4.npz").unlink()
    printed = launched()
    assert "is of this recipe, and is not trained again" in printed
    assert re.findall("Verdict: training .*", printed) == ["Verdict: training 1 of 1: single, seed 4"]
    again = rows_of(out)["single", 4].rows.log_probs["student"]
    np.testing.assert_allclose(again, found["single", 4].rows.log_probs["student"], atol=1e-6)


# ---- Jobs alone ----

PROGRAM = (sys.executable, "-P", "-c", "import sys; exec(sys.argv[1])")


def job(folder: Path, name: str, code: str) -> Job:
    return Job(name, (code,), folder / name, 10)


def test_two_run_at_the_same_time_and_are_announced(tmp_path, capsys):
    """Each ends when it has seen the other."""
    wait = "import pathlib, time\npathlib.Path({0!r}).touch()\nwhile not pathlib.Path({1!r}).exists(): time.sleep(0.01)"
    files = [str(tmp_path / name) for name in "12"]
    jobs = [job(tmp_path, "a", wait.format(*files)), job(tmp_path, "b", wait.format(*files[::-1]))]
    run_jobs(jobs, [Place(), Place()], program=PROGRAM)
    assert capsys.readouterr().out.splitlines() == [
        f"a begins (1 of 2); its log is {tmp_path / 'a' / LOG_FILE}",
        f"b begins (2 of 2); its log is {tmp_path / 'b' / LOG_FILE}",
    ]


def test_who_is_told_to_end_takes_the_jobs_along(tmp_path, monkeypatch):
    """SIGTERM is what schedulers send; whoever had a handler has it again afterwards."""

    def unheard(number: int, frame: object) -> None:
        pytest.fail("the signal came to the handler of before")

    before = signal.signal(signal.SIGTERM, unheard)
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(real(*a, **k)) or started[-1])
    sleeping = "import time; time.sleep(60)"
    try:
        with pytest.raises(SystemExit, match="143"):
            run_jobs(
                [job(tmp_path, name, sleeping) for name in "ab"],
                [Place(), Place()],
                program=PROGRAM,
                show=False,
                wait=lambda _: os.kill(os.getpid(), signal.SIGTERM),
            )
        assert [process.returncode for process in started] == [-signal.SIGTERM] * 2
        assert signal.getsignal(signal.SIGTERM) is unheard
    finally:
        signal.signal(signal.SIGTERM, before)


def test_modules_are_those_of_this_process(tmp_path, monkeypatch):
    """Not those of the same name that lie in the working directory."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "some_module.py").write_text(f"where = {name!r}")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend(tmp_path / "there")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "here"))
    run_jobs(
        [job(tmp_path, "a", "import some_module; print(some_module.where)")],
        [Place()],
        program=PROGRAM,
        show=False,
    )
    assert (tmp_path / "a" / LOG_FILE).read_text() == "there\n"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os; print('loading', flush=True); os.kill(os.getpid(), 9)",
         r"a was ended by signal 9 \(Killed.*\), as the system does where memory runs out .*taskset"),
        ("import os; print('loading', flush=True); os.kill(os.getpid(), 15)",
         r"a was ended by signal 15 \(Terminated.*\)\. The end of"),
    ],
)  # fmt: skip
def test_a_signal_is_no_exit_code(tmp_path, code, words):
    with pytest.raises(HfDistillError, match=words) as raised:
        run_jobs([job(tmp_path, "a", code)], [Place()], program=PROGRAM, show=False)
    assert "    loading\nWhat was finished is kept" in str(raised.value) and raised.value.exit_code == 1


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "a").write_text("a file")
    with pytest.raises(
        HfDistillError, match=r"a could not be started: .*File exists.*What was finished is kept"
    ):
        run_jobs([job(tmp_path, "a", "")], [Place()], program=PROGRAM, show=False)

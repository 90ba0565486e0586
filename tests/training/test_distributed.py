"""One process and two (gloo): the same gradients, logs, evaluation and report."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch

pytestmark = pytest.mark.distributed

LAUNCH_TWO = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]  # fmt: skip


def environment() -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def results(tmp_path_factory, checkpoints, rows):
    """What one process saw with 8 rows at a time, and two with 4, 2 twice, and 1 four times."""
    labels = [row["label"] if i in (0, 1, 3) or i > 8 else -100 for i, row in enumerate(rows)]
    uneven = datasets.Dataset.from_dict({"text": rows["text"][:], "label": labels}).select(range(32))
    found = {}
    running = []
    for name, launcher, shapes in (("one", [], [[8, 1]]), ("two", LAUNCH_TWO, [[4, 1], [2, 2], [1, 4]])):
        folder = tmp_path_factory.mktemp(name)
        uneven.save_to_disk(str(folder / "rows"))
        (folder / "checkpoints.json").write_text(json.dumps(checkpoints))
        (folder / "shapes.json").write_text(json.dumps(shapes))
        launcher = [*launcher, "--log_dir", str(folder / "said"), "--tee", "3"] if launcher else []
        command = [sys.executable, *launcher, str(Path(__file__).with_name("two_processes.py")), str(folder)]
        log = (folder / "log").open("w")
        running.append(
            (name, folder, subprocess.Popen(command, env=environment(), stdout=log, stderr=subprocess.STDOUT))
        )
    for name, folder, process in running:
        launched = name == "two"
        assert process.wait(timeout=300) == 0, (folder / "log").read_text()[-4000:]
        found[name] = [json.loads(path.read_text()) for path in sorted(folder.glob("rank*.json"))]
        for rank, result in enumerate(found[name] if launched else []):
            result["said"] = {
                stream: next((folder / "said").glob(f"*/*/{rank}/{stream}.log")).read_text()
                for stream in ("stdout", "stderr")
            }
    return found


def test_the_launch_really_gives_two_processes(results):
    assert len(results["one"]) == 1 and len(results["two"]) == 2
    for rank in results["two"]:
        runs = [run for run in rank.values() if isinstance(run, dict) and "world_size" in run]
        assert {run["world_size"] for run in runs} == {2}
        assert {run["wrapped"] for run in runs} == {"DistributedDataParallel"}


@pytest.mark.parametrize("kind", ["", "hidden "])
@pytest.mark.parametrize("shape", ["4x1", "2x2", "1x4"])
def test_same_gradients(results, kind, shape):
    expected = results["one"][0][f"{kind}8x1"]["gradients"]
    for rank in results["two"]:
        found = rank[f"{kind}{shape}"]["gradients"]
        assert any(name.startswith("projections.") for name in found) == bool(kind)
        flat = [torch.cat([torch.tensor(g[name]).flatten() for name in expected]) for g in (expected, found)]
        assert (flat[0] - flat[1]).abs().max() <= 1e-5 * flat[0].abs().max()


@pytest.mark.parametrize("kind", ["", "hidden "])
@pytest.mark.parametrize("shape", ["4x1", "2x2", "1x4"])
def test_same_logs(results, kind, shape):
    one, two = results["one"][0][f"{kind}8x1"]["logs"], results["two"][0][f"{kind}{shape}"]["logs"]
    names = ["loss", "loss_task", "loss_distill", "teacher_disagreement", "grad_norm"]
    names += [name for name in one[0] if "/" in name]
    assert len(names) == (12 if kind else 5)
    for expected, found in zip(one, two, strict=True):
        for name in names:
            assert found[name] == pytest.approx(expected[name], rel=1e-4), name


def test_a_resumed_run_of_two_processes_is_the_uninterrupted_one(results):
    for rank in results["two"]:
        assert rank["resumed"]["equal"] == [True] * 6
        assert "| world_size | 4          | 2   |" in rank["resumed"]["refused"]
        assert "--allow world_size" in rank["resumed"]["refused"]


def test_a_training_leaves_no_group_of_processes_behind(results):
    assert [rank["resumed"]["groups_left"] for rank in results["two"]] == [0, 0]


@pytest.mark.parametrize("name", ["drawn", "unheard"])
def test_projections_without_a_target_wait_for_nobody(results, name):
    """A teacher that is not drawn, or has no weight, leaves its projection without a gradient; DDP must not mind."""
    for rank in results["two"]:
        logs = rank[name]["logs"]
        assert len(logs) == 2 and all(math.isfinite(log["loss"]) for log in logs)
        assert ("loss_hidden_mse/deberta" in logs[0]) == (name == "drawn")
        assert "loss_hidden_cosine/fused" in logs[0]


def test_sharding_sees_the_projections(results):
    for rank in results["two"]:
        names = [f"projections.{name}.{part}" for name in "ab" for part in ("bias", "weight")]
        assert rank["sharded"]["names"] == names
        assert rank["sharded"]["difference"] <= 1e-5


def test_same_evaluation_and_report_although_13_rows_do_not_divide(results):
    one = results["one"][0]["8x1"]
    for rank in results["two"]:
        for name, value in one["evaluation"].items():
            if name.startswith(("eval_loss", "eval_teacher")):
                assert rank["4x1"]["evaluation"][name] == pytest.approx(value, rel=1e-4), name
        report = rank["4x1"]["report"]
        assert report["rows"] == 13
        for system, result in one["report"]["systems"].items():
            assert report["systems"][system]["metrics"] == pytest.approx(result["metrics"], rel=1e-4), system


def test_processes_share_the_cache_and_read_all_of_it(results, rows):
    """Each computes a part of the rows once; training from it has the gradients of live teachers."""
    computed = [rank["computed"] for rank in results["two"]]
    assert min(computed) > 0 and sum(computed) == results["one"][0]["computed"] == 2 * len(
        set(rows["text"][:32])
    )
    expected = results["one"][0]["8x1"]["gradients"]
    for found in [rank["cached"]["gradients"] for rank in results["two"]]:
        flat = [torch.cat([torch.tensor(g[name]).flatten() for name in expected]) for g in (expected, found)]
        assert (flat[0] - flat[1]).abs().max() <= 1e-5 * flat[0].abs().max()


def test_one_process_speaks_for_all(results):
    first, second = (rank["said"] for rank in results["two"])
    for said in ("has no run_state.json", "How the teachers' labels were matched"):
        assert said in first["stdout"]
    assert second["stdout"] == ""
    assert "is damaged" in first["stderr"] and "rows of 2 teacher(s)" in first["stderr"]
    assert [rank["mended"] for rank in results["two"]].count(0) == 1
    for bar in ("is damaged", "Teacher cache", "Teacher bert", "Evaluating", "Held-out rows", "Tokenizing"):
        assert bar not in second["stderr"]

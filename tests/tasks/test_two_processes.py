"""Several labels, scores, images and a regressor for classes on two processes: update, figures, fusion, thresholds, bins of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from digit_images import LABELS, image_checkpoints, make_vit
from several_labels import cross_checkpoints, label_checkpoints, score_checkpoints

ROOT = Path(__file__).parents[2]
LAUNCH_TWO = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.distributed
def test_one_process_and_two_are_alike(tmp_path, bert_tokenizer, roberta_tokenizer):
    made = {
        name: make(tmp_path / name, bert_tokenizer, roberta_tokenizer)
        for name, make in (
            ("labels", label_checkpoints),
            ("scores", score_checkpoints),
            ("cross", cross_checkpoints),
        )
    }
    made["images"] = image_checkpoints(tmp_path / "images", make_vit(LABELS))
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    found = {}
    for processes, launcher in ((1, []), (2, LAUNCH_TWO)):
        folder = tmp_path / str(processes)
        folder.mkdir()
        (folder / "checkpoints.json").write_text(json.dumps(made))
        command = [
            sys.executable,
            *launcher,
            str(ROOT / "tests" / "two_tasks.py"),
            str(folder),
            str(processes),
        ]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        found[processes] = [json.loads(file.read_text()) for file in sorted(folder.glob("rank*.json"))]
    assert len(found[2]) == 2
    for task, one in found[1][0].items():
        for two in (rank[task] for rank in found[2]):
            assert two["weights"] == pytest.approx(one["weights"], abs=1e-5)
            assert two["losses"] == pytest.approx(one["losses"], abs=1e-4)
            assert two["eval"] == pytest.approx(one["eval"], rel=1e-4)
            assert two["report"] == pytest.approx(one["report"], rel=1e-4)
            assert two["fusion"].split(":")[0] == one["fusion"].split(":")[0]
            assert len(two["conversions"]) == len(one["conversions"]) == (task == "cross")
            for pair in zip(two["conversions"], one["conversions"], strict=True):
                assert pair[0] == pytest.approx(pair[1], rel=1e-4)
            assert two["thresholds"] == (
                None if one["thresholds"] is None else pytest.approx(one["thresholds"], abs=1e-4)
            )

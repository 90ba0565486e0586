"""Rows that are neither text nor images: the task of docs/extending.md, by its path, through cache and recipe's trust."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from hf_distill import DistillationArguments, MultiTeacherDistillationTrainer, Teacher, evaluate_ensemble
from hf_distill.errors import ConfigurationError, DataError
from hf_distill.tasks import build_task
from hf_distill.teachers.cache.build import TeacherCache

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
PATH = "my_table:TableClassification"
ACTIONS = ["left", "right"]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert sum(bool(line.strip()) for block in blocks for line in block.splitlines()) <= 60
    (folder / "my_table.py").write_text(blocks[0])
    sys.path.insert(0, str(folder))
    import my_table

    yield my_table
    sys.path.remove(str(folder))
    del sys.modules["my_table"]


def numbers(count: int, seed: int = 0) -> datasets.Dataset:
    seen = np.random.default_rng(seed).normal(size=(count, 4))
    labels = [ACTIONS[int(x > 0)] if i % 2 else None for i, x in enumerate(seen.sum(1))]
    return datasets.Dataset.from_dict({"observation": seen.tolist(), "label": labels})


def policy(table, width, seed=0):
    torch.manual_seed(seed)
    return table.MLPForTable(table.TableConfig(width=width, **build_task(PATH).head(ACTIONS))).eval()


def test_a_task_of_ones_own_by_its_path_and_with_its_own_view(table, tmp_path):
    for name, width in (("wide", 16), ("narrow", 8)):
        policy(table, width, seed=width).save_pretrained(tmp_path / name)
    teachers = [str(tmp_path / "wide"), str(tmp_path / "narrow")]
    options = {
        "teachers": teachers, "task": PATH, "label_names": ACTIONS, "train_dataset": numbers(32),
        "args": DistillationArguments(
            output_dir=str(tmp_path / "out"), use_cpu=True, max_steps=3, report_to="none", disable_tqdm=True, logging_steps=1,
            dataloader_pin_memory=False,
        ),
    }  # fmt: skip
    logs = []
    for more in ({}, {"cache_dir": tmp_path / "cache", "cache_settings": settings()}):
        trainer = MultiTeacherDistillationTrainer(model=policy(table, 4), **options, **more)
        trainer.train()
        logs.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert logs[0] == pytest.approx(logs[1], abs=1e-6) and len(logs[0]) == 3
    trainer.save_model()
    report = evaluate_ensemble(
        teachers, numbers(20, 1), student=str(tmp_path / "out"), task=PATH, label_names=ACTIONS
    )
    assert set(report.systems) == {
        "student",
        "teacher:wide",
        "teacher:narrow",
        "ensemble",
        "student+teachers",
    }
    # What the teacher answers is what its module makes of the numbers.
    rows = numbers(6, 2)
    teacher = Teacher.from_pretrained(teachers[0], task=PATH)
    (batch,) = [teacher.view.collate({"observation": ragged(rows)}, torch.zeros(6))]
    expected = teacher.model.net(torch.tensor(rows["observation"][:], dtype=torch.float32))
    assert torch.allclose(teacher(batch).logits, expected, atol=1e-6)
    assert (
        TeacherCache(teachers, tmp_path / "cache", settings(), task=PATH).add(numbers(32), ["observation"])
        == 0
    )


def settings():
    from hf_distill.teachers.cache.settings import CacheSettings

    return CacheSettings(dtype="float32")


def ragged(rows):
    from hf_distill.rows.columns import Ragged

    return Ragged.of(rows["observation"][:])


def test_what_does_not_fit_it_is_said(table, tmp_path):
    rows = datasets.Dataset.from_dict({"observation": [[1.0] * 4, None], "label": ACTIONS})
    options = {
        "model": policy(table, 4), "teachers": [Teacher(policy(table, 8), name="own", task=PATH)], "task": PATH,
        "label_names": ACTIONS, "args": DistillationArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none"),
    }  # fmt: skip
    with pytest.raises(
        DataError, match="Row 1 of the training set, column 'observation': found None, expected a list"
    ):
        MultiTeacherDistillationTrainer(train_dataset=rows, **options)
    with pytest.raises(ConfigurationError, match="cannot be augmented"):
        MultiTeacherDistillationTrainer(train_dataset=numbers(8), augment={"flip": True}, **options)
    with pytest.raises(ConfigurationError, match="Hidden losses compare the states of tokens"):
        MultiTeacherDistillationTrainer(train_dataset=numbers(8), hidden_losses=["hidden_mse"], **options)

"""The seam between tasks: a task of one's own is one class and one line, and an unknown one is a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conftest import make_student, sentences
from hf_distill import (
    TASKS,
    DistillationArguments,
    Ensemble,
    LogPool,
    MultiTeacherDistillationTrainer,
    Teacher,
    audit_teachers,
    evaluate_ensemble,
    reverse_kl,
)
from hf_distill.errors import ConfigurationError, DataError
from hf_distill.fusion import GaussianPool, build_fusion
from hf_distill.losses import cross_entropy
from hf_distill.rows.labels import LabelReader, count_labelled
from hf_distill.rows.texts import TEXTS
from hf_distill.tasks import build_task, heard_alone, refuse_other_family
from hf_distill.tasks.task import output_names
from hf_distill.teachers.cache.build import TeacherCache


@dataclass(frozen=True)
class Stars:
    """A throw-away task: reviews with one to five stars are for or against, and with three neither."""

    name: str = "stars"
    pipeline: str = "text-classification"
    auto_class: str = "AutoModelForSequenceClassification"
    architecture: str = "ForSequenceClassification"
    peft_type: str | None = None
    content: Any = TEXTS
    family: str = "categorical"
    text_columns: tuple[str, ...] = ("review",)
    metrics: tuple[str, ...] = ("accuracy", "brier")
    loss: str = "reverse_kl"
    fusion: str = "log_pool"

    def label_names(self, given: Any, dataset: Any, label_column: str, config: Any) -> tuple[str, ...]:
        return ("negative", "positive")

    def label_reader(self, label_column: str, label_names: Sequence[str]) -> LabelReader:
        def encode(stars: Sequence[Any], rows: Sequence[int]) -> list[int]:
            return [-100 if value in (None, 3) else int(value > 3) for value in stars]

        return LabelReader(label_column, ["stars", *label_names], lambda feature: encode)

    def head(self, label_names: Sequence[str]) -> dict[str, Any]:
        names = dict(enumerate(label_names))
        return {"num_labels": 2, "id2label": names, "label2id": {name: i for i, name in names.items()}}

    def refuse_other_head(self, config: Any, what: str) -> None:
        if config.num_labels != 2:
            raise DataError(f"{what} is neither for nor against.")

    def refuse_other_labels(self, config: Any, label_names: Sequence[str], what: str) -> None:
        assert config.num_labels == len(label_names)

    def label_loss(self, logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        return 2 * cross_entropy(logits, labels)

    def log_probs(self, logits: Tensor) -> Tensor:
        return F.log_softmax(logits, -1)

    def right(self, log_probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return log_probs.argmax(1) == labels


@pytest.fixture
def reviews():
    stars = (1, 5, 2, 4, 3)
    rows = [(row["text"], row["label"], stars[i % 5]) for i, row in enumerate(sentences(40, seed=3))]
    return datasets.Dataset.from_list([{"review": text, "label": n} for text, _, n in rows])


def test_a_throw_away_task_trains_and_is_evaluated(
    monkeypatch, teachers, checkpoints, reviews, bert_tokenizer, tmp_path
):
    monkeypatch.setitem(TASKS, "stars", Stars())
    trainer = MultiTeacherDistillationTrainer(
        model=make_student(bert_tokenizer),
        teachers=[checkpoints["bert"], teachers[1]],
        args=DistillationArguments(
            output_dir=str(tmp_path), max_steps=2, use_cpu=True, disable_tqdm=True, report_to="none"
        ),
        train_dataset=reviews,
        processing_class=bert_tokenizer,
        task="stars",
    )
    assert trainer.teachers[0].task == Stars() and trainer.distillation_loss is reverse_kl
    assert trainer.train_dataset["labels"][:5] == [0, 1, 0, 1, -100]
    assert count_labelled(trainer.train_dataset) == 32
    trainer.train()
    trainer.save_model()
    assert output_names(trainer.student.config) == ("negative", "positive")
    report = evaluate_ensemble(
        [checkpoints["bert"], teachers[1]], reviews, student=str(tmp_path), task="stars", batch_size=8
    )
    assert report.task == "stars" and report.rows == 40
    assert report.fusion == "log_pool()" and set(report.systems["student"].metrics) == {"accuracy", "brier"}
    assert "8 of 40 rows have no label" in report.notes[0]
    labelled = reviews.filter(lambda row: row["label"] != 3)
    own = Ensemble(trainer.teachers, LogPool(), ["negative", "positive"], task="stars")
    right = own.log_probs(labelled["review"][:]).numpy().argmax(1) == (np.array(labelled["label"][:]) > 3)
    assert report.systems["ensemble"].metrics["accuracy"] == pytest.approx(right.mean())


def test_tasks_that_read_one_column_differently_do_not_share_prepared_rows():
    readers = [
        task.label_reader("label", ["negative", "positive"])
        for task in (Stars(), TASKS["text-classification"])
    ]
    assert readers[0].key != readers[1].key == ["negative", "positive"]


def test_a_task_of_ones_own_is_given_as_an_object_or_by_its_path(checkpoints):
    assert Teacher.from_pretrained(checkpoints["bert"], task=Stars()).task == Stars()
    found = build_task("hf_distill.tasks.text_classification:TextClassification")
    assert found == TASKS["text-classification"] == build_task(found)


@pytest.mark.parametrize(
    "ask", ["Teacher", "from_pretrained", "evaluate", "audit", "trainer", "ensemble", "cache"]
)
def test_an_unknown_task_is_a_sentence_with_the_choices(ask, teachers, checkpoints, rows, tmp_path):
    folder, task = checkpoints["bert"], "text-clasification"
    asked = {
        "Teacher": lambda: Teacher(teachers[0].model, teachers[0].view.tokenizer, name="x", task=task),
        "from_pretrained": lambda: Teacher.from_pretrained(folder, task=task),
        "evaluate": lambda: evaluate_ensemble([folder], rows, task=task),
        "audit": lambda: audit_teachers([folder], rows, task=task),
        "trainer": lambda: MultiTeacherDistillationTrainer(model=folder, teachers=[folder], task=task),
        "ensemble": lambda: Ensemble([folder], task=task),
        "cache": lambda: TeacherCache([folder], tmp_path, task=task),
    }[ask]
    message = r"there is no task named 'text-clasification'; known: image-classification, multi-label-classification, regression, text-classification \(did you mean 'text-class"
    with pytest.raises(ConfigurationError, match=message):
        asked()


@pytest.mark.parametrize("task", sorted(TASKS))
def test_a_single_teacher_is_heard_by_a_fusion_of_the_task_s_own_family(task):
    said = heard_alone(task, 1, 3)
    fusion = build_fusion(said)
    refuse_other_family(TASKS[task], fusion=fusion)
    assert fusion.weights == (0.0, 1.0, 0.0)


def test_a_single_teacher_stays_on_its_line():
    pool = GaussianPool(weights=(0.5, 0.5), scales=((2.0, 1.0), (3.0, 0.0)))
    alone = build_fusion(heard_alone("regression", 1, 2, pool))
    assert alone(torch.tensor([[[5.0]], [[7.0]]])).item() == 21.0

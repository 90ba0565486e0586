"""Tiny checkpoints and rows of other tasks than one class of several, for their tests."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import datasets
import torch
import yaml

from conftest import BAD, GOOD, OTHER, make_bert, make_roberta, make_student

LABELS = ("praise", "blame", "long")


def several_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows of text, the labels that hold, and a score: how much praise and how much blame."""
    generator = torch.Generator().manual_seed(seed)

    def draw(words: list[str], many: int) -> list[str]:
        return [words[int(torch.randint(len(words), (1,), generator=generator))] for _ in range(many)]

    rows = []
    for _ in range(count):
        good, bad, long = (int(torch.randint(2, (1,), generator=generator)) for _ in range(3))
        words = draw(GOOD, good) + draw(BAD, bad) + draw(OTHER, 8 if long else 3)
        held = [name for name, own in zip(LABELS, (good, bad, long), strict=True) if own]
        rows.append({"text": " ".join(words), "label": held, "score": 2.0 + 2 * good - bad + 0.5 * long})
    return rows


def label_dataset(count: int, seed: int) -> datasets.Dataset:
    """Raw rows whose label is the list of what holds."""
    rows = [{"text": row["text"], "label": row["label"]} for row in several_rows(count, seed)]
    features = {"text": datasets.Value("string"), "label": datasets.Sequence(datasets.Value("string"))}
    return datasets.Dataset.from_list(rows, features=datasets.Features(features))


def score_dataset(count: int, seed: int) -> datasets.Dataset:
    """Raw rows with a score."""
    return datasets.Dataset.from_list(
        [{"text": row["text"], "score": row["score"]} for row in several_rows(count, seed)]
    )


def label_checkpoints(folder: Path, bert_tokenizer: Any, roberta_tokenizer: Any) -> dict[str, str]:
    """Two teachers of other tokenizers and label orders, one of which lacks a label, and a student."""
    several = {"problem_type": "multi_label_classification"}
    made = {
        "bert": (make_bert(bert_tokenizer, ["blame", "praise", "long"], **several), bert_tokenizer),
        "roberta": (make_roberta(roberta_tokenizer, ["Praise", "Blame"], **several), roberta_tokenizer),
        "student": (make_student(bert_tokenizer, list(LABELS), **several), bert_tokenizer),
    }
    return _saved(folder, made)


def score_checkpoints(folder: Path, bert_tokenizer: Any, roberta_tokenizer: Any) -> dict[str, str]:
    """Two teachers of one score, on scales of their own, and a student."""
    one = {"problem_type": "regression"}
    made = {
        "bert": (make_bert(bert_tokenizer, ["LABEL_0"], **one), bert_tokenizer),
        "roberta": (make_roberta(roberta_tokenizer, ["stars"], **one), roberta_tokenizer),
        "student": (make_student(bert_tokenizer, ["score"], **one), bert_tokenizer),
    }
    return _saved(folder, made)


CLASSES = ("1", "2", "3", "4")


def class_dataset(count: int, seed: int) -> datasets.Dataset:
    """Raw rows whose label is the score without its fraction, as a class."""
    return datasets.Dataset.from_list(
        [{"text": row["text"], "label": str(math.floor(row["score"]))} for row in several_rows(count, seed)]
    )


def cross_checkpoints(folder: Path, bert_tokenizer: Any, roberta_tokenizer: Any) -> dict[str, str]:
    """A classifier and a regressor as teachers, a student of classes and one of scores."""
    one, one_of = {"problem_type": "regression"}, {"problem_type": "single_label_classification"}
    made = {
        "bert": (make_bert(bert_tokenizer, ["4", "2", "1", "3"], **one_of), bert_tokenizer),
        "roberta": (make_roberta(roberta_tokenizer, ["stars"], **one), roberta_tokenizer),
        "student": (make_student(bert_tokenizer, list(CLASSES), **one_of), bert_tokenizer),
        "scores": (make_student(bert_tokenizer, ["score"], **one), bert_tokenizer),
    }
    return _saved(folder, made)


def _saved(folder: Path, made: dict[str, Any]) -> dict[str, str]:
    for name, (model, tokenizer) in made.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {name: str(folder / name) for name in made}


def task_recipe(
    folder: Path,
    made: dict[str, str],
    task: str,
    label: str,
    *,
    validation: int,
    data: dict[str, Any],
    **sections: Any,
) -> Path:
    """A recipe of a task, and its rows in files.

    Args:
        folder: Where they are written.
        made: Checkpoints, of `label_checkpoints` or `score_checkpoints`.
        task: Its name.
        label: The column of `several_rows` that is learnt.
        validation: How many rows the validation split has.
        data: More of the section ``data``.
        sections: More sections, or other ones.
    """
    for split, count, seed in (("train", 48, 0), ("validation", validation, 1), ("test", 40, 2)):
        lines = [json.dumps({key: row[key] for key in ("text", label)}) for row in several_rows(count, seed)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    content = {
        "task": task,
        "data": {
            "files": {split: str(folder / f"{split}.jsonl") for split in ("train", "validation", "test")}, **data,
        },
        "teachers": {"models": [made["bert"], made["roberta"]], "cache_dir": str(folder / "cache")},
        "student": {"model": made["student"]},
        "training": {
            "output_dir": str(folder / "out"), "use_cpu": True, "max_steps": 3, "disable_tqdm": True,
            "report_to": "none", "learning_rate": 1e-2, "save_strategy": "no",
        },
        "evaluation": {"seeds": 1},
        **sections,
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path

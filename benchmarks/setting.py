"""What every benchmark measures on: rows, tokenizers, random models of real shapes, and trainers of them.

CPU: teachers 6×384 and a student 2×256 on rows of 8 to 64 tokens, 32 a batch, float32.
CUDA: teachers of BERT-base's shape and a student 6×768 on rows of 16 to 128 tokens, 128 a batch and at least 10,240 of them, so
that the device could be busy; bf16.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from hf_distill import DistillationArguments, MultiTeacherDistillationTrainer, Teacher
from hf_distill.teachers.cache.pipeline import by_length, token_budget

LABELS = ("World", "Sports", "Business", "Technology")
VOCABULARY = 30_522  # BERT's: it decides what an optimizer step of a small student costs
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
DATA = Path(__file__).parents[2] / "shared" / "data"

TINY, STUDENT, SMALL, HALF, BASE = (1, 32), (2, 256), (6, 384), (6, 768), (12, 768)


@dataclass(frozen=True)
class Shapes:
    """Layers × width of student and teachers, the lengths of the rows in tokens, rows of a batch, and the fewest rows at all."""

    student: tuple[int, int]
    teacher: tuple[int, int]
    shortest: int
    longest: int
    batch: int
    fewest: int = 0


def shapes(device: str) -> Shapes:
    """What is measured on a device."""
    return Shapes(STUDENT, SMALL, 8, 64, 32) if device == "cpu" else Shapes(HALF, BASE, 16, 128, 128, 10_240)


def host_shapes(device: str) -> Shapes:
    """What leaves nearly nothing to do to a device, so that the host's time shows."""
    return Shapes(TINY, TINY, 8, 64, 32) if device == "cpu" else Shapes(TINY, TINY, 16, 128, 128, 10_240)


def make_rows(count: int, shape: Shapes, seed: int = 0) -> datasets.Dataset:
    """Rows of random words, as many tokens long as the shapes say, evenly spread."""
    draw = random.Random(seed)
    texts = [
        " ".join(f"w{draw.randrange(VOCABULARY - 100)}" for _ in range(length - 2))  # [CLS] and [SEP]
        for length in (draw.randint(shape.shortest, shape.longest) for _ in range(max(count, shape.fewest)))
    ]
    return _with_labels(texts, [draw.randrange(len(LABELS)) for _ in texts])


def real_rows(name: str, count: int) -> datasets.Dataset | None:
    """Training rows of a set of ../shared/data with their real lengths; None where the folder is absent."""
    file = DATA / name / "train.jsonl.gz"
    if not file.is_file():
        return None
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    random.Random(0).shuffle(texts)
    return _with_labels(texts[:count], [i % len(LABELS) for i in range(len(texts[:count]))])


def _with_labels(texts: list[str], labels: list[int]) -> datasets.Dataset:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(LABELS))}
    )
    return datasets.Dataset.from_dict({"text": texts, "label": labels}, features=features)


def make_tokenizer(seed: int = 0, *, texts: Iterable[str] | None = None) -> BertTokenizer:
    """WordPiece that knows the words whole; another seed gives other ids, hence another view.

    Args:
        seed: Of the order of the ids.
        texts: Whose most frequent words are known; None: the words of `make_rows`.
    """
    if texts is None:
        words = [f"w{i}" for i in range(VOCABULARY - 100)]
    else:
        counts = Counter(word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower()))
        words = [word for word, _ in counts.most_common(VOCABULARY - 100)]
    random.Random(seed).shuffle(words)
    letters = [chr(c) for c in range(97, 123)]
    pieces = dict.fromkeys([*SPECIALS, *words, *letters, *(f"##{letter}" for letter in letters)])
    return BertTokenizer({piece: i for i, piece in enumerate(pieces)}, model_max_length=512)


def make_model(shape: tuple[int, int], seed: int) -> BertForSequenceClassification:
    """A BERT with random weights, of some layers × width."""
    layers, width = shape
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY,
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=max(width // 64, 1),
        intermediate_size=4 * width,
        id2label=dict(enumerate(LABELS)),
        label2id={label: i for i, label in enumerate(LABELS)},
    )
    return BertForSequenceClassification(config)


def make_teachers(
    count: int, shape: tuple[int, int], tokenizers: Sequence[BertTokenizer], dtype: torch.dtype | None = None
) -> list[Teacher]:
    """Teachers of one shape; the k-th reads through the k-th tokenizer, or the last."""
    return [
        Teacher(
            make_model(shape, seed=100 + k).to(dtype or torch.float32),
            tokenizers[min(k, len(tokenizers) - 1)],
            name=f"teacher-{k}",
        )
        for k in range(count)
    ]


def training_options(options: Namespace, folder: Path, epochs: int = 1) -> dict[str, Any]:
    """The arguments that every trainer of a benchmark shares."""
    return {
        "output_dir": str(folder / "run"),
        "num_train_epochs": epochs,
        "per_device_train_batch_size": shapes(options.device).batch,
        "learning_rate": 1e-4,
        "logging_steps": 50,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential",  # rows come shuffled; all who are compared then pad alike
        "use_cpu": options.device == "cpu",
        "bf16": options.device == "cuda",
        "dataloader_pin_memory": options.device == "cuda",
    }


def plain_trainer(
    options: Namespace,
    folder: Path,
    rows: datasets.Dataset,
    tokenizer: BertTokenizer,
    epochs: int = 1,
    student: tuple[int, int] | None = None,
) -> Trainer:
    """What anyone writes to fine-tune the student: `transformers.Trainer`, rows tokenized once, padded per batch."""
    tokens = rows.map(
        lambda batch: tokenizer(batch["text"], truncation=True),
        batched=True,
        remove_columns=["text"],
    )
    return Trainer(
        model=make_model(student or shapes(options.device).student, seed=1),
        args=TrainingArguments(**training_options(options, folder, epochs)),
        train_dataset=tokens.rename_column("label", "labels"),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )


def our_trainer(
    options: Namespace,
    folder: Path,
    rows: datasets.Dataset,
    tokenizer: BertTokenizer,
    teachers: Sequence[str | Teacher],
    *,
    cache_dir: Path | None = None,
    epochs: int = 1,
    student: tuple[int, int] | None = None,
) -> MultiTeacherDistillationTrainer:
    """The same student and arguments with teachers, live or from a cache."""
    return MultiTeacherDistillationTrainer(
        model=make_model(student or shapes(options.device).student, seed=1),
        args=DistillationArguments(**training_options(options, folder, epochs)),
        train_dataset=rows,
        processing_class=tokenizer,
        teachers=list(teachers),
        cache_dir=cache_dir,
    )


def teacher_batches(
    teacher: Teacher, texts: Sequence[str], order: Sequence[Sequence[int]], device: str
) -> list[dict[str, torch.Tensor]]:
    """Padded batches for a teacher, on its device.

    Args:
        teacher: Whose tokens.
        texts: All rows.
        order: The rows of every batch.
        device: Where they go.
    """
    tokens = teacher.view.encode([list(texts)])
    pad = DataCollatorWithPadding(teacher.view.tokenizer)
    batches = [pad([{key: values[i] for key, values in tokens.items()} for i in batch]) for batch in order]
    return [{key: value.to(device) for key, value in batch.items()} for batch in batches]


def in_batches(order: Sequence[int], size: int) -> list[list[int]]:
    """An order of rows cut into batches."""
    return [list(order[i : i + size]) for i in range(0, len(order), size)]


def budgeted(teacher: Teacher, texts: Sequence[str], device: str) -> list[list[int]]:
    """Rows in order of length, as many per forward as a build would take."""
    lengths = np.array([len(row) for row in teacher.view.encode([list(texts)])["input_ids"]])
    return [list(batch) for batch in by_length(lengths, token_budget(teacher.model, torch.device(device)))]


def ready_batches(
    tokenizer: BertTokenizer, rows: datasets.Dataset, size: int, device: str
) -> list[dict[str, torch.Tensor]]:
    """The student's batches with labels, padded and on the device."""
    tokens, pad = tokenizer(list(rows["text"]), truncation=True), DataCollatorWithPadding(tokenizer)
    labels = rows["label"][:]
    batches = [
        pad([{**{key: values[i] for key, values in tokens.items()}, "labels": labels[i]} for i in batch])
        for batch in in_batches(range(len(rows)), size)
    ]
    return [{key: value.to(device) for key, value in batch.items()} for batch in batches]


def student_steps(
    shape: tuple[int, int], batches: Sequence[dict[str, torch.Tensor]], device: str, epochs: int = 1
) -> None:
    """Forward, backward, clipping and update of a fresh student over batches, and nothing else."""
    student = make_model(shape, seed=1).to(device).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
    for _ in range(epochs):
        for batch in batches:
            with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
                loss = student(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()


def run_teacher(teacher: Teacher, batches: Sequence[dict[str, torch.Tensor]], device: str) -> None:
    """A teacher's forward over batches and nothing else."""
    with torch.inference_mode(), torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
        for batch in batches:
            teacher.model(**batch)

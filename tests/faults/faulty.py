"""A run of four steps that faults are put into: one teacher, a student with dropout, hidden losses with projections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from conftest import make_bert
from hf_distill import DistillationArguments, MultiTeacherDistillationTrainer, Teacher
from hf_distill.training.hidden import HiddenLoss

STEPS = 4
LABELS = ["negative", "positive"]


def run(folder: Path, tokenizer: Any, callbacks: Any = (), **options: Any) -> MultiTeacherDistillationTrainer:
    """The trainer, the same whenever it is made."""
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        dim=8,
        hidden_dim=8,
        n_layers=1,
        n_heads=2,
        dropout=0.2,
    )
    words = ["good", "bad", "fine", "dull", "film", "plot", "scene"]
    listed = [
        {"text": f"{words[i % 7]} {words[i * i % 7]} {words[i // 7]}", "label": i % 2} for i in range(16)
    ]
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=LABELS)}
    )
    rows = datasets.Dataset.from_list(listed, features=features)
    args = {
        "output_dir": str(folder), "use_cpu": True, "disable_tqdm": True, "max_steps": STEPS, "logging_steps": 1,
        "save_strategy": "steps", "save_steps": 1, "learning_rate": 1e-2, "report_to": "none",
        "dataloader_pin_memory": False, "per_device_train_batch_size": 4, **options,
    }  # fmt: skip
    return MultiTeacherDistillationTrainer(
        model=DistilBertForSequenceClassification(config),
        args=DistillationArguments(**args),
        processing_class=tokenizer,
        teachers=[Teacher(make_bert(tokenizer, LABELS), tokenizer, name="bert")],
        fusion="linear_pool",
        hidden_losses=[HiddenLoss(units="mean")],
        train_dataset=rows,
        eval_dataset=rows.select(range(8)),
        callbacks=list(callbacks),
    )


def weights(trainer: MultiTeacherDistillationTrainer) -> dict[str, torch.Tensor]:
    """A copy of all that was learnt."""
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def kept(found: dict[str, torch.Tensor], meant: dict[str, torch.Tensor]) -> bool:
    """Whether two are equal to the bit."""
    return found.keys() == meant.keys() and all(torch.equal(found[name], meant[name]) for name in meant)

"""Runs whose stored files lie in fixtures/before_rooms: made anew, each the same on every machine.

The files were written by the code as it was before the modules moved into rooms; weights are a formula, so that their hashes
are one everywhere. Only public names are imported, which the older code has too.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import datasets
import torch

from conftest import make_bert, make_roberta, make_student
from hf_distill import (
    HIDDEN_LOSSES,
    LOSSES,
    AdaptiveStrength,
    AutoFusion,
    CacheSettings,
    DistillationArguments,
    FitFusion,
    FusionChoice,
    HiddenLoss,
    LinearPool,
    LogPool,
    MultiTeacherDistillationTrainer,
    PoolThenTemper,
    ScheduleCallback,
    Teacher,
    jsd,
)

FOLDER = Path(__file__).parent / "fixtures" / "before_rooms"
LABELS = ["negative", "positive"]


def own_loss(student_logits: Any, target_log_probs: Any, *, temperature: float) -> Any:
    """A user's distillation loss."""
    return jsd(student_logits, target_log_probs, temperature=temperature)


def own_weight(student_logits: Any, teacher_logits: Any, *, mask: Any = None) -> Any:
    """A user's row weight."""
    return torch.ones(len(student_logits))


def own_schedule(progress: float) -> float:
    """A user's schedule."""
    return 2.0 + progress


class OwnFusion(LinearPool):
    """A user's fusion."""


def by_formula(model: Any) -> Any:
    """A model whose weights are the same on every machine."""
    with torch.no_grad():
        for number, tensor in enumerate(model.state_dict().values()):
            if tensor.is_floating_point():
                values = (torch.arange(tensor.numel()) * 7 + number) % 193 - 96
                tensor.copy_((values / 1024).reshape(tensor.shape))
    return model


def teachers(bert_tokenizer: Any, roberta_tokenizer: Any) -> list[Teacher]:
    """Two teachers that have their labels in another order."""
    return [
        Teacher(by_formula(make_bert(bert_tokenizer, LABELS)), bert_tokenizer, name="bert"),
        Teacher(by_formula(make_roberta(roberta_tokenizer, LABELS[::-1])), roberta_tokenizer, name="roberta"),
    ]


def rows(first: int, count: int) -> datasets.Dataset:
    """Raw rows, of which every second is positive."""
    words = ["film", "plot", "actor", "scene", "script", "a", "the"]
    listed = [
        {
            "text": f"{words[i % 7]} {words[i // 7 % 7]} is {['bad', 'good'][i % 2]} and {words[i // 49]}",
            "label": i % 2,
        }
        for i in range(first, first + count)
    ]
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=LABELS)}
    )
    return datasets.Dataset.from_list(listed, features=features)


RUNS: dict[str, Any] = {
    "plain": lambda: {"fusion": LinearPool((1, 3))},
    "scheduled": lambda: {
        "distillation_loss": {"use": "jsd", "beta": 0.3},
        "row_weight": "student_entropy",
        "fusion": {"use": "log_pool", "fit": True},
        "callbacks": [
            ScheduleCallback(
                temperature={"use": "linear", "start": 4, "end": 1},
                distill_weight={"use": "cosine", "start": 0.9, "end": 0.1},
                task_weight={"use": "warm_up", "value": 0.5},
                label_share={"use": "constant", "value": 0.1},
            )
        ],
    },
    "hidden": lambda: {
        "fusion": AutoFusion(),
        "distillation_loss": "logit_mse",
        "row_weight": "teacher_agreement",
        "hidden_losses": [
            HiddenLoss(units="mean"),
            HiddenLoss(HIDDEN_LOSSES["hidden_cosine"], layers=[[1, 2]], units="first", weight=0.5, teachers=["bert"]),
            HiddenLoss(functools.partial(HIDDEN_LOSSES["pkd"]), units="mean"),
            {"loss": "rkd_angle", "layers": "uniform"},
        ],
        "callbacks": [AdaptiveStrength()],
        "eval_strategy": "steps",
        "eval_steps": 1,
    },
    "own": lambda: {
        "fusion": OwnFusion((1, 1)),
        "distillation_loss": functools.partial(own_loss),
        "row_weight": own_weight,
        "callbacks": [ScheduleCallback(temperature=own_schedule)],
    },
    "cached": lambda: {
        "fusion": FitFusion(PoolThenTemper),
        "distillation_loss": LOSSES["reverse_kl"],
        "cache_settings": CacheSettings(dtype="float32"),
        "hidden_losses": [HiddenLoss("hidden_mse", units="mean")],
    },
    "chosen": lambda: {
        "fusion": FusionChoice(LogPool((1.0, 2.0), (1.5, 2.5)), "log_pool, as it was fitted before", (), torch.arange(3)),
    },
}  # fmt: skip
"""What each run was asked for, by the name of its folder."""


def trainer(
    name: str, folder: Path, bert_tokenizer: Any, roberta_tokenizer: Any, **options: Any
) -> MultiTeacherDistillationTrainer:
    """The trainer of a run, before it is trained."""
    fields = set(DistillationArguments.__dataclass_fields__)
    given = {**RUNS[name](), **options}
    own = {key: given.pop(key) for key in list(given) if key in fields}
    args = {
        "output_dir": str(folder / "out"), "use_cpu": True, "disable_tqdm": True, "max_steps": 2, "save_steps": 1,
        "save_strategy": "steps", "per_device_train_batch_size": 4, "dataloader_pin_memory": False,
        "report_to": "none",
    }  # fmt: skip
    if name == "cached":
        given["cache_dir"] = folder / "cache"
    return MultiTeacherDistillationTrainer(
        model=by_formula(make_student(bert_tokenizer, dropout=0.1)),
        args=DistillationArguments(**{**args, **own}),
        processing_class=bert_tokenizer,
        teachers=teachers(bert_tokenizer, roberta_tokenizer),
        train_dataset=rows(0, 20),
        eval_dataset=rows(100, 60),
        **given,
    )

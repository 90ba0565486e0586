"""Multi-teacher knowledge distillation for Hugging Face Transformers.

Names are imported when they are first used: `import hf_distill` and `hf-distill --help` load neither torch
nor transformers.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors see; at run time __getattr__ below does the same
    from .alignment import LabelMap, align
    from .cache import CacheSettings, cache_teacher_outputs
    from .collator import MultiTeacherCollator
    from .ensemble import Ensemble
    from .evaluation import EvaluationReport, evaluate_ensemble
    from .fusion import FUSIONS, Fusion, LinearPool, LogPool
    from .losses import LOSSES, forward_kl, jsd, logit_mse, reverse_kl
    from .pool import TeacherPool
    from .recipe import Recipe, load_recipe
    from .tasks import TASKS, Task
    from .teachers import Teacher, TeacherSource
    from .trainer import MultiTeacherDistillationTrainer
    from .training_args import DistillationArguments

_MODULE_OF = {
    "CacheSettings": "cache",
    "DistillationArguments": "training_args",
    "Ensemble": "ensemble",
    "EvaluationReport": "evaluation",
    "FUSIONS": "fusion",
    "Fusion": "fusion",
    "LOSSES": "losses",
    "LabelMap": "alignment",
    "LinearPool": "fusion",
    "LogPool": "fusion",
    "MultiTeacherCollator": "collator",
    "MultiTeacherDistillationTrainer": "trainer",
    "Recipe": "recipe",
    "TASKS": "tasks",
    "Task": "tasks",
    "Teacher": "teachers",
    "TeacherPool": "pool",
    "TeacherSource": "teachers",
    "align": "alignment",
    "cache_teacher_outputs": "cache",
    "evaluate_ensemble": "evaluation",
    "forward_kl": "losses",
    "jsd": "losses",
    "load_recipe": "recipe",
    "logit_mse": "losses",
    "reverse_kl": "losses",
}

__all__ = [
    "CacheSettings",
    "DistillationArguments",
    "Ensemble",
    "EvaluationReport",
    "FUSIONS",
    "Fusion",
    "LOSSES",
    "LabelMap",
    "LinearPool",
    "LogPool",
    "MultiTeacherCollator",
    "MultiTeacherDistillationTrainer",
    "Recipe",
    "TASKS",
    "Task",
    "Teacher",
    "TeacherPool",
    "TeacherSource",
    "align",
    "cache_teacher_outputs",
    "evaluate_ensemble",
    "forward_kl",
    "jsd",
    "load_recipe",
    "logit_mse",
    "reverse_kl",
]

try:
    __version__ = importlib.metadata.version("hf-distill")
except importlib.metadata.PackageNotFoundError:
    # A source tree on PYTHONPATH that was never installed has no metadata;
    # the number is written in pyproject.toml only.
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

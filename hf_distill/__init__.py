"""Multi-teacher knowledge distillation for Hugging Face Transformers.

Names are imported when they are first used: `import hf_distill` and `hf-distill --help` load neither torch
nor transformers.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors see; at run time __getattr__ below does the same
    from .adapters import add_adapter, merge_adapter
    from .alignment import LabelMap, align
    from .attention import plot_attention
    from .audit import AuditReport, audit_teachers
    from .cache import CacheSettings, cache_teacher_outputs
    from .callbacks import AdaptiveStrength, ScheduleCallback
    from .collator import MultiTeacherCollator
    from .ensemble import Ensemble
    from .evaluation import EvaluationReport, evaluate_ensemble
    from .export import export_student
    from .fusion import (
        FUSIONS,
        AutoFusion,
        BernoulliLinearPool,
        BernoulliLogPool,
        BestTeacher,
        ConfidenceWeighted,
        EntropyWeighted,
        FitFusion,
        Fusion,
        FusionChoice,
        Gate,
        GaussianPool,
        GreedySelection,
        LikelihoodWeighted,
        LinearPool,
        LogPool,
        MajorityVote,
        PoolThenTemper,
        Stacking,
        StochasticTeacher,
        fit_temperature,
    )
    from .hidden import HiddenLoss, StudentWithProjections
    from .hub import push_run
    from .layer_map import LayerMap
    from .losses import HIDDEN_LOSSES, LOSSES, forward_kl, jsd, logit_mse, reverse_kl
    from .pool import TeacherPool
    from .recipe import Recipe, load_recipe
    from .student_building import build_student
    from .student_speed import describe_student
    from .tasks import TASKS, Task
    from .teachers import Teacher, TeacherSource
    from .trainer import MultiTeacherDistillationTrainer
    from .training_args import DistillationArguments

_MODULE_OF = {
    "AdaptiveStrength": "callbacks",
    "AuditReport": "audit",
    "AutoFusion": "fusion",
    "BernoulliLinearPool": "fusion",
    "BernoulliLogPool": "fusion",
    "BestTeacher": "fusion",
    "CacheSettings": "cache",
    "ConfidenceWeighted": "fusion",
    "DistillationArguments": "training_args",
    "Ensemble": "ensemble",
    "EntropyWeighted": "fusion",
    "EvaluationReport": "evaluation",
    "FUSIONS": "fusion",
    "FitFusion": "fusion",
    "Fusion": "fusion",
    "FusionChoice": "fusion",
    "Gate": "fusion",
    "GaussianPool": "fusion",
    "GreedySelection": "fusion",
    "HIDDEN_LOSSES": "losses",
    "HiddenLoss": "hidden",
    "LOSSES": "losses",
    "LabelMap": "alignment",
    "LayerMap": "layer_map",
    "LikelihoodWeighted": "fusion",
    "LinearPool": "fusion",
    "LogPool": "fusion",
    "MajorityVote": "fusion",
    "MultiTeacherCollator": "collator",
    "MultiTeacherDistillationTrainer": "trainer",
    "PoolThenTemper": "fusion",
    "Recipe": "recipe",
    "ScheduleCallback": "callbacks",
    "Stacking": "fusion",
    "StochasticTeacher": "fusion",
    "StudentWithProjections": "hidden",
    "TASKS": "tasks",
    "Task": "tasks",
    "Teacher": "teachers",
    "TeacherPool": "pool",
    "TeacherSource": "teachers",
    "add_adapter": "adapters",
    "align": "alignment",
    "audit_teachers": "audit",
    "build_student": "student_building",
    "cache_teacher_outputs": "cache",
    "describe_student": "student_speed",
    "evaluate_ensemble": "evaluation",
    "export_student": "export",
    "fit_temperature": "fusion",
    "forward_kl": "losses",
    "jsd": "losses",
    "load_recipe": "recipe",
    "logit_mse": "losses",
    "merge_adapter": "adapters",
    "plot_attention": "attention",
    "push_run": "hub",
    "reverse_kl": "losses",
}

__all__ = [
    "AdaptiveStrength",
    "AuditReport",
    "AutoFusion",
    "BernoulliLinearPool",
    "BernoulliLogPool",
    "BestTeacher",
    "CacheSettings",
    "ConfidenceWeighted",
    "DistillationArguments",
    "Ensemble",
    "EntropyWeighted",
    "EvaluationReport",
    "FUSIONS",
    "FitFusion",
    "Fusion",
    "FusionChoice",
    "Gate",
    "GaussianPool",
    "GreedySelection",
    "HIDDEN_LOSSES",
    "HiddenLoss",
    "LOSSES",
    "LabelMap",
    "LayerMap",
    "LikelihoodWeighted",
    "LinearPool",
    "LogPool",
    "MajorityVote",
    "MultiTeacherCollator",
    "MultiTeacherDistillationTrainer",
    "PoolThenTemper",
    "Recipe",
    "ScheduleCallback",
    "Stacking",
    "StochasticTeacher",
    "StudentWithProjections",
    "TASKS",
    "Task",
    "Teacher",
    "TeacherPool",
    "TeacherSource",
    "add_adapter",
    "align",
    "audit_teachers",
    "build_student",
    "cache_teacher_outputs",
    "describe_student",
    "evaluate_ensemble",
    "export_student",
    "fit_temperature",
    "forward_kl",
    "jsd",
    "load_recipe",
    "logit_mse",
    "merge_adapter",
    "plot_attention",
    "push_run",
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

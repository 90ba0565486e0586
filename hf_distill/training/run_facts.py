"""What a run is, asked of its trainer: the facts that a model card states."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import inspect
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from .. import __version__
from ..fusion import summary
from ..lookup import named
from ..losses import ALL_LOSSES, WeightedLosses
from ..losses.row_weights import ROW_WEIGHTS
from ..publishing.facts import NO_LICENCE, Origin, RunFacts, licence_of
from ..rows.labels import count_labelled
from ..teachers.hub_ids import data_commit, hub_id, only_commit
from .callbacks import AdaptiveStrength, ScheduleCallback

_FOLDER = "a folder"
_PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "accelerate", "huggingface_hub")


def run_facts(trainer: Any) -> RunFacts:
    """What a run is, asked of its trainer.

    Args:
        trainer: A `MultiTeacherDistillationTrainer`.

    Example:
        >>> trainer = MultiTeacherDistillationTrainer(
        ...     model=student, teachers=[teacher], args=args, train_dataset=rows, processing_class=bert_tokenizer,
        ...     fusion="linear_pool",
        ... )
        >>> run_facts(trainer).losses[0]
        '0.5 × cross-entropy with the labels'
    """
    student, choice = trainer.student, trainer.fusion_choice
    weights = getattr(choice.fusion, "weights", None) or ()
    taught = bool(trainer.teachers)
    return RunFacts(
        task=trainer.task.pipeline,
        architecture=type(student.get_base_model() if _is_adapter(student) else student).__name__,
        parameters=student.num_parameters(),
        adapter=_is_adapter(student),
        labels=tuple(trainer.student_labels),
        base=_base(student),
        teachers=tuple(_teacher(teacher) for teacher in trainer.teachers),
        fusion=summary(choice.fusion) if taught else "",
        reason=choice.reason if taught else "",
        warnings=tuple(choice.warnings) if taught else (),
        weights=tuple(float(w) for w in weights) if taught and len(weights) == len(trainer.teachers) else (),
        losses=tuple(_losses(trainer)),
        rows=_rows(trainer.train_dataset),
        training=_training(trainer),
        versions=_versions(_is_adapter(student)),
        references=references(_methods(trainer)),
        data_commit=data_commit(trainer.train_dataset),  # prepared rows are kept where the raw ones are
        older_report=getattr(trainer, "older_report", None),
        card=dict(getattr(trainer, "card_options", {})),
        thresholds=tuple(getattr(student.config, "thresholds", None) or ()),
        notes=tuple(trainer.training_notes),
        conversions=tuple(own.sentence for own in choice.conversions) if taught else (),
    )


def references(methods: Sequence[Any]) -> tuple[str, ...]:
    """What the docstrings of methods name as their references, each once.

    Args:
        methods: Functions, or objects of the classes that say it.

    Example:
        >>> from hf_distill.losses import jsd
        >>> references([jsd, jsd])
        ('Agarwal et al.: On-Policy Distillation of Language Models, 2023, arXiv:2306.13649.',)
    """
    found: dict[str, None] = {}
    for method in methods:
        while isinstance(method, functools.partial):
            method = method.func
        documented = method if inspect.isroutine(method) or inspect.isclass(method) else type(method)
        text = inspect.getdoc(documented) or ""
        for block in re.findall(r"^References?:\n((?:[ \t]+\S.*\n?|[ \t]*\n)+)", text, flags=re.MULTILINE):
            found[" ".join(block.split())] = None
    return tuple(found)


def _is_adapter(student: Any) -> bool:
    return hasattr(student, "peft_config")


def _base(student: Any) -> Origin | None:
    source = getattr(student.config, "_name_or_path", "") or ""
    return _origin(Path(source).name, source, None, None) if source else None


def _teacher(teacher: Any) -> Origin:
    source, model = getattr(teacher, "source", None), getattr(teacher, "model", None)
    origin = _origin(
        teacher.name, source, getattr(teacher, "revision", None), getattr(teacher, "num_parameters", None)
    )
    under = getattr(getattr(model, "config", None), "_name_or_path", None)
    return dataclasses.replace(origin, over=hub_id(under) or _FOLDER) if under and under != source else origin


def _origin(name: str, source: str | None, revision: str | None, parameters: int | None) -> Origin:
    found = hub_id(source)
    return (
        Origin(name, None, None, parameters, _stated_licence(source))
        if found is None
        else Origin(name, found, revision or only_commit(found), parameters)
    )


def _stated_licence(folder: str | None) -> str:
    """The licence in the README of a folder."""
    try:
        data = ModelCard.load(Path(folder or "", "README.md"), ignore_metadata_errors=True).data
    except Exception:  # no README, or one that anybody wrote anyhow
        return NO_LICENCE
    return licence_of(data)


def _losses(trainer: Any) -> list[str]:
    args, changing = trainer.args, _changing(trainer)

    def value(name: str) -> str:
        return changing.get(name) or f"{getattr(args, name):g}"

    said = []
    if "task_weight" in changing or args.task_weight:
        task = trainer.compute_loss_func
        smoothed = (
            f", smoothed by {args.label_smoothing_factor:g}"
            if args.label_smoothing_factor and task is None
            else ""
        )
        said.append(
            f"{value('task_weight')} × "
            + (trainer.family.learns if task is None else method_name(task, {}))
            + smoothed
            + (", classes weighted" if trainer.class_weights is not None and task is None else "")
        )
    if trainer.teachers and ("distill_weight" in changing or args.distill_weight):
        weighed = (
            ""
            if trainer.row_weight is None
            else f", rows weighed by {method_name(trainer.row_weight, ROW_WEIGHTS)}"
        )
        said.append(
            f"{value('distill_weight')} × {method_name(trainer.distillation_loss, ALL_LOSSES)} against the fused teachers at "
            f"temperature {value('temperature')}{weighed}"
        )
        if "label_share" in changing or args.label_share:
            said.append(f"the labels have {value('label_share')} of the target")
    hidden = getattr(trainer, "hidden", None)
    for loss in hidden.losses if hidden else ():
        layers = loss.layers if isinstance(loss.layers, str) else [list(pair) for pair in loss.layers]
        said.append(f"{loss.weight:g} × {loss.name} between layers ({layers}), by {loss.units}")
    return said


def _changing(trainer: Any) -> dict[str, str]:
    """What has another value at another step, by name, in words."""
    said = {}
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, ScheduleCallback):
            said |= {
                name: repr(schedule) if dataclasses.is_dataclass(schedule) else method_name(schedule, {})
                for name, schedule in callback.schedules.items()
            }
        elif isinstance(callback, AdaptiveStrength):
            said["distill_weight"] = "a weight that falls with the gap to the ensemble"
    return said


def method_name(method: Callable[..., Any], table: Mapping[str, Any]) -> str:
    """What a recipe would call a method.

    Args:
        method: A function, a partial of one, or an object.
        table: The built-in ones by name.

    Example:
        >>> from hf_distill.losses import jsd
        >>> method_name(functools.partial(jsd, beta=0.3), ALL_LOSSES)
        'jsd(beta=0.3)'
    """
    if isinstance(method, functools.partial):
        options = ", ".join(f"{key}={value}" for key, value in method.keywords.items())
        return f"{method_name(method.func, table)}({options})"
    if isinstance(method, WeightedLosses):
        parts = zip(method.weights, method.losses, strict=True)
        return " + ".join(f"{weight:g} × {method_name(loss, table)}" for weight, loss in parts)
    return named(method, table)


def _methods(trainer: Any) -> list[Any]:
    """All that may name a reference, as far as it was used."""
    methods: list[Any] = []
    if trainer.teachers:
        # What every distillation from soft targets goes back to is stated where its divergence is.
        loss = trainer.distillation_loss
        several = loss.losses if isinstance(loss, WeightedLosses) else (loss,)
        choice = trainer.fusion_choice
        methods += [ALL_LOSSES["forward_kl"], *several, choice.fusion, *choice.conversions]
    hidden = getattr(trainer, "hidden", None)
    methods += [method for loss in (hidden.losses if hidden else ()) for method in (loss, loss.function)]
    methods += [] if trainer.row_weight is None else [trainer.row_weight]
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, ScheduleCallback):
            methods += callback.schedules.values()
        elif isinstance(callback, AdaptiveStrength):
            methods.append(callback)
    return methods


def _rows(rows: Any) -> dict[str, int]:
    if not hasattr(rows, "__len__"):
        return {}
    labelled = count_labelled(rows)
    return {"rows": len(rows)} | ({} if labelled is None else {"labelled": labelled})


def _training(trainer: Any) -> dict[str, Any]:
    args, state = trainer.args, trainer.state
    said: dict[str, Any] = {
        "optimizer": getattr(args.optim, "value", str(args.optim)),
        "learning rate": args.learning_rate,
        "schedule": getattr(args.lr_scheduler_type, "value", str(args.lr_scheduler_type)),
        "rows per step": args.per_device_train_batch_size
        * args.gradient_accumulation_steps
        * max(1, args.n_gpu)
        * args.world_size,
        "processes": args.world_size,
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "float32",
        "seed": args.seed,
        "longest input": trainer.student_view.max_length,
        "steps": state.global_step,
        "epochs": None if state.epoch is None else round(float(state.epoch), 2),
        "warm-up": args.warmup_steps or None,
        "weight decay": args.weight_decay or None,
    }
    if args.load_best_model_at_end and state.best_model_checkpoint is not None:
        step = re.search(r"-(\d+)$", str(state.best_model_checkpoint))
        said["kept"] = f"the best {args.metric_for_best_model}" + (f", of step {step[1]}" if step else "")
    return {key: value for key, value in said.items() if value is not None}


def _versions(adapter: bool) -> dict[str, str]:
    packages = (*_PACKAGES, *(("peft",) if adapter else ()))
    return {
        "python": platform.python_version(),
        "hf_distill": __version__,
        **{name: importlib.metadata.version(name) for name in packages},
    }

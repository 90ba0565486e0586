"""What a recipe would do, in a few lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..evaluation.terminal import aligned
from ..tasks import TASKS, known_family
from .sections import Augment, Hub, Recipe, Student


def recipe_summary(recipe: Recipe) -> str:
    """Say what would run, as lines that fit the terminal.

    Args:
        recipe: A recipe of `load_recipe`.

    Example:
        >>> recipe = Recipe(data={"dataset": "org/data"}, teachers={"models": ["org/a"]}, student={"model": "org/s"})
        >>> print(recipe_summary(recipe).splitlines()[-2])
        evaluation  the test split, or else the validation split; verdict with 1 seed
    """
    data, student, losses, training = recipe.data, recipe.student, recipe.losses, recipe.training
    source = (
        ", ".join(name for split in data.files.model_dump().values() for name in split or ())
        if data.files
        else " ".join(filter(None, [data.dataset, data.config, data.revision and f"@ {data.revision}"]))
    )
    teachers = [
        entry.model
        + (f" with adapter {entry.adapter}" if entry.adapter else "")
        + (f" as {entry.name}" if entry.name else "")
        + (" with labels" if entry.labels else "")
        for entry in recipe.teachers.models
    ]
    lines = {
        "task": recipe.task,
        "data": source,
        "columns": f"{' + '.join(data.text_columns)} → {', '.join(data.label_columns or (data.label_column,))}",
        **({} if data.augment is None else {"augment": _augmented(data.augment)}),
        "labels": _shortened(data.label_names) if data.label_names else "named by the data or the student",
        "teachers": teachers,
        "student": _made(student, recipe.task),
        "fusion": _spec(recipe.fusion),
        "losses": f"{_scalar(losses.task_weight)} x {_learnt(recipe.task)} + {_scalar(losses.distill_weight)} x "
        f"{_spec(losses.distill)} at temperature {_scalar(losses.temperature)}"
        + (f", rows weighed by {_spec(losses.row_weight)}" if losses.row_weight else "")
        + "".join(f" + {loss.weight:g} x {loss.loss}({loss.layers})" for loss in losses.hidden)
        + (f", label's share of the target {_scalar(losses.label_share)}" if losses.label_share else ""),
        "training": ", ".join(f"{key}={value}" for key, value in training.items()),
        "evaluation": (recipe.evaluation.split or "the test split, or else the validation split")
        + _judged(recipe),
        "hub": _pushed(recipe.hub),
    }
    return aligned(lines)


def _learnt(task: str) -> str:
    """What the task loss is; of one's own task nobody knows without running it."""
    family = known_family(task)
    return "task loss" if family is None else family.learns.partition(" with ")[0].partition(" against ")[0]


def _pushed(hub: Hub) -> str:
    if not hub.push:
        return "no push"
    where = f", branch {hub.revision}" if hub.revision else ", as a pull request" if hub.pull_request else ""
    return f"push to {hub.repo}{where}"


def _judged(recipe: Recipe) -> str:
    own = recipe.evaluation
    return (
        ""
        if not own.verdict or own.split in ("none", "train")
        else f"; verdict with {own.seeds} seed{'s' if own.seeds > 1 else ''}"
    )


def _augmented(augment: Augment) -> str:
    crop = f"crops by {augment.crop:g}{' pixels' if augment.crop >= 1 else ' of the sides'}"
    return " and ".join([crop] * bool(augment.crop) + ["flips"] * augment.flip) + ", once per row and epoch"


def _made(student: Student, task: str) -> str:
    kept = "" if student.layers is None else f", layers {student.layers}"
    kept += "" if student.hidden_size is None else f", hidden size {student.hidden_size}"
    trained = "" if student.lora is None else f", trained by a LoRA adapter of rank {student.lora.r}"
    trained += "" if student.dtype == "float32" else f", in {student.dtype}"
    if student.config is not None:
        return f"{student.config['model_type']} from scratch, {_read_by(student, task)}{trained}"
    source = student.model or f"made from {student.from_teacher}"
    return f"{source}{kept}{trained}"


def _read_by(student: Student, task: str) -> str:
    tokens = task not in TASKS or TASKS[task].content.of_tokens
    return f"{student.tokenizer} tokens" if tokens else f"images read as {student.tokenizer} reads them"


def _spec(spec: Any) -> str:
    if isinstance(spec, (list, tuple)):
        return " + ".join(map(_spec, spec))
    return (
        spec
        if isinstance(spec, str)
        else f"{spec['use']}({', '.join(f'{key}={value}' for key, value in spec.items() if key != 'use')})"
    )


def _scalar(value: Any) -> str:
    return _spec(value) if isinstance(value, Mapping) else f"{value:g}"


def _shortened(names: tuple[str, ...]) -> str:
    return ", ".join(names[:8]) + (f", … ({len(names)})" if len(names) > 8 else "")

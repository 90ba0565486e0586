"""Teachers, their cache, and the plan of the hidden losses, which says what the cache has to keep."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PretrainedConfig

from ..errors import ConfigurationError
from ..rows.views import View
from ..tasks.task import Task
from ..teachers.cache.build import TeacherCache
from ..teachers.cache.reading import CachedTeacher
from ..teachers.cache.settings import CacheSettings
from ..teachers.teacher import Teacher, TeacherSource, TeacherSpec, load_teacher
from .hidden.hidden_loss import HiddenLoss
from .hidden.plan import Body, HiddenPlan


def open_teachers_for(
    teachers: Sequence[str | TeacherSource],
    cache_dir: str | os.PathLike[str] | None,
    settings: CacheSettings,
    losses: Sequence[HiddenLoss],
    *,
    student: nn.Module,
    view: View,
    task: Task,
    device: torch.device | None,
) -> tuple[list[TeacherSource], TeacherCache | None, HiddenPlan | None]:
    """Load the teachers of a run, or open their cache, and plan what its hidden losses take of them.

    Args:
        teachers: `Teacher`s, other `TeacherSource`s, or ids and folders.
        cache_dir: Folder of the cache; None: they run live.
        settings: How outputs are computed and stored.
        losses: The hidden losses.
        student: The student.
        view: How it reads rows.
        task: Loads teachers given by id or folder.
        device: Where they run; None: the process's own.

    Returns:
        The sources; the cache to which datasets are to be added, which keeps the states that the losses need; the plan,
        None where there are no losses.

    Raises:
        ConfigurationError, DataError: Teachers that cannot be had, or losses that they cannot have.
    """
    if isinstance(teachers, (str, Teacher)):
        raise ConfigurationError("teachers= takes a list, also for a single teacher: [teacher].")

    def plan(bodies: Sequence[Body]) -> HiddenPlan:
        return HiddenPlan.of(
            losses, _of_config("student", student.config)._replace(view=view, model=student), bodies
        )

    if losses and not task.content.of_tokens:
        raise ConfigurationError(
            f"Hidden losses compare the states of tokens, and models of {task.content.name} are not known to have any: leave hidden "
            "losses out."
        )
    if cache_dir is None:
        sources = [load_teacher(given, task) for given in teachers]
        return sources, None, plan([_body(source) for source in sources]) if losses else None
    planned = plan([_stored_body(given, task) for given in teachers]) if losses else None
    kept = settings if planned is None else [settings.also(wanted) for wanted in planned.wanted_of_teachers]
    cache = TeacherCache(teachers, cache_dir, kept, task=task, device=device)
    return list(cache.teachers), cache, planned


def cache_settings_for(
    losses: Sequence[HiddenLoss],
    settings: CacheSettings,
    teachers: Sequence[Any],
    student: PretrainedConfig,
    task: Task,
) -> list[CacheSettings]:
    """What a cache has to keep for a run, one `CacheSettings` per teacher.

    Args:
        losses: The hidden losses of the run.
        settings: What is kept besides.
        teachers: The teachers, as `TeacherCache` takes them.
        student: The student's config.
        task: Loads teachers whose config cannot be read alone.
    """
    plan = HiddenPlan.of(
        losses, _of_config("student", student), [_stored_body(given, task) for given in teachers]
    )
    return [settings.also(wanted) for wanted in plan.wanted_of_teachers]


def _body(source: TeacherSource) -> Body:
    """A teacher that is loaded, or whose outputs are stored already."""
    if isinstance(source, CachedTeacher):
        if source.layers is None or source.width is None:
            return Body(source.name, 0, 0, unfit="is read from a cache that was built without hidden states")
        return Body(source.name, source.layers, source.width, stored=source.stored)
    if not isinstance(source, Teacher):
        return Body(source.name, 0, 0, unfit=f"is a {type(source).__name__}, of which only logits can be had")
    return _of_config(source.name, source.model.config)._replace(view=source.view, model=source.model)


def _stored_body(given: Any, task: Task) -> Body:
    """A teacher whose states are going to be stored: its config says how many layers it has."""
    spec = TeacherSpec(os.fspath(given)) if isinstance(given, (str, os.PathLike)) else given
    if isinstance(spec, TeacherSpec):
        try:
            config = AutoConfig.from_pretrained(
                spec.id_or_path, revision=spec.revision, trust_remote_code=spec.trust_remote_code
            )
        except (OSError, ValueError):  # the folder of an adapter has none
            config = load_teacher(spec, task).model.config
        return _of_config(spec.called, config)
    return _body(spec)._replace(view=None, model=None)


def _of_config(name: str, config: PretrainedConfig) -> Body:
    layers, width = getattr(config, "num_hidden_layers", None), getattr(config, "hidden_size", None)
    if (
        not isinstance(layers, int)
        or not isinstance(width, int)
        or getattr(config, "is_encoder_decoder", False)
    ):
        return Body(
            name,
            0,
            0,
            unfit=f"is a {config.model_type}, whose config names no single stack of layers of one width",
        )
    return Body(name, layers, width)

"""The section `student`: checked, and the model and tokenizer that become of it."""

from __future__ import annotations

import copy
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from ..errors import ConfigurationError, DataError, how_to_install, in_a_line
from ..lookup import suggest
from ..students.building import build_student
from ..tasks import answer_alike, build_task
from ..teachers.checkpoints import load_config, load_processor, load_with_head
from ..teachers.damaged_files import impossible_sizes
from ..teachers.teacher import Teacher, TeacherSpec
from .problems import Problem, found, given
from .sections import Recipe, Student, TeacherEntry


def check_student(student: Mapping[str, Any], teachers: Sequence[str]) -> Iterator[Problem]:
    """Check the section beyond the types of its keys.

    Args:
        student: The section.
        teachers: The names of the recipe's teachers.
    """
    if len(given(student, "model", "from_teacher", "config")) != 1:
        yield Problem(
            "student",
            "exactly one of model (start from it), from_teacher (keep some of a teacher's layers) and config "
            "(from scratch) says what it is",
        )
        return
    name, config = student.get("from_teacher"), student.get("config")
    if name is not None:
        yield from _check_from_teacher(student, name, teachers)
        yield from _lora(student)
        return
    yield from _lora(student)
    if student.get("model") is None:
        yield from (
            Problem(
                f"student.{key}",
                f"it is for a student that is made of a model or from_teacher; found {found(student[key])}",
            )
            for key in given(student, "layers", "hidden_size")
        )
    if not isinstance(config, dict):
        return
    if not student.get("tokenizer") and not student.get("processor"):
        yield Problem("student.tokenizer", "is missing; a student made from scratch has none of its own")
    yield from (
        Problem(
            f"student.{key}", f"it is for a student that starts from a model; found {found(student[key])}"
        )
        for key in given(student, "revision")
    )
    yield from _student_config(config)


def _lora(student: Mapping[str, Any]) -> Iterator[Problem]:
    if student.get("lora") is not None and importlib.util.find_spec("peft") is None:
        yield Problem(
            "student.lora", f"adapters need peft, not installed here: {how_to_install('peft', extra='peft')}"
        )


def lora_config(student: Student) -> Any:
    """The `peft.LoraConfig` of the section; None where the whole student is trained.

    Args:
        student: The section.

    Example:
        >>> lora_config(Student(model="org/small", lora={"r": 4})).r, lora_config(Student(model="org/small"))
        (4, None)
    """
    if student.lora is None:
        return None
    import peft

    modules = student.lora.target_modules
    return peft.LoraConfig(
        r=student.lora.r,
        lora_alpha=student.lora.alpha,
        lora_dropout=student.lora.dropout,
        # One word may be peft's own for all of them, all-linear; as a list it would be a module's name.
        target_modules=None if modules is None else modules[0] if len(modules) == 1 else list(modules),
    )


def _check_from_teacher(student: Mapping[str, Any], name: Any, teachers: Sequence[str]) -> Iterator[Problem]:
    if isinstance(name, str) and name not in teachers:
        known = f"; the teachers are called {', '.join(teachers)}" if teachers else ""
        yield Problem("student.from_teacher", f"there is no teacher {name!r}{suggest(name, teachers)}{known}")
    yield from (
        Problem(f"student.{key}", f"it is the teacher's own; leave it out, found {found(student[key])}")
        for key in [
            *given(student, "tokenizer", "processor", "revision"),
            *(["trust_remote_code"] if student.get("trust_remote_code") else []),
        ]
    )


def _student_config(config: Mapping[str, Any]) -> list[Problem]:
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        return [
            Problem(
                "student.config.model_type",
                f"expected a model type of transformers (distilbert, bert, …), found {found(kind)}"
                f"{suggest(kind, CONFIG_MAPPING.keys())}",
            )
        ]
    problems = []
    default = AutoConfig.for_model(kind)
    for key, value in config.items():
        path = f"student.config.{key}"
        if key in ("num_labels", "id2label", "label2id"):
            problems.append(Problem(path, "it follows from the labels of the data; leave it out"))
        # A configuration takes any key and keeps it, so a misspelt one would just have no effect.
        elif not hasattr(default, str(key)):
            problems.append(
                Problem(path, f"unknown key of {kind}, found {found(value)}{suggest(key, vars(default))}")
            )
    problems += [Problem(f"student.config.{key}", wrong) for key, wrong in impossible_sizes(config)]
    if not problems:
        try:
            AutoConfig.for_model(**config)
        except (ValueError, TypeError, ArithmeticError, StrictDataclassError) as error:
            problems.append(Problem("student.config", " ".join(str(error).split())))
    return problems


def teacher_spec(entry: TeacherEntry, number: int) -> TeacherSpec:
    """The teacher of an entry, not loaded yet.

    Args:
        entry: Of `teachers.models`.
        number: Which it is there.
    """
    given = entry.model_dump(exclude={"model", "convert"})
    said = None if entry.convert is None else entry.convert.model_dump(exclude_none=True)
    return TeacherSpec(entry.model, **given, convert=said, place=f"teachers.models.{number}")


def build_recipe_student(
    recipe: Recipe, train: datasets.Dataset, *, seed: int
) -> tuple[str | PreTrainedModel, Any]:
    """Make the student, or the id that the trainer loads it from, and its tokenizer.

    Args:
        recipe: A recipe of `load_recipe`.
        train: The training rows, which may name the labels.
        seed: Of the weights that no checkpoint holds.

    Raises:
        ConfigurationError, DataError: There is no such student.
    """
    student = recipe.student
    model, tokenizer = _made(recipe, train, seed)
    # Weights that are given by their id are loaded by the trainer, which trains in float32.
    return model if isinstance(model, str) else model.to(getattr(torch, student.dtype)), tokenizer


def _made(recipe: Recipe, train: datasets.Dataset, seed: int) -> tuple[str | PreTrainedModel, Any]:
    student = recipe.student
    if student.from_teacher is not None:
        return _from_teacher(recipe, train, seed)
    options = {"revision": student.revision, "trust_remote_code": student.trust_remote_code}
    if student.tokenizer is not None:
        # The revision is one of the model's repository; a tokenizer named on its own has its own history.
        options["revision"] = None
    source = student.tokenizer or student.model
    assert source is not None
    tokenizer = load_processor(source, build_task(recipe.task).content, what="The student", **options)
    if student.config is not None:
        return _from_scratch(recipe, train, tokenizer, seed), tokenizer
    if student.layers is not None or student.hidden_size is not None:
        return _of_layers(recipe, train, seed), tokenizer
    plain = student.revision is None and not student.trust_remote_code and student.dtype == "float32"
    return student.model if plain else _at_revision(recipe, train, seed), tokenizer


def _from_teacher(recipe: Recipe, train: datasets.Dataset, seed: int) -> tuple[PreTrainedModel, Any]:
    student, teacher = recipe.student, _source(recipe)
    names = label_names(recipe, train, teacher)
    transformers.set_seed(seed)
    kept = {} if student.layers is None else {"layers": student.layers}
    return build_student(
        teacher, **kept, hidden_size=student.hidden_size, labels=names
    ), teacher.view.processor


def _of_layers(recipe: Recipe, train: datasets.Dataset, seed: int) -> PreTrainedModel:
    """Some layers of any checkpoint, with its head where it has one, else with a fresh one."""
    student = recipe.student
    assert student.model is not None
    names = label_names(recipe, train)
    transformers.set_seed(seed)
    return build_student(
        student.model,
        **({} if student.layers is None else {"layers": student.layers}),
        hidden_size=student.hidden_size,
        labels=names,
        task=recipe.task,
        revision=student.revision,
        trust_remote_code=student.trust_remote_code,
    )


def _source(recipe: Recipe) -> Teacher:
    """The teacher that the student is made from."""
    specs = {
        spec.called: spec
        for spec in (teacher_spec(entry, i) for i, entry in enumerate(recipe.teachers.models))
    }
    name = recipe.student.from_teacher
    if name not in specs:
        raise ConfigurationError(
            f"student.from_teacher: there is no teacher {name!r}; the teachers are called {', '.join(specs)}"
        )
    if not answer_alike(specs[name].task or recipe.task, recipe.task):
        raise ConfigurationError(
            f"student.from_teacher: {name!r} answers {specs[name].task}, the student learns {recipe.task}, so its head cannot be the "
            "student's: name a teacher of the student's task, or student.model."
        )
    return specs[name].load(recipe.task)


def _at_revision(recipe: Recipe, train: datasets.Dataset, seed: int) -> PreTrainedModel:
    """The student's checkpoint where more than an id says which; the trainer loads the others itself."""
    student = recipe.student
    assert student.model is not None
    names = label_names(recipe, train)
    transformers.set_seed(seed)
    return load_with_head(
        student.model,
        build_task(recipe.task),
        what="The student",
        require_head=False,
        dtype="float32",  # as `load_student`: half precision would be trained in it
        revision=student.revision,
        trust_remote_code=student.trust_remote_code,
        **build_task(recipe.task).head(names),
    )


def label_names(recipe: Recipe, train: datasets.Dataset, source: Teacher | None = None) -> tuple[str, ...]:
    """The student's label names, found as the trainer finds them.

    Args:
        recipe: A recipe of `load_recipe`.
        train: The training rows.
        source: The teacher that the student is made from, where it is in memory already.
    """
    student, config = recipe.student, None
    if student.model is not None:
        options = {"revision": student.revision, "trust_remote_code": student.trust_remote_code}
        config = load_config(student.model, what="student.model", **options)
    if student.from_teacher is not None:
        source = source or _source(recipe)
        config = copy.deepcopy(source.model.config)
        config.id2label = dict(enumerate(source.label_names))
    return build_task(recipe.task).label_names(
        recipe.data.label_names, train, recipe.data.label_column, config
    )


def _from_scratch(recipe: Recipe, train: datasets.Dataset, tokenizer: Any, seed: int) -> PreTrainedModel:
    names = label_names(recipe, train)
    given = dict(recipe.student.config or {})
    of_processor = build_task(recipe.task).content.config_of(tokenizer)
    least = of_processor.get("vocab_size", 0)
    if given.get("vocab_size", least) < least:
        raise ConfigurationError(
            f"student.config.vocab_size is {given['vocab_size']}, but the tokenizer has {least} tokens; leave it out"
        )
    if "pad_token_id" in of_processor and of_processor["pad_token_id"] is None:
        raise DataError(
            f"student.tokenizer: {tokenizer.name_or_path} has no padding token, so rows cannot be batched"
        )
    config = transformers.AutoConfig.for_model(
        **{**of_processor, **given},
        **build_task(recipe.task).head(names),
    )
    auto_class = getattr(transformers, build_task(recipe.task).auto_class)
    _refuse_too_large(auto_class, config)
    # The Trainer seeds when it is made; the weights are drawn before that.
    transformers.set_seed(seed)
    try:
        return auto_class.from_config(config)
    except Exception as error:  # sizes that do not divide, a type without such a head, an unknown activation
        raise _unfit(error) from error


def _refuse_too_large(auto_class: Any, config: PretrainedConfig) -> None:
    """Count a student's weights where they take no memory, before they take it.

    Raises:
        ConfigurationError: There is not as much memory in this machine, or no such model.
    """
    try:
        with torch.device("meta"):
            count = auto_class.from_config(config).num_parameters()
    except Exception as error:
        raise _unfit(error) from error
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 4 * count > memory:
        raise ConfigurationError(
            f"student.config: its {count:,} parameters take {4 * count / 1e9:,.0f} GB, and this machine has "
            f"{memory / 1e9:,.0f} GB: choose smaller sizes."
        )


def _unfit(error: Exception) -> ConfigurationError:
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return ConfigurationError(f"student.config: no model can be made of it: {kind}{in_a_line(error)}")

"""Pictures of attention and of similar layers, from models or from what was computed already."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...errors import ConfigurationError
from ...rows.views import TokenView
from ...tasks import build_task
from ...tasks.task import Task
from ...teachers.checkpoints import load_tokenizer, load_with_head
from ...teachers.fitting_parts import open_view
from ...teachers.teacher import Teacher, TeacherSource, TeacherSpec, load_teacher
from ..plots import AttentionRow, attention_grid, similarity_grid
from .maps import AttentionMaps, Text, layer_number, read_attention, switched_to_eager
from .similarity import LayerSimilarity, compare_layers, pooled_states

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_attention(
    student: str | PreTrainedModel,
    teachers: Sequence[str | TeacherSpec | TeacherSource],
    text: Text,
    *,
    processing_class: PreTrainedTokenizerBase | None = None,
    layers: Sequence[int] | None = None,
    head: int | None = None,
    max_length: int | None = None,
    task: str | Task = "text-classification",
) -> Figure:
    """Attention of student and teachers for one text: a line of panels per model, the student's first.

    Args:
        student: A model, id or folder.
        teachers: `Teacher`s, or ids and folders.
        text: A text, or a pair; each model reads it with its own tokenizer. More than 40 tokens are cut, with a remark.
        processing_class: The student's tokenizer; None: the one stored with the student.
        layers: As for `attention_maps`; None: each model's first, middle and last.
        head: Its number, from 1; None: the mean over the heads.
        max_length: Longest student input in tokens.
        task: Whose auto class loads what is given by id or folder.

    Returns:
        A matplotlib figure; ``figure.savefig("attention.png", dpi=150)``.

    Raises:
        ConfigurationError: A model cannot give its attention, or no model has what is asked for.

    Example:
        >>> figure = plot_attention(bert, [teacher], "a fine film", processing_class=bert_tokenizer, layers=[1, 2])
        >>> len(figure.axes)  # two lines of two panels, and the scale
        5
    """
    model, view = _opened(student, processing_class, max_length, task)
    systems = [("student", *read_attention(model, view, text, "The student"))]
    for given in teachers:
        teacher = _live(given, task)
        systems.append(
            (teacher.name, *read_attention(teacher.model, teacher.view, text, f"Teacher {teacher.name!r}"))
        )
    replaced = {name: implementation for name, _, implementation in systems if implementation is not None}
    if replaced:
        warnings.warn(switched_to_eager(replaced), stacklevel=2)
    return attention_grid(attention_rows([(name, maps) for name, maps, _ in systems], layers, head))


def attention_rows(
    systems: Sequence[tuple[str, AttentionMaps]], layers: Sequence[int] | None, head: int | None
) -> list[AttentionRow]:
    """What `attention_grid` draws, from maps of all layers by the model's name.

    Raises:
        ConfigurationError: No model has what is asked for.
    """
    rows = [AttentionRow(name, maps.tokens, _panels(maps, layers, head)) for name, maps in systems]
    if all(weights is None for row in rows for _, weights in row.panels):
        asked = ([] if layers is None else [f"layers {list(layers)}"]) + (
            [] if head is None else [f"head {head}"]
        )
        has = ", ".join(
            f"{name} has {len(maps.layers)} x {maps.probabilities.shape[1]}" for name, maps in systems
        )
        raise ConfigurationError(
            f"No model has {' with '.join(asked)}: layers and heads are counted from 1, layers also from -1, the last; of "
            f"layers x heads {has}."
        )
    return rows


def _panels(maps: AttentionMaps, layers: Sequence[int] | None, head: int | None) -> list[tuple[str, Any]]:
    heads, total = maps.probabilities.shape[1], len(maps.layers)
    if layers is None:
        # First, middle and last stand in the same columns for all models, however many layers they have.
        chosen = [1, (total + 1) // 2 if total > 2 else None, total if total > 1 else None]
        missing = ["", "", ""]
    else:
        chosen = [layer_number(number, total) for number in layers]
        missing = [f"no layer {number}: it has {total}" for number in layers]
    panels: list[tuple[str, Any]] = []
    for number, reason in zip(chosen, missing, strict=True):
        if number is None:
            panels.append((reason, None))
        elif head is None:
            panels.append((f"layer {number} of {total}", maps.probabilities[number - 1].mean(0).numpy()))
        elif 1 <= head <= heads:
            panels.append(
                (
                    f"layer {number} of {total}, head {head} of {heads}",
                    maps.probabilities[number - 1, head - 1].numpy(),
                )
            )
        else:
            panels.append((f"no head {head}: it has {heads}", None))
    return panels


def plot_similarity(
    student: str | PreTrainedModel,
    teachers: Sequence[str | TeacherSpec | TeacherSource],
    texts: Sequence[Text],
    *,
    before: str | PreTrainedModel | None = None,
    processing_class: PreTrainedTokenizerBase | None = None,
    max_length: int | None = None,
    task: str | Task = "text-classification",
) -> Figure:
    """Linear CKA between the layers of a student and those of each teacher, as heat maps with the numbers.

    Args:
        student: A model, id or folder.
        teachers: `Teacher`s, or ids and folders.
        texts: As for `layer_similarity`.
        before: The student before training; with it there are two lines of panels.
        processing_class, max_length, task: As for `plot_attention`.

    Returns:
        A matplotlib figure.

    Raises:
        ConfigurationError: Too few texts, or a model without hidden states.

    Example:
        >>> figure = plot_similarity(bert, [teacher], rows["text"][:8], processing_class=bert_tokenizer)
        >>> len(figure.axes)  # one panel, and the scale
        2
    """
    model, view = _opened(student, processing_class, max_length, task)
    states, first = pooled_states(model, view, texts, "The student"), None
    if before is not None:
        model, view = _opened(before, view.tokenizer, max_length, task)
        first = pooled_states(model, view, texts, "The student before training")
    found = []
    for given in teachers:
        teacher = _live(given, task)
        theirs = pooled_states(teacher.model, teacher.view, texts, f"Teacher {teacher.name!r}")
        found.append(compare_layers(teacher.name, theirs, states, first))
    return similarity_figure(found)


def similarity_figure(similarities: Sequence[LayerSimilarity]) -> Figure:
    """The figure of `plot_similarity`, a column per teacher."""
    after = [(found.teacher, found.cka.numpy()) for found in similarities]
    before = [(found.teacher, found.before.numpy()) for found in similarities if found.before is not None]
    return similarity_grid(
        [("before training", before), ("after training", after)] if before else [("", after)]
    )


def _opened(
    student: str | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    max_length: int | None,
    task: str | Task,
) -> tuple[PreTrainedModel, TokenView]:
    content = build_task(task).content
    if not content.of_tokens:
        raise ConfigurationError(
            f"Attention and layers are compared over tokens, and models of {content.name} are not known to have any."
        )
    if isinstance(student, str):
        tokenizer = tokenizer or load_tokenizer(student, what="The student")
        student = load_with_head(student, build_task(task), what="The student", require_head=False)
    if tokenizer is None:
        raise ConfigurationError("processing_class= is missing: pass the student's tokenizer.")
    return student, open_view(student, tokenizer, max_length, what="The student", task=task)


def _live(given: str | TeacherSpec | TeacherSource, task: str | Task) -> Teacher:
    teacher = load_teacher(given, build_task(task))
    if not isinstance(teacher, Teacher):
        raise ConfigurationError(
            f"Teacher {teacher.name!r} is a {type(teacher).__name__} and has no model in memory: give a Teacher, its id or "
            "its folder."
        )
    return teacher

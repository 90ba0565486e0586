"""Whether a model, its config and its processor fit together: one check for teacher, student and baseline.

Checkpoints are put together by hand, and their parts disagree more often than they are damaged: a token was added without
an embedding for it, a tokenizer comes from another model, labels are counted from 1. What concerns the content alone is
checked where that is read; what concerns the head, here. That it passed is remembered with the hash of its files, so a cached
teacher is not loaded for it again, unless there are `CHECKS` that it has not seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from ..errors import DataError, LabelNameError
from ..rows.trying import try_model
from ..rows.views import View
from ..tasks import build_task
from ..tasks.task import Task
from .checkpoints import output_layer

CHECKS = 1
"""Which checks a model has passed, in what a cache remembers of it: raise whenever one is added here."""


def open_view(
    model: PreTrainedModel,
    processor: Any,
    max_length: int | None,
    *,
    what: str,
    task: str | Task = "text-classification",
) -> View:
    """How a model reads rows, once all its parts are known to fit together.

    Args:
        model: The model.
        processor: Its tokenizer, image processor, or what else the task's content needs.
        max_length: Longest input in tokens; None: what tokenizer and positions allow.
        what: Whose they are, for messages: "Teacher 'bert'", "The student".
        task: Says what rows hold.

    Returns:
        The view, which refuses rows that would break the model.

    Raises:
        DataError: Two parts disagree.
        ConfigurationError: ``max_length`` is more than the positions allow.

    Example:
        >>> open_view(bert, bert_tokenizer, None, what="The student").max_length
        64
    """
    refuse_label_map(model.config, what)
    view = build_task(task).content.open_view(model, processor, max_length, what=what)
    _refuse_outputs(model, view, what)
    return view


def refuse_other_view(
    model: PreTrainedModel, view: View, *, what: str, task: str | Task = "text-classification"
) -> None:
    """Refuse a model that cannot read what another model's view makes of a row.

    Args:
        model: A baseline.
        view: The student's.
        what: Whose model it is, for messages.
        task: Says what rows hold.

    Raises:
        DataError, ConfigurationError: As `open_view`, and where it would need other inputs.
    """
    if open_view(model, view.processor, view.max_length, what=what, task=task).key != view.key:
        raise DataError(
            f"{what}: it has a single token type, but reads the student's tokens, which have more: give a model that was "
            "made for the student's tokenizer."
        )


def name_outputs(model: PreTrainedModel, labels: Mapping[str, str] | Sequence[str] | None) -> None:
    """Let a complete list of names stand for a config's, where that numbers them wrongly or has another number of them.

    Args:
        model: The model, whose config is written.
        labels: As for `Teacher`.
    """
    if labels is None or isinstance(labels, (str, Mapping)):
        return
    own, names = model.config.id2label or {}, [str(label) for label in labels]
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    misnumbered = len(names) == len(own) and set(own) != set(range(len(own)))
    miscounted = len(names) != len(own) and layers and layers[-1].out_features == len(names)
    if misnumbered or miscounted:
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: i for i, name in enumerate(names)}


def refuse_label_map(config: PretrainedConfig, what: str) -> None:
    """Refuse a config whose ``id2label`` does not number the outputs from 0.

    Raises:
        DataError: It is so.
    """
    names = config.id2label or {}
    keys, expected = list(names), list(range(len(names)))
    if sorted(map(str, keys)) == sorted(map(str, expected)) and all(isinstance(key, int) for key in keys):
        return
    ordered = [str(names[key]) for key in sorted(keys, key=lambda key: (not isinstance(key, int), key))]
    said = f"{what}: its config's id2label has the keys {keys}, expected {expected}, one per output: "
    if what.startswith("Teacher"):
        raise LabelNameError.of(f"{said}give the names in the order of its outputs, e.g. ", ordered, ".")
    raise DataError(f"{said}correct it, e.g. model.config.id2label = {dict(enumerate(ordered))}.")


def _refuse_outputs(model: PreTrainedModel, view: View, what: str) -> None:
    """Refuse another number of outputs than the config names: `output_layer` finds the head by that number."""
    named = model.config.num_labels
    if output_layer(model) is not None:
        return
    logits = try_model(model, view, view.made_up(1), f"{what}: a forward of one row")
    if logits is not None and logits.shape[-1] != named:
        names = [str(model.config.id2label[i]) for i in range(named)]
        said = (
            f"{what}: its head has {logits.shape[-1]} outputs, but its config's id2label names {named}, {names}: name all "
            "in their order, in model.config.id2label = {0: …}"
        )
        if what.startswith("Teacher"):
            raise LabelNameError.of(f"{said}, or in ", {}, "[…].")
        raise DataError(f"{said}.")

"""LoRA adapters of a student: added to it, and merged into it again."""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from ..errors import ConfigurationError, in_a_line
from ..tasks.task import Task
from ..teachers.over_base import peft_task_type, require_peft

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel


def add_adapter(model: PreTrainedModel, peft_config: PeftConfig, task: Task) -> PeftModel:
    """Put an adapter onto a student: body frozen, adapter and head trained and saved.

    All that lies outside the body counts as head, also what `peft` would leave frozen and out of the saved adapter,
    such as DeBERTa's pooler. The number of trained parameters is printed.

    Args:
        model: A model with the task's head; its modules become the adapted model's.
        peft_config: Of `peft`, for instance a ``LoraConfig``; stays as it is.
        task: The task.

    Raises:
        ConfigurationError: `peft` is not installed, the config is for another task, or it does not fit the model.

    Example:
        >>> import peft
        >>> from hf_distill import TASKS
        >>> config = peft.LoraConfig(r=2, target_modules=["q_lin", "v_lin"])
        >>> adapted = add_adapter(student, config, TASKS["text-classification"])
        Trained with the adapter: ... parameters (...).
    """
    peft = require_peft()
    if hasattr(model, "peft_config"):
        raise ConfigurationError(
            "The student has an adapter already: leave peft_config= out, or merge it first (merge_adapter)."
        )
    if not isinstance(peft_config, peft.PeftConfig):
        raise ConfigurationError(
            f"peft_config is a {type(peft_config).__name__}: give a config of peft, such as peft.LoraConfig(r=8)."
        )
    config = copy.deepcopy(peft_config)
    config.task_type = peft_task_type(config, task, "peft_config")
    if hasattr(config, "modules_to_save"):
        head = {
            name
            for name, part in model.named_children()
            if name != model.base_model_prefix and any(True for _ in part.parameters())
        }
        config.modules_to_save = sorted(head.union(config.modules_to_save or ()))
    try:
        adapted = peft.get_peft_model(model, config)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigurationError(
            f"peft_config does not fit {type(model).__name__}: {in_a_line(error)}"
        ) from error
    if os.environ.get("RANK", "0") == "0":
        trained, total = adapted.get_nb_trainable_parameters()
        print(f"Trained with the adapter: {trained:,} of {total:,} parameters ({trained / total:.1%}).")
    return adapted


def merge_adapter(model: PeftModel) -> PreTrainedModel:
    """Add an adapter to the weights it was trained on: a plain model that needs no `peft` to be loaded.

    Args:
        model: The adapted model; its modules become the merged one's, unless it shares them with other teachers.

    Returns:
        A model of the student's own class, with its head and label names; all its parameters can be trained.

    Raises:
        ConfigurationError: It has no adapter that could be merged, or `peft` is not installed.

    Example:
        >>> import peft
        >>> from hf_distill import TASKS
        >>> config = peft.LoraConfig(r=2, target_modules=["q_lin", "v_lin"])
        >>> adapted = add_adapter(student, config, TASKS["text-classification"])
        Trained with the adapter: ...
        >>> merge_adapter(adapted).save_pretrained(tmp_path)
    """
    peft = require_peft()
    if not isinstance(model, peft.PeftModel):
        raise ConfigurationError(
            f"A {type(model).__name__} cannot be merged, only a peft.PeftModel: load an adapter's folder with "
            "peft.PeftModel.from_pretrained(base_model, folder)."
        )
    if not hasattr(model.base_model, "merge_and_unload"):
        kind = model.active_peft_config.peft_type
        raise ConfigurationError(
            f"An adapter of type {kind} adds nothing to weights, so it cannot be merged."
        )
    if getattr(model, "shared_base", None) is not None:
        model = copy.deepcopy(model)  # merging writes into the base
    return model.merge_and_unload().requires_grad_(True)


def with_saved_adapter(model: PeftModel, folder: str | os.PathLike[str]) -> PeftModel:
    """A copy of an adapted model with the adapter of a folder.

    Args:
        model: Adapted alike; stays as it is.
        folder: Of the adapter.

    Raises:
        OSError, ValueError, RuntimeError: There is none, or another.
    """
    peft = require_peft()
    loaded = copy.deepcopy(model)
    peft.set_peft_model_state_dict(loaded, peft.load_peft_weights(str(folder), device="cpu"))
    return loaded


ADAPTER_FOLDER = "adapter"
"""Where a folder with a merged student keeps the adapter it was trained through."""


def keep_merged(model: PeftModel, folder: str | os.PathLike[str]) -> PreTrainedModel:
    """Make the adapter that was saved into a folder a plain student there, which loads without `peft`.

    Args:
        model: The adapted model; stays as it is.
        folder: Where it was saved; the adapter's files go into `ADAPTER_FOLDER`.

    Returns:
        The plain student.

    Example:
        >>> import peft
        >>> from hf_distill import TASKS
        >>> config = peft.LoraConfig(r=2, target_modules=["q_lin", "v_lin"])
        >>> adapted = add_adapter(student, config, TASKS["text-classification"])
        Trained with the adapter: ...
        >>> adapted.save_pretrained(tmp_path)
        >>> type(keep_merged(adapted, tmp_path)).__name__
        'DistilBertForSequenceClassification'
        >>> sorted(path.name for path in tmp_path.iterdir())
        ['adapter', 'config.json', 'model.safetensors']
    """
    folder = Path(folder)
    aside = folder / ADAPTER_FOLDER
    aside.mkdir(exist_ok=True)
    for name in ("adapter_config.json", "adapter_model.safetensors", "README.md"):
        if (folder / name).is_file():
            shutil.move(folder / name, aside / name)
    merged = merge_adapter(copy.deepcopy(model))
    merged.save_pretrained(folder)
    return merged

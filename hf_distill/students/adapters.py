"""LoRA adapters: added to a student, merged into it again, and any number of them over one base as teachers."""

from __future__ import annotations

import copy
import json
import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
import torch
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import ConfigurationError, DataError, UnsafeFileError
from ..tasks.task import Task
from ..teachers.checkpoints import (
    load_model,
    load_tokenizer,
    output_layer,
    refuse_other_task,
    refuse_untrained_head,
)

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

# By `Task.architecture`.
_TASK_TYPES = {"ForSequenceClassification": "SEQ_CLS"}
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# What adapters of sequence classifiers keep whole, whatever their config says.
_HEADS = ("classifier", "score")


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
    peft = _peft()
    if hasattr(model, "peft_config"):
        raise ConfigurationError(
            "The student has an adapter already: leave peft_config= out, or merge it first (merge_adapter)."
        )
    if not isinstance(peft_config, peft.PeftConfig):
        raise ConfigurationError(
            f"peft_config is a {type(peft_config).__name__}: give a config of peft, such as peft.LoraConfig(r=8)."
        )
    config = copy.deepcopy(peft_config)
    config.task_type = _task_type(config, task, "peft_config")
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
            f"peft_config does not fit {type(model).__name__}: {' '.join(str(error).split())[:400]}"
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
    peft = _peft()
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


@dataclass(eq=False)
class _Base:
    """A base in memory, for as long as a teacher over it is.

    Attributes:
        model: The base; all teachers over it hold its parameters.
        untrained: The names of its parameters that its checkpoint lacks, as a head.
    """

    model: PreTrainedModel
    untrained: set[str]

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copy of a teacher's model holds its own parameters: it shares nothing."""
        return None


_bases: weakref.WeakValueDictionary[tuple[Any, ...], _Base] = weakref.WeakValueDictionary()


def load_over_base(
    base: str,
    adapter: str,
    task: Task,
    *,
    what: str,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    trust_remote_code: bool = False,
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """The model of an adapter over a base, whose weights all adapters over the same base share.

    Shared are the parameters themselves, not only their memory now: moved to a device, they move once for all. Each
    model has its own adapter and head, so nothing is switched between them. An adapter that changes weights of the base
    (biases, embeddings, initialisations as PiSSA's) gets a base of its own.

    Args:
        base: Hub id or folder of the model that the adapter was trained on.
        adapter: Hub id or folder of the adapter.
        task: Its auto class loads the base.
        what: Who it is for, for messages: "Teacher 'mnli'".
        revision: Of the base.
        dtype: Of the base's weights; ``auto``: that of its checkpoint.
        trust_remote_code: Whether code from the base's repository may run.

    Returns:
        The model, and the adapter's tokenizer where one is stored with it, else the base's.

    Raises:
        ConfigurationError: `peft` is not installed.
        DataError: Nothing can be loaded there, the two do not fit, or there is no trained head.
        UnsafeFileError: The weights of either are not stored as safetensors.
    """
    peft = _peft()
    folder = _adapter_folder(adapter, what)
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
    except (TypeError, KeyError, ValueError) as error:
        raise DataError(f"{what}: {folder / _CONFIG} cannot be read: {error}") from error
    _task_type(config, task, f"{what}: {adapter}")
    saved = peft.load_peft_weights(str(folder), device="cpu")
    shared = _load_base(
        base, task, what, {"revision": revision, "dtype": dtype, "trust_remote_code": trust_remote_code}
    )
    refuse_untrained_head(
        {name for name in shared.untrained if f"base_model.model.{name}" not in saved},
        f"{what}: {adapter} over {base}",
        task.name,
    )
    sharing = _leaves_base_alone(config, saved)
    keep = {id(parameter): parameter for parameter in shared.model.parameters()} if sharing else {}
    model = copy.deepcopy(shared.model, keep)
    _fit_head(model, saved, folder, what)
    try:
        model = peft.PeftModel.from_pretrained(model, str(folder))
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:400]
        raise DataError(f"{what}: the adapter {adapter} does not fit the base {base}: {reason}") from error
    own = set(peft.get_peft_model_state_dict(model, save_embedding_layers=False))
    of_base = {f"base_model.model.{name}" for name, _ in shared.model.named_parameters()}
    # A head that only the base has is the base's own, trained one: what it lacks was refused above.
    strange = [
        key for key in own.symmetric_difference(saved) if key not in of_base and ".base_layer." not in key
    ]
    if strange:
        raise DataError(
            f"{what}: the adapter {adapter} does not fit the base {base} (it says that it was trained on "
            f"{config.base_model_name_or_path}): only one of the two has {', '.join(sorted(strange)[:3])}."
        )
    if sharing:
        model.shared_base = shared
    refuse_other_task(model, task, what)
    if (folder / "tokenizer_config.json").is_file():
        tokenizer = load_tokenizer(str(folder), what=what)
    else:
        tokenizer = load_tokenizer(base, what=what, revision=revision, trust_remote_code=trust_remote_code)
    if model.config.pad_token_id is None:  # an adapter stores no config of the model
        model.config.pad_token_id = tokenizer.pad_token_id
    # A base that other teachers use may be on an accelerator already.
    return model.to(shared.model.device), tokenizer


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ConfigurationError(
            "Adapters need the package peft, which is not installed: pip install peft"
        ) from error
    return peft


def _task_type(config: PeftConfig, task: Task, what: str) -> str:
    """What `peft` calls the task; refuses the config of an adapter for another one."""
    expected = _TASK_TYPES.get(task.architecture)
    if expected is None:
        raise ConfigurationError(f"Adapters for {task.name} are not supported.")
    given = getattr(config.task_type, "value", config.task_type)
    if given not in (None, expected):
        raise ConfigurationError(
            f"{what}: its task_type is {given}, but {task.name} needs {expected}: adapters have the head of their task."
        )
    return expected


def _adapter_folder(adapter: str, what: str) -> Path:
    folder = Path(adapter)
    if not folder.is_dir():
        patterns = ["*.json", "*.txt", "*.model", "*.jinja", _WEIGHTS]
        try:
            folder = Path(huggingface_hub.snapshot_download(adapter, allow_patterns=patterns))
        except (OSError, ValueError, HfHubHTTPError) as error:
            reason = " ".join(str(error).split())[:400]
            raise DataError(f"{what}: the adapter {adapter} cannot be loaded: {reason}") from error
    if not (folder / _CONFIG).is_file():
        raise DataError(f"{what}: {adapter} is no adapter, it has no {_CONFIG}.")
    if not (folder / _WEIGHTS).is_file():
        raise UnsafeFileError(
            f"{what}: {adapter} holds no {_WEIGHTS}; other formats can run code when read and are refused. Convert it "
            "once where you trust it (load, then save_pretrained) and use the result."
        )
    return folder


def _load_base(base: str, task: Task, what: str, options: dict[str, Any]) -> _Base:
    folder = Path(base)
    # A folder may be written anew while teachers over its former files are in memory.
    stamps = (
        [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in folder.glob("*")]
        if folder.is_dir()
        else []
    )
    source = str(folder.resolve()) if folder.is_dir() else base
    key = (source, tuple(sorted(stamps)), task.auto_class, *(str(value) for value in options.values()))
    found = _bases.get(key)
    if found is None:
        model, untrained = load_model(base, task.auto_class, what=what, **options)
        if hasattr(model, "peft_config"):
            raise DataError(f"{what}: {base} is an adapter itself: name the model that both were trained on.")
        found = _bases[key] = _Base(model.requires_grad_(False).eval(), untrained)
    return found


def _leaves_base_alone(config: PeftConfig, saved: dict[str, Tensor]) -> bool:
    """Whether nothing of the adapter is written into the base's own weights, as far as is known for certain."""
    whole = {*_HEADS, *(getattr(config, "modules_to_save", None) or ())}
    return (
        config.peft_type == "LORA"
        and config.bias == "none"
        and config.init_lora_weights in (True, False, "gaussian")
        and not any(
            getattr(config, name, None)
            for name in ("trainable_token_indices", "layer_replication", "target_parameters")
        )
        and all(".lora_" in key or whole & set(key.split(".")) for key in saved)
    )


def _fit_head(model: PreTrainedModel, saved: dict[str, Tensor], folder: Path, what: str) -> None:
    """Give the head as many outputs as the adapter's own has, and their names where the folder holds them."""
    found = output_layer(model)
    if found is None:
        raise DataError(f"{what}: {type(model).__name__} has no head whose outputs are labels.")
    name, layer = found
    rows = len(saved.get(f"base_model.model.{name}.weight", layer.weight))
    if rows != layer.out_features:
        bias, like = layer.bias is not None, layer.weight
        fresh = nn.Linear(layer.in_features, rows, bias, like.device, like.dtype)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, fresh)
        model.config.num_labels = model.num_labels = rows
    try:
        own = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("id2label") or {}
    except (OSError, ValueError):
        own = {}
    if len(own) == rows:
        model.config.id2label = {int(i): label for i, label in own.items()}
        model.config.label2id = {label: i for i, label in model.config.id2label.items()}

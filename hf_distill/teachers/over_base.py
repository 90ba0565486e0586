"""LoRA adapters: added to a student, merged into it again, and any number of them over one base as teachers."""

from __future__ import annotations

import copy
import json
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
import torch
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import ConfigurationError, DataError, UnsafeFileError, how_to_install, in_a_line
from ..tasks.task import Task
from .checkpoints import load_model, load_tokenizer, output_layer, refuse_other_task, refuse_untrained_head
from .hub_ids import missing_folder, refuse_absent
from .model_files import refuse_unsafe_files

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# What adapters of sequence classifiers keep whole, whatever their config says.
_HEADS = ("classifier", "score")


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
    peft = require_peft()
    folder = _adapter_folder(adapter, what)
    refuse_unsafe_files(str(folder), what, trust_remote_code=trust_remote_code)
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
    except (TypeError, KeyError, ValueError) as error:
        raise DataError(f"{what}: {folder / _CONFIG} cannot be read: {error}") from error
    peft_task_type(config, task, f"{what}: {adapter}")
    try:
        saved = peft.load_peft_weights(str(folder), device="cpu")
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise DataError(f"{what}: {folder / _WEIGHTS} cannot be read: {in_a_line(error)}") from error
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
        raise DataError(
            f"{what}: the adapter {adapter} does not fit the base {base}: {in_a_line(error)}"
        ) from error
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


def require_peft() -> Any:
    """Import `peft`, or say how to install it."""
    try:
        import peft
    except ImportError as error:
        raise ConfigurationError(
            f"Adapters need the package peft, which is not installed: {how_to_install('peft', extra='peft')}"
        ) from error
    return peft


def peft_task_type(config: PeftConfig, task: Task, what: str) -> str:
    """What `peft` calls the task; refuses the config of an adapter for another one."""
    if task.peft_type is None:
        raise ConfigurationError(f"Adapters for {task.name} are not supported.")
    given = getattr(config.task_type, "value", config.task_type)
    if given not in (None, task.peft_type):
        raise ConfigurationError(
            f"{what}: its task_type is {given}, but {task.name} needs {task.peft_type}: adapters have the head of their task."
        )
    return task.peft_type


def _adapter_folder(adapter: str, what: str) -> Path:
    folder = Path(adapter)
    if not folder.is_dir():
        refuse_absent(adapter, f"{what}: the adapter")
        patterns = ["*.json", "*.txt", "*.model", "*.jinja", _WEIGHTS]
        try:
            folder = Path(huggingface_hub.snapshot_download(adapter, allow_patterns=patterns))
        except (OSError, ValueError, HfHubHTTPError) as error:
            reason = missing_folder(adapter) or in_a_line(error)
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

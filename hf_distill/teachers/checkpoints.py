"""Checkpoints into memory: safetensors only, with the task's head, and with errors that say what to do."""

from __future__ import annotations

from typing import Any

import transformers
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.activations import ACT2FN

from ..errors import ConfigurationError, DataError, UnsafeFileError, in_a_line
from ..lookup import suggest
from ..rows.content import Content
from ..rows.texts import TEXTS
from ..rows.views import without_adapter
from ..tasks.task import Task
from .damaged_files import impossible_sizes, refuse_damaged_files, refuse_gaps
from .hub_ids import missing_folder, refuse_absent
from .model_files import refuse_unsafe_files

# What messages call a processor.
_CALLED = {"AutoTokenizer": "tokenizer", "AutoImageProcessor": "image processor"}
# What configs call the activation of their feed-forward layers.
_ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function", "activation")


def load_model(
    id_or_path: str, auto_class: str, *, what: str, **options: Any
) -> tuple[PreTrainedModel, set[str]]:
    """`from_pretrained` of a class, with errors that say what to do.

    Args:
        id_or_path: Hub id or folder.
        auto_class: Name of the class of `transformers` that loads it.
        what: Who it is for, for messages: "Teacher 'bert'".
        options: Arguments of ``from_pretrained``.

    Returns:
        The model, and the names of its parameters that the checkpoint lacks.

    Raises:
        DataError: Nothing can be loaded there, files are damaged or missing, or sizes do not fit.
        ConfigurationError: A library is missing.
        UnsafeFileError: The weights are not stored as safetensors or lie elsewhere, or code would have to run.
    """
    kind = getattr(transformers, auto_class, None)
    if not isinstance(kind, type) or not hasattr(kind, "from_pretrained"):
        raise DataError(
            f"{what}: {id_or_path} was saved as {auto_class}, which transformers has no model of."
        )
    refuse_absent(id_or_path, what)
    trusted = bool(options.setdefault("trust_remote_code", False))
    refuse_unsafe_files(id_or_path, what, revision=options.get("revision"), trust_remote_code=trusted)
    where = f"{what}: {id_or_path}"
    refuse_damaged_files(id_or_path, what)
    _refuse_config(id_or_path, options, where)
    try:
        model, info = kind.from_pretrained(
            id_or_path,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, with the sizes
            **options,
        )
    except ImportError as error:
        raise ConfigurationError(f"{where} needs a library that is not there: {in_a_line(error)}") from error
    except Exception as error:  # the model's own code, given numbers that nobody tried
        reason = in_a_line(error, 10_000)
        refuse_remote_code(reason, f"{what}: {id_or_path}")
        if absent := missing_folder(id_or_path):
            raise DataError(f"{where} cannot be loaded as {auto_class}: {absent}.") from error
        if "safetensors" in reason and "not a local folder" not in reason:
            raise UnsafeFileError(
                f"{what}: {id_or_path} holds no model.safetensors; other formats can run code when read and are "
                "refused. Convert it once where you trust it (load, then save_pretrained) and use the result."
            ) from error
        kind = "" if isinstance(error, (OSError, ValueError, RuntimeError)) else f"{type(error).__name__}: "
        raise DataError(f"{where} cannot be loaded as {auto_class}: {kind}{reason[:500]}") from error
    if info["mismatched_keys"]:
        name, stored, described = min(info["mismatched_keys"])
        raise DataError(
            f"{where} cannot be loaded as {auto_class}: {name} is of shape {tuple(stored)} in its weights, but of shape "
            f"{tuple(described)} by its config and the labels ({model.config.num_labels} outputs, named "
            f"{list(model.config.id2label.values())}): correct its config.json (id2label has one name per output), "
            "or name a checkpoint with as many outputs."
        )
    if not hasattr(model, "peft_config"):
        refuse_gaps(
            info["missing_keys"], info["unexpected_keys"], model.state_dict(), model.base_model_prefix, where
        )
    return model, set(info["missing_keys"])


def refuse_remote_code(reason: str, what: str) -> None:
    """Say it where a library refused to run a model's own code.

    Args:
        reason: What the library said.
        what: Whose model or tokenizer it is.

    Raises:
        UnsafeFileError: It was that.
    """
    if "trust_remote_code" in reason:
        raise UnsafeFileError(
            f"{what} comes with code of its own (auto_map), which was not run: pass trust_remote_code where you have read "
            "that code, or name a model that needs none."
        )


def load_config(id_or_path: str, *, what: str, **options: Any) -> PretrainedConfig:
    """`AutoConfig.from_pretrained`, with an error that says whose config it is; no code of the model's runs.

    Args:
        id_or_path: Hub id or folder.
        what: Who it is for, for messages.
        options: Arguments of ``from_pretrained``.

    Raises:
        DataError: There is none, or it cannot be read.
        UnsafeFileError: It needs code of the model's own.
    """
    refuse_absent(id_or_path, what)
    options.setdefault("trust_remote_code", False)
    try:
        return transformers.AutoConfig.from_pretrained(id_or_path, **options)
    except Exception as error:  # a config is checked by its own class, which raises what it likes
        reason = missing_folder(id_or_path) or in_a_line(error)
        refuse_remote_code(in_a_line(error, 10_000), f"{what}: {id_or_path}")
        raise DataError(f"{what}: {id_or_path} cannot be loaded: {reason}") from error


def _refuse_config(id_or_path: str, options: dict[str, Any], where: str) -> None:
    """Refuse sizes that cannot be and activations that nobody has, which loading would only stumble over.

    Raises:
        DataError: It is so.
    """
    try:
        known = {"trust_remote_code": False}
        known |= {key: options[key] for key in ("revision", "trust_remote_code") if key in options}
        config = transformers.AutoConfig.from_pretrained(id_or_path, **known).to_dict()
    except Exception:  # whatever it is, loading the model says it, of an adapter's folder as of any other
        return
    problems = [f"{key}: {problem}" for key, problem in impossible_sizes(config)]
    problems += [
        f"{key}: found {value!r}{suggest(value, ACT2FN)}, which is no activation of transformers"
        for key, value in config.items()
        if key in _ACTIVATIONS and isinstance(value, str) and value not in ACT2FN
    ]
    if problems:
        raise DataError(
            f"{where}: its config.json cannot be right ({'; '.join(problems)}): copy it again or correct it."
        )


def load_with_head(
    id_or_path: str, task: Task, *, what: str, require_head: bool, **options: Any
) -> PreTrainedModel:
    """A model of the task's auto class.

    Args:
        id_or_path: Hub id or folder.
        task: Its auto class loads the model.
        what: Who it is for, for messages: "Teacher 'bert'".
        require_head: Whether a freshly initialised head is refused.
        options: Arguments of ``from_pretrained``.

    Raises:
        DataError: Nothing can be loaded there, sizes do not fit, or a required head is missing.
        UnsafeFileError: The weights are not stored as safetensors.
    """
    model, missing = load_model(id_or_path, task.auto_class, what=what, **options)
    if require_head:
        adapters = getattr(model, "peft_config", None) or {}
        refuse_other_task(model, task, what, checkpoint=not adapters)
        for adapter in adapters.values():  # its loading report leaves out what the base lacks
            _, of_base = load_model(
                adapter.base_model_name_or_path,
                task.auto_class,
                what=what,
                num_labels=model.config.num_labels,
                trust_remote_code=options.get("trust_remote_code", False),
            )
            stored = set(adapter.modules_to_save or ())
            missing |= {key for key in of_base if not stored & set(key.split("."))}
        refuse_untrained_head(missing, f"{what}: {id_or_path}", task.name)
    return model


def load_processor(id_or_path: str, content: Content, *, what: str, **options: Any) -> Any:
    """A model's tokenizer, image processor, or what else stands between it and rows; None where nothing does.

    Args:
        id_or_path: Hub id or folder.
        content: What rows hold.
        what: Who it is for, for messages: "Teacher 'bert'".
        options: Arguments of ``from_pretrained``.

    Raises:
        DataError: There is none.
    """
    if content.processor_class is None:
        return None
    called = _CALLED.get(content.processor_class, "processor")
    advice = f"Save it there with {called.replace(' ', '_')}.save_pretrained, or pass it."
    options.setdefault("trust_remote_code", False)
    refuse_absent(id_or_path, what)
    try:
        processor = getattr(transformers, content.processor_class).from_pretrained(id_or_path, **options)
    except Exception as error:  # tokenizers raise whatever their own files make them
        refuse_remote_code(in_a_line(error, 10_000), f"{what}: the {called} of {id_or_path}")
        reason = missing_folder(id_or_path) or in_a_line(error)
        raise DataError(f"{what}: no {called} can be loaded from {id_or_path}: {reason}. {advice}") from error
    if wrong := content.refuse_processor(processor):
        raise DataError(f"{what}: {wrong} in {id_or_path}. {advice}")
    return processor


def load_tokenizer(id_or_path: str, *, what: str, **options: Any) -> PreTrainedTokenizerBase:
    """`load_processor` of rows of text.

    Raises:
        DataError: No tokenizer can be loaded there.
    """
    return load_processor(id_or_path, TEXTS, what=what, **options)


def refuse_other_task(model: PreTrainedModel, task: Task, what: str, *, checkpoint: bool = False) -> None:
    """Refuse a model with the head of another task.

    Args:
        model: The model.
        task: What it is to be used for.
        what: Who it is, for messages.
        checkpoint: Whether the class that saved it counts; else the class in memory.

    Raises:
        DataError: The head is of another class, or made for something else.
    """
    config = model.config
    # A model in memory has the head of its class, whatever its body was loaded from.
    architectures = (config.architectures if checkpoint else None) or [type(without_adapter(model)).__name__]
    if not any(task.architecture in name for name in architectures) and any(
        "For" in n for n in architectures
    ):
        raise DataError(
            f"{what}: it was saved as {', '.join(architectures)}, but {task.name} needs a *{task.architecture} head: "
            "name a checkpoint fine-tuned for that task."
        )
    task.refuse_other_head(config, what)


def refuse_untrained_head(missing: set[str], what: str, purpose: str) -> None:
    """Refuse a model some of whose parameters no checkpoint holds.

    Args:
        missing: Their names.
        what: Who it is, for messages.
        purpose: What the head is for.

    Raises:
        DataError: There are some.
    """
    if missing:
        names = ", ".join(sorted(missing)[:4])
        raise DataError(
            f"{what} has no trained head for {purpose} (not in the checkpoint: {names}), so its "
            "answers would be random. Fine-tune it first, or name the fine-tuned checkpoint."
        )


def output_layer(model: PreTrainedModel) -> tuple[str, nn.Linear] | None:
    """The last layer of the head, whose rows are the labels: its name and itself; None where there is no such layer.

    Example:
        >>> output_layer(bert)
        ('classifier', Linear(in_features=32, out_features=2, bias=True))
    """
    # Heads are registered after the body, and their output last.
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    name, last = layers[-1] if layers else ("", None)
    return None if last is None or last.out_features != model.config.num_labels else (name, last)

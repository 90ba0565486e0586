"""The section `training` checked: any argument of `TrainingArguments`, by the types and the rules of the installed one."""

from __future__ import annotations

import copy
import dataclasses
import os
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ..lookup import suggest
from ..training.arguments import MOST_SEED, DistillationArguments, missing_trackers
from ..training.callbacks import EarlyStopping
from .problems import Problem, found, unknown_key

# Our own arguments stand where the recipe speaks of them; so do those of the Hub and of resuming.
_BELONGS = {
    "temperature": "it is losses.temperature",
    "task_weight": "it is losses.task_weight",
    "distill_weight": "it is losses.distill_weight",
    "label_share": "it is losses.label_share",
    "max_length": "it is student.max_length",
    "resume_from_checkpoint": "it is the option --resume of the command",
    "hub_token": "a recipe is published with the model; log in with `hf auth login` or set HF_TOKEN instead",
    "parallelism_config": "it takes a Python object, which a recipe cannot write; use the Python API",
}

# What older versions of transformers called it, or what people call it. Only asked where the key is unknown.
_RENAMED = {
    "adafactor": "optim: adafactor",
    "batch_size": "per_device_train_batch_size",
    "dispatch_batches": "accelerator_config: {dispatch_batches: …}",
    "epochs": "num_train_epochs",
    "evaluation_strategy": "eval_strategy",
    "fsdp_min_num_params": "fsdp_config: {min_num_params: …}",
    "fsdp_transformer_layer_cls_to_wrap": "fsdp_config: {transformer_layer_cls_to_wrap: …}",
    "group_by_length": "train_sampling_strategy: group_by_length",
    "include_inputs_for_metrics": "include_for_metrics: [inputs]",
    "include_tokens_per_second": "include_num_input_tokens_seen",
    "lr": "learning_rate",
    "no_cuda": "use_cpu",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "push_to_hub_model_id": "hub.repo",
    "push_to_hub_organization": "hub.repo",
    "split_batches": "accelerator_config: {split_batches: …}",
    "torchdynamo": "torch_compile_backend",
    "warmup_ratio": "warmup_steps (a value below 1 is the share of all steps)",
    "weight_decay_rate": "weight_decay",
}
_REMOVED = {
    "fp16_backend": "there is one backend now",
    "half_precision_backend": "there is one backend now",
    "jit_mode_eval": "it no longer exists",
    "logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR",
    "mp_parameters": "it no longer exists",
    "overwrite_output_dir": "it is the option --overwrite of the command; --resume continues in a folder",
    "past_index": "it no longer exists",
    "push_to_hub_token": "log in with `hf auth login` or set HF_TOKEN",
    "ray_scope": "pass it to hyperparameter_search",
    "save_safetensors": "safetensors is the only format",
    "tpu_num_cores": "the launcher says it",
    "use_ipex": "it no longer exists",
    "use_mps_device": "the device is found by itself",
}

# Arguments of a callback that are written beside those of the training.
_STOPPING = ("early_stopping_patience", "early_stopping_threshold")

# TrainingArguments itself takes any number here, and training then fails late or does nothing: (least, may be it).
_LEAST: dict[str, tuple[float, bool]] = {
    "adam_beta1": (0, True),
    "adam_beta2": (0, True),
    "adam_epsilon": (0, True),
    "data_seed": (0, True),
    "dataloader_num_workers": (0, True),
    "eval_accumulation_steps": (1, True),
    "eval_delay": (0, True),
    "eval_steps": (0, False),
    "gradient_accumulation_steps": (1, True),
    "label_smoothing_factor": (0, True),
    "learning_rate": (0, True),
    "logging_steps": (0, False),
    "max_grad_norm": (0, True),
    "num_train_epochs": (0, False),
    "per_device_eval_batch_size": (1, True),
    "per_device_train_batch_size": (1, True),
    "save_steps": (0, False),
    "save_total_limit": (1, True),
    "seed": (0, True),
    "warmup_steps": (0, True),
    "weight_decay": (0, True),
}
_MOST = {"seed": MOST_SEED, "data_seed": MOST_SEED}
_MOST_OF_OTHERS = 2**31 - 1
_BELOW_ONE = ("adam_beta1", "adam_beta2", "label_smoothing_factor")

_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}


def training_keys() -> list[str]:
    """The names that the section `training` takes in the installed version of transformers."""
    return [*(field.name for field in _fields() if field.name not in _BELONGS), *_STOPPING]


def arguments_of(training: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that `DistillationArguments` takes, copied: it edits the mappings that it is given.

    Args:
        training: The section.
    """
    return {key: copy.deepcopy(value) for key, value in training.items() if key not in _STOPPING}


def stopping(training: Mapping[str, Any]) -> list[EarlyStopping]:
    """The callback that ends a training early; none where the section does not ask for it.

    Args:
        training: The section.

    Example:
        >>> stopping({"early_stopping_patience": 3})[0].early_stopping_patience
        3
    """
    given = {key: training[key] for key in _STOPPING if key in training}
    return [EarlyStopping(**given)] if given else []


def _check_stopping(training: Mapping[str, Any]) -> Iterator[Problem]:
    """Early stopping: a number of evaluations, evaluations, and what they are judged by."""
    patience, threshold = (training.get(key) for key in _STOPPING)
    if patience is None:
        if threshold is not None:
            yield Problem(
                "training.early_stopping_threshold",
                "it is for training.early_stopping_patience; give that too",
            )
        return
    if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
        yield Problem(
            "training.early_stopping_patience",
            f"expected how many evaluations without a better one end the training, from 1, found {found(patience)}",
        )
    if threshold is not None and (
        isinstance(threshold, bool)
        or not isinstance(threshold, (int, float))
        or not 0 <= threshold < float("inf")
    ):
        yield Problem(
            "training.early_stopping_threshold", f"expected a number of at least 0, found {found(threshold)}"
        )
    if training.get("eval_strategy", "no") == "no":
        yield Problem(
            "training.early_stopping_patience",
            "it counts evaluations, and there are none: write eval_strategy: epoch",
        )
    elif not (training.get("load_best_model_at_end") or training.get("metric_for_best_model")):
        yield Problem(
            "training.early_stopping_patience",
            "nothing says what is better: write load_best_model_at_end: true (by the evaluation loss), or "
            "metric_for_best_model: accuracy",
        )


def check_training(training: Mapping[str, Any], *, elsewhere: Iterable[str] = ()) -> list[Problem]:
    """Check the section `training`: keys, types, ranges, then the arguments' own rules.

    Args:
        training: The section as it was written, with `output_dir`.
        elsewhere: Paths of keys of other sections, for suggestions.
    """
    hints = typing.get_type_hints(DistillationArguments)
    fields = {field.name: field for field in _fields()}
    problems = []
    for key, value in training.items():
        path = ("training", str(key))
        if key in _STOPPING:
            continue
        if key in _BELONGS:
            problems.append(Problem(".".join(path), f"does not belong here, {_BELONGS[key]}"))
        elif key in fields:
            sentence = _type_sentence(key, value, hints[key], fields[key]) or _range_sentence(key, value)
            if sentence:
                problems.append(Problem(".".join(path), sentence))
        elif key in _RENAMED:
            problems.append(
                Problem(".".join(path), f"unknown key, found {found(value)}; write {_RENAMED[key]}")
            )
        elif key in _REMOVED:
            problems.append(Problem(".".join(path), f"is no longer a training argument: {_REMOVED[key]}"))
        else:
            problems.append(unknown_key(path, value, training_keys(), elsewhere))
    trackers = training.get("report_to")
    if isinstance(trackers, str) or (
        isinstance(trackers, list) and all(isinstance(t, str) for t in trackers)
    ):
        problems += [Problem("training.report_to", sentence) for sentence in missing_trackers(trackers)]
    problems += _check_stopping(training)
    if problems:
        return problems
    try:
        args = DistillationArguments(**arguments_of(training))
    except (ValueError, TypeError, OSError, ImportError, NotImplementedError) as error:
        return [Problem("training", " ".join(str(error).split()))]
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size > 1 and args.world_size == 1:
        return [
            Problem(
                "training.use_cpu",
                f"{world_size} processes were launched, but each would train alone on the whole data: there is no "
                "accelerator for them, and processes on a CPU join only with training.use_cpu=true",
            )
        ]
    return []


def _fields() -> tuple[dataclasses.Field[Any], ...]:
    return tuple(field for field in dataclasses.fields(DistillationArguments) if field.init)


def _type_sentence(key: str, value: Any, hint: Any, field: dataclasses.Field[Any]) -> str | None:
    members = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    enums = [member for member in members if isinstance(member, type) and issubclass(member, Enum)]
    # An enum argument is annotated `SomeEnum | str`, so that its type alone would let any word pass.
    choices = [str(item.value) for enum in enums for item in enum] or [
        str(c) for c in field.metadata.get("choices", ())
    ]
    if choices:
        if value in choices or (value is None and type(None) in members):
            return None
        shown = ", ".join(choices) if len(choices) <= 12 else f"the {len(choices)} that transformers knows"
        return f"expected one of {shown}; found {found(value)}{suggest(value, choices)}"
    if key == "fsdp":  # annotated as text for the command line's sake, documented as a boolean
        members = (*members, bool)
    try:
        either = typing.Union[members]  # noqa: UP007 - only run time knows the members
        TypeAdapter(either, config=ConfigDict(strict=True, allow_inf_nan=False)).validate_python(value)
    except ValidationError:
        words = dict.fromkeys(_in_words(member) for member in members)
        without_quotes = "; write it without quotes" if isinstance(value, str) and _is_number(value) else ""
        return f"expected {' or '.join(words)}, found {found(value)}{without_quotes}"
    return None


def _range_sentence(key: str, value: Any) -> str | None:
    if key == "max_steps" and value != -1 and value < 1:
        return f"expected a number of at least 1, or -1, found {found(value)}"
    most = _MOST.get(key, _MOST_OF_OTHERS)
    if (isinstance(value, int) or key == "num_train_epochs") and value is not None and value > most:
        return f"expected a number of at most {most}, found {found(value)}"
    if value is None or key not in _LEAST:
        return None
    least, inclusive = _LEAST[key]
    if value < least or (value == least and not inclusive):
        return f"expected a number {'of at least' if inclusive else 'above'} {least:g}, found {found(value)}"
    return f"expected a number below 1, found {found(value)}" if key in _BELOW_ONE and value >= 1 else None


def _in_words(member: Any) -> str:
    if member in _WORDS:
        return _WORDS[member]
    if typing.get_origin(member) is Literal:
        return ", ".join(found(item) for item in typing.get_args(member))
    return (
        f"a list of {_WORDS.get((*typing.get_args(member), str)[0], 'words')}"
        if (typing.get_origin(member) or member) is list
        else "a mapping"
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

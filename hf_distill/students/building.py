"""A student made of a teacher: its embeddings, some of its layers and its head, narrower where that is asked for.

Shapes: N layers of the teacher, H its hidden size, C classes of the student.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from ..errors import ConfigurationError, DataError, in_a_line
from ..fusion.alignment import LabelMap
from ..tasks import build_task, family_of
from ..tasks.task import Task, output_names
from ..teachers.checkpoints import (
    load_config,
    load_model,
    load_with_head,
    output_layer,
    refuse_untrained_head,
)
from ..teachers.teacher import Teacher
from .adapters import merge_adapter

# What configs call the width inside a feed-forward block, and other widths that follow the hidden size where they
# equal it. All else goes by `attribute_map` and by shapes.
_INNER = ("intermediate_size", "hidden_dim", "n_inner", "d_ff", "ffn_dim")
_FOLLOWING = ("embedding_size", "pooler_hidden_size", "pooler_output_size")
# Layers that compute several projections at once: how many blocks follow each other in their output.
_FUSED = {"Wqkv": 3, "c_attn": 3, "Wi": 2}
# Attributes of modules in which layers differ by mere position, or by what is only done while training.
_POSITIONAL = {"layer_idx", "layer_id", "training", "gradient_checkpointing", "drop_prob"}


def build_student(
    teacher: str | os.PathLike[str] | PreTrainedModel | Teacher,
    *,
    layers: int | Sequence[int] = 6,
    hidden_size: int | None = None,
    labels: Sequence[str] | None = None,
    task: str | Task = "text-classification",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A student of the teacher's own class with some of its layers, and with its embeddings and head.

    The teacher may be any checkpoint: one that was only pretrained, by id or folder, gets a fresh head for the labels.

    Every tensor is copied as it is, so with all layers and the teacher's labels the student is the teacher. What the
    config lists per layer, such as kinds of attention, is selected with the layers; where a layer would not do at its
    new place what it did at its old one, it is refused. A teacher with an adapter is merged first. The student is
    float32, since a checkpoint stored in half precision would be trained in it.

    Args:
        teacher: A `Teacher`, a model, an id or a folder; it stays as it is.
        layers: How many, see `evenly_spaced`; or which, counted from 0.
        hidden_size: A smaller H: the first dimensions of each trained matrix are kept. The size of a head stays, there
            are fewer heads, and the feed-forward width shrinks in proportion.
        labels: The C label names of the student: rows of the output layer are matched by name; a label that the
            teacher lacks begins with a fresh row. None: the teacher's.
        task: Whose head a checkpoint without one gets.
        revision: Branch, tag or commit of a teacher given by its id.
        trust_remote_code: Whether code from its repository may run.

    Returns:
        The student, in evaluation mode as `from_pretrained` returns models. What was not simply copied is printed.

    Raises:
        ConfigurationError: Layers or a hidden size that the teacher's architecture does not allow, with the reason.
        DataError: The teacher cannot be loaded, or its labels cannot be matched.

    Reference:
        Initialising from every other layer: Sanh et al. 2019, arXiv 1910.01108.

    Example:
        >>> student = build_student(teacher, layers=1, labels=["positive", "negative"])
        >>> student.config.num_hidden_layers, student.config.id2label
        (1, {0: 'positive', 1: 'negative'})
    """
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    model, own_labels, name, fresh = _opened(teacher, labels, build_task(task), options)
    what = f"Teacher {name!r}"
    stack, chosen = _chosen_layers(model, layers, what)
    notes: list[str] = ["its head is fresh, since the checkpoint has none"] if fresh else []
    config = _with_layers(model.config, chosen)
    label_map = _label_map(model, own_labels, labels, name, getattr(teacher, "task", "text-classification"))
    new_labels = own_labels if label_map is None else label_map.student_labels
    config.id2label = dict(enumerate(new_labels))
    config.label2id = {label: i for i, label in enumerate(new_labels)}
    _refuse_changed_layers(model, config, stack, chosen, what)
    widths: dict[int, set[int]] = {}
    if hidden_size is not None and hidden_size != config.hidden_size:
        widths = _narrow(config, hidden_size, what)
        notes.append(
            f"its hidden size is {hidden_size} instead of {model.config.hidden_size}: of each trained matrix only the "
            "first dimensions are kept, which is where training begins and no trained model yet"
        )
    missing, ignored = (label_map.missing, label_map.ignored) if label_map is not None else ((), ())
    notes += [f"its head has fresh rows for {', '.join(missing)}, which {name} lacks"] if missing else []
    notes += [f"its head leaves out {', '.join(ignored)} of {name}"] if ignored else []
    student = type(model)(config).float().eval()
    student.load_state_dict(_weights(model, student, stack, chosen, label_map, widths, what))
    if getattr(model, "generation_config", None) is not None:
        student.generation_config = copy.deepcopy(model.generation_config)
    if notes and os.environ.get("RANK", "0") == "0":
        print(f"The student built from {name}: {'; '.join(notes)}.")
    return student


def evenly_spaced(layers: int, of: int) -> tuple[int, ...]:
    """Which of N layers a student of n keeps: layer i is ⌊i·(N−1)/(n−1) + ½⌋, the first and the last included.

    Of one layer it is the last.

    Args:
        layers: n, from 1 to N.
        of: N.

    Example:
        >>> evenly_spaced(6, of=12)
        (0, 2, 4, 7, 9, 11)
    """
    if layers == 1:
        return (of - 1,)
    # In whole numbers: halves must round alike on every machine.
    return tuple((2 * i * (of - 1) + layers - 1) // (2 * (layers - 1)) for i in range(layers))


def _opened(
    teacher: Any, labels: Sequence[str] | None, task: Task, options: Mapping[str, Any]
) -> tuple[PreTrainedModel, tuple[str, ...], str, bool]:
    """The plain model with its label names, its name, and whether its head is fresh."""
    fresh = False
    if isinstance(teacher, (str, os.PathLike)):
        name = Path(teacher).name
        model, fresh = _loaded(os.fspath(teacher), f"Checkpoint {name!r}", labels, task, options)
    else:
        live = isinstance(teacher, Teacher)
        name, model = (teacher.name, teacher.model) if live else (type(teacher).__name__, teacher)
    if hasattr(model, "peft_config"):
        model = merge_adapter(copy.deepcopy(model))
    if not isinstance(model, PreTrainedModel):
        raise ConfigurationError(
            f"build_student takes an id, a folder, a transformers model or a Teacher, found a {type(teacher).__name__}."
        )
    own = teacher.label_names if isinstance(teacher, Teacher) else output_names(model.config)
    return model, own, name, fresh


def _loaded(
    source: str, what: str, labels: Sequence[str] | None, task: Task, options: Mapping[str, Any]
) -> tuple[PreTrainedModel, bool]:
    """The checkpoint as a model of the class that saved it, or, where that has no head for the labels, with a fresh one."""
    saved_as = load_config(source, what=what, **options).architectures
    if labels is not None and not any(task.architecture in name for name in saved_as or ()):
        head = task.head(tuple(labels))
        return load_with_head(
            source, task, what=what, require_head=False, dtype="auto", **head, **options
        ), True
    if not saved_as:
        raise DataError(f"{what}: the config of {source} names no class: load the model, and pass it.")
    model, missing = load_model(source, saved_as[0], what=what, dtype="auto", **options)
    refuse_untrained_head(missing, f"{what}: {source}", saved_as[0])
    return model, False


def _chosen_layers(
    model: PreTrainedModel, layers: int | Sequence[int], what: str
) -> tuple[str, tuple[int, ...]]:
    """The name of the list of layers, and which of them are kept."""
    kind, total = type(model).__name__, getattr(model.config, "num_hidden_layers", None)
    lists = [
        name for name, part in model.named_modules() if isinstance(part, nn.ModuleList) and len(part) == total
    ]
    lists = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    if len(lists) != 1:
        found = "no list" if not lists else f"{len(lists)} lists ({', '.join(lists)})"
        raise ConfigurationError(
            f"{what}: {kind} has {found} of {total} layers, so nothing says which to keep: a student can be built of "
            "models with one stack of layers that do not share their weights. Name a checkpoint or a config instead."
        )
    if isinstance(layers, int) and not isinstance(layers, bool) and 1 <= layers <= total:
        return lists[0], evenly_spaced(layers, of=total)
    if isinstance(layers, Sequence) and not isinstance(layers, str) and layers:
        chosen = tuple(layers)
        whole = all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < total for i in chosen)
        if whole and all(a < b for a, b in zip(chosen, chosen[1:], strict=False)):
            return lists[0], chosen
    raise ConfigurationError(
        f"layers is {layers!r}, but {what} has {total} layers: give how many to keep, from 1 to {total}, or which, "
        f"counted from 0 and in their order, as (0, {total - 1})."
    )


def _with_layers(config: PretrainedConfig, chosen: tuple[int, ...]) -> PretrainedConfig:
    """A copy of the config for the chosen layers, with what it lists per layer."""
    config, total = copy.deepcopy(config), config.num_hidden_layers
    for key in config.to_dict():
        value = getattr(config, key, None)
        # `pos_att_type` or a colour's means may be as long by chance.
        if isinstance(value, (list, tuple)) and len(value) == total and "layer" in key:
            setattr(config, key, type(value)(value[i] for i in chosen))
    config.num_hidden_layers = len(chosen)
    return config


def _label_map(
    model: PreTrainedModel,
    own: Sequence[str],
    labels: Sequence[str] | None,
    name: str,
    task: str | Task,
) -> LabelMap | None:
    """Where the student's labels stand in the teacher's head; None where both have the same."""
    if labels is None or tuple(labels) == tuple(own):
        return None
    if isinstance(labels, str) or len(set(labels)) < len(labels):
        raise DataError(f"labels is {labels!r}: give the student's label names, all different.")
    if output_layer(model) is None:
        raise DataError(
            f"Teacher {name!r}: {type(model).__name__} has no head whose outputs are labels: leave labels= out."
        )
    return family_of(task).match(own, labels, name)


def _refuse_changed_layers(
    model: PreTrainedModel, config: PretrainedConfig, stack: str, chosen: tuple[int, ...], what: str
) -> None:
    """Refuse layers that would not do at their new place what they did: some are built by their position."""
    try:
        with torch.device("meta"):
            empty = type(model)(config)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise ConfigurationError(
            f"{what}: its architecture does not allow the layers {list(chosen)}: {in_a_line(error)}"
        ) from error
    theirs, ours = model.get_submodule(stack), empty.get_submodule(stack)
    for place, layer in enumerate(chosen):
        difference = _difference(theirs[layer], ours[place])
        if difference is not None:
            first = " Keep its layer 0 first: layers=(0, …)." if place == 0 else ""
            raise ConfigurationError(
                f"{what}: its layer {layer} would do something else as layer {place} of the student: {difference}.{first}"
            )


def _difference(theirs: nn.Module, ours: nn.Module) -> str | None:
    """How two modules differ, apart from their weights."""
    before, after = dict(theirs.named_modules()), dict(ours.named_modules())
    for name in [*before, *after]:
        where = name or "it"
        kinds = [type(parts[name]).__name__ if name in parts else "missing" for parts in (before, after)]
        if kinds[0] != kinds[1]:
            return f"{where} was {kinds[0]} and would be {kinds[1]}"
        for key, value in vars(before[name]).items():
            plain = isinstance(value, (bool, int, float, str)) or value is None
            if plain and not key.startswith("_") and key not in _POSITIONAL:
                now = getattr(after[name], key, None)
                if now != value:
                    return f"{where} had {key} {value} and would have {now}"
    return None


def _narrow(config: PretrainedConfig, hidden_size: int, what: str) -> dict[int, set[int]]:
    """Write a smaller hidden size and what follows from it into the config.

    Returns:
        Which lengths of trained tensors become which.
    """
    old, heads = config.hidden_size, config.num_attention_heads
    size = getattr(config, "head_dim", None) or old // heads
    groups = getattr(config, "num_key_value_heads", None) or heads

    def groups_for(count: int) -> int | None:
        """Each remaining head must find the keys and values that it was trained with."""
        if groups == 1:
            return 1
        return None if count % (heads // groups) else count // (heads // groups)

    allowed = {
        old * count // heads: (count, groups_for(count))
        for count in range(1, heads)
        if old * count % heads == 0 and groups_for(count)
    }
    if hidden_size not in allowed:
        raise ConfigurationError(
            f"{what}: its hidden size {old} cannot become {hidden_size!r}: its {heads} heads (in {groups} groups of keys "
            f"and values) keep their size {size}, so there must be a whole number of them. Choose "
            f"{', '.join(map(str, sorted(allowed))) or 'none: it has a single head'}."
        )
    count, new_groups = allowed[hidden_size]
    lengths = {(old, hidden_size), (heads * size, count * size), (groups * size, new_groups * size)}
    given = config.to_dict()
    inner = [
        n for n in _INNER if isinstance(given.get(n), int) and n != config.attribute_map.get("hidden_size")
    ]
    following = [n for n in _FOLLOWING if given.get(n) == old]
    if not inner:  # GPT-2 leaves it to the hidden size
        lengths.add((4 * old, 4 * hidden_size))
    for name in inner:
        new = max(1, round(given[name] * hidden_size / old))
        lengths.add((given[name], new))
        setattr(config, name, new)
    for name in following:
        setattr(config, name, hidden_size)
    config.hidden_size, config.num_attention_heads = hidden_size, count
    if "num_key_value_heads" in given and given["num_key_value_heads"] is not None:
        config.num_key_value_heads = new_groups
    widths: dict[int, set[int]] = {}
    for before, after in lengths:
        widths.setdefault(before, set()).add(after)
    return widths


def _weights(
    model: PreTrainedModel,
    student: PreTrainedModel,
    stack: str,
    chosen: tuple[int, ...],
    label_map: LabelMap | None,
    widths: dict[int, set[int]],
    what: str,
) -> dict[str, Tensor]:
    """The student's state: the teacher's tensors under the student's names, cut and selected where it is smaller."""
    theirs = model.state_dict()
    places = {f"{stack}.{place}.": f"{stack}.{layer}." for place, layer in enumerate(chosen)}
    head = output_layer(model)
    state, left = {}, {key for key in theirs if not key.startswith(f"{stack}.")}
    for key, fresh in student.state_dict().items():
        here = next((here for here in places if key.startswith(here)), "")
        source = places.get(here, "") + key.removeprefix(here)
        left.discard(source)
        if source not in theirs:
            raise ConfigurationError(f"{what}: it has no {source}, which a student of its config needs.")
        rows = label_map if head is not None and key in (f"{head[0]}.weight", f"{head[0]}.bias") else None
        shape = [theirs[source].shape[0], *fresh.shape[1:]] if rows else list(fresh.shape)
        tensor = _cut(theirs[source], shape, key, widths, what)
        state[key] = tensor if rows is None else _rows(tensor, fresh, rows)
    if left:
        raise ConfigurationError(
            f"{what}: a student of its config has no place for {', '.join(sorted(left)[:3])}."
        )
    return state


def _rows(tensor: Tensor, fresh: Tensor, label_map: LabelMap) -> Tensor:
    """The output layer's rows (C, …) by label names, those of labels that the teacher lacks as they were drawn."""
    made = fresh.clone()
    for row, column in enumerate(label_map.columns):
        if column is not None:
            made[row] = tensor[column]
    return made


def _cut(tensor: Tensor, shape: Sequence[int], key: str, widths: dict[int, set[int]], what: str) -> Tensor:
    """The first entries along every dimension that is shorter in the student; of fused projections, of each block."""
    blocks = _FUSED.get(key.split(".")[-2], 1) if "." in key else 1
    for dim, (old, new) in enumerate(zip(tensor.shape, shape, strict=True)):
        if old == new:
            continue
        if (
            blocks > 1
            and old % blocks == 0
            and new % blocks == 0
            and new // blocks in widths.get(old // blocks, ())
        ):
            tensor = torch.cat(
                [part.narrow(dim, 0, new // blocks) for part in tensor.chunk(blocks, dim)], dim
            )
        elif new in widths.get(old, ()):
            tensor = tensor.narrow(dim, 0, new)
        else:
            raise ConfigurationError(
                f"{what}: {key} would become {new} instead of {old} long, and nothing says which part of it belongs "
                "together: this architecture cannot be narrowed, only given fewer layers."
            )
    return tensor

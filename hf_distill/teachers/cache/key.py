"""What a teacher is known by: the hash of what decides its outputs, and, of a folder, that of the bytes of its files.

For the latter no model is loaded: loading a teacher only to compute its key would make the peak memory of cached training
that of the largest teacher.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
import xxhash

from ...files import write_json
from ...tasks.task import Task
from ..fitting_parts import CHECKS
from ..teacher import Teacher, TeacherSpec
from .settings import CacheSettings
from .store import read_description

# Raise whenever the same teacher and row would be stored as other numbers.
_FORMAT = 1
# What a config says of where it came from, or is changed by merely running the model, or what the weights and the
# teacher's label names say; no output depends on it.
_IRRELEVANT = {
    "_name_or_path", "_commit_hash", "transformers_version", "architectures", "problem_type", "use_cache", "dtype",
    "torch_dtype", "id2label", "label2id",
}  # fmt: skip
# What `from_pretrained` reads of a folder: config, tokenizer, weights.
_READ = {".json", ".safetensors", ".txt", ".model", ".jinja"}


def teacher_key(teacher: Teacher, settings: CacheSettings) -> str:
    """Hash of all that decides a teacher's stored outputs, and of nothing else.

    Weights by name, type, shape and bytes; the class and config of the model; adapters; label names; what decides the
    tokens; precision and storage type. Not where it was loaded from, what it is called, nor how rows are batched.

    Args:
        teacher: A live teacher.
        settings: Of the cache.
    """
    digest = xxhash.xxh3_128()
    config = {k: v for k, v in teacher.model.config.to_dict().items() if k not in _IRRELEVANT}
    adapters = {
        name: {k: str(v) for k, v in adapter.to_dict().items() if k != "base_model_name_or_path"}
        for name, adapter in (getattr(teacher.model, "peft_config", None) or {}).items()
    }
    facts = [
        _FORMAT, type(teacher).__qualname__, type(teacher.model).__name__, config, adapters, list(teacher.label_names), teacher.view.key,
        *settings.key_facts,
    ]  # fmt: skip
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    # What an adapter's own head replaces is drawn at random whenever the base has none.
    weights = teacher.model.state_dict().items()
    add_weights(digest, [(name, tensor) for name, tensor in weights if ".original_module." not in name])
    return digest.hexdigest()


def add_weights(digest: Any, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Add weights to a hash, by name, type, shape and bytes.

    Args:
        digest: Of `xxhash`.
        weights: Tensors with their names.
    """
    for name, tensor in sorted(weights):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.flatten().view(torch.uint8).numpy())


def folder_identity(spec: TeacherSpec, facts: Any) -> str | None:
    """Hash of all files that decide a teacher, and of how it is asked for.

    Args:
        spec: The teacher.
        facts: What else decides its key.

    Returns:
        None where files elsewhere decide too: for Hub ids, folders of an adapter whose base is not named, and remote code.
    """
    folders = [Path(spec.id_or_path), *([Path(spec.adapter)] if spec.adapter else [])]
    if not all(folder.is_dir() for folder in folders) or spec.trust_remote_code:
        return None
    if (folders[0] / "adapter_config.json").exists():
        return None
    digest = xxhash.xxh3_128()
    asked = {
        k: str(v)
        for k, v in asdict(spec).items()
        if k not in ("id_or_path", "adapter", "name", "place", "task", "convert")
    }
    digest.update(json.dumps([transformers.__version__, asked, facts], sort_keys=True, default=str).encode())
    for number, folder in enumerate(folders):
        for path in sorted(path for path in folder.iterdir() if path.suffix in _READ and path.is_file()):
            digest.update(f"{number} {path.name} {path.stat().st_size}".encode())
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def key_facts(task: Task, settings: CacheSettings) -> list[Any]:
    """What decides a teacher's key beside its files, for `folder_identity`: the task by its name, whatever it has learnt since.

    And which checks it has passed: a teacher that was remembered before there was one is loaded once more.
    """
    return [_FORMAT, task.name, task.auto_class, *settings.key_facts, {"checks": CHECKS}]


def recall(
    cache_dir: str | os.PathLike[str], identity: str | None, labels: Sequence[str] | None
) -> dict[str, Any] | None:
    """What was remembered under an identity, where all that speaks of the teacher agrees.

    Such a file has no checksum, and whoever may write it could swap classes or teachers by it. So it counts only where
    the store that it names says the same of itself, and was made by this very folder, and where the labels are those of
    the teacher's own files.

    Args:
        cache_dir: Folder of the cache.
        identity: Of `folder_identity`.
        labels: Of the teacher's own files; None where they do not say.

    Returns:
        None where nothing was remembered, or something is in doubt: the teacher is then loaded, which decides.
    """
    if identity is None:
        return None
    try:
        known = json.loads((Path(cache_dir) / f"folder-{identity}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not _is_sound(known):
        return None
    store = read_description(Path(cache_dir) / known["key"])
    made_by = store.get("folders")
    if not isinstance(made_by, list) or identity not in made_by:
        return None
    if any(store.get(name) != value for name, value in known.items()):
        return None
    return known if labels is None or known["labels"] == list(labels) else None


def _is_sound(known: Any) -> bool:
    """Whether it has the parts that `remember` writes, each of its type, and no other."""

    def count(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value > 0

    return (
        isinstance(known, dict)
        and known.keys() == {"key", "labels", "parameters", "layers", "width"}
        and isinstance(known["key"], str)
        and re.fullmatch("[0-9a-f]{32}", known["key"]) is not None
        and isinstance(known["labels"], list)
        and all(isinstance(label, str) for label in known["labels"])
        and len(set(known["labels"])) == len(known["labels"]) > 0
        and count(known["parameters"])
        and all(known[name] is None or count(known[name]) for name in ("layers", "width"))
    )


def remember(cache_dir: str | os.PathLike[str], identity: str | None, teacher: Mapping[str, Any]) -> None:
    """Keep what is to be recalled; where that cannot be written, the teacher is loaded again next time."""
    if identity is None:
        return
    with contextlib.suppress(OSError):
        write_json(Path(cache_dir) / f"folder-{identity}.json", teacher, sort_keys=True)

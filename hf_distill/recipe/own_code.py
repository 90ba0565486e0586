"""What of a recipe is somebody's own code, told from its text: nothing here is imported, called or loaded."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..evaluation.metrics import METRICS
from ..lookup import own_path

_SCHEDULED = ("temperature", "task_weight", "distill_weight", "label_share")
_WRITTEN = b"# Written by hf_distill"
# What a training or a search leaves beside its recipe.
_BESIDE = (
    "distillation.json", "fusion.json", "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors",
    "run_state.json", "trainer_state.json", "study.db",
)  # fmt: skip


def own_code(raw: Mapping[str, Any]) -> list[tuple[str, str]]:
    """All that a recipe would have run which is not built in, each with its place in the recipe.

    Paths ``pkg.mod:Name``, metrics that `evaluate.load` would fetch, the models whose own code is asked for
    (`trust_remote_code`), and kernels out of a repository.

    Args:
        raw: The recipe as it was written, of whatever types.

    Example:
        >>> own_code({"fusion": "mine:Mean", "losses": {"distill": "forward_kl"}})
        [('fusion', 'mine:Mean')]
    """
    return [(".".join(map(str, place)), name) for place, name in _found(raw)]


def without(raw: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """A recipe without the own code of some names, for checks that would import it.

    Args:
        raw: The recipe as it was written.
        names: What may not be imported, as `own_code` says it.
    """
    kept = copy.deepcopy(dict(raw))
    for place, name in list(_found(kept)):
        if name not in names or place[-1] == "trust_remote_code":
            continue  # no check loads a model
        here: Any = kept
        for part in place[:-1]:
            here = here[part]
        if isinstance(here, list):
            here[place[-1]] = None  # the places of the others stay
        else:
            del here[place[-1]]
    return kept


def is_stored(path: Path, text: bytes) -> bool:
    """Whether a recipe is the file of a run, and not one that a person wrote: it says so, or lies among a run's files.

    Args:
        path: Of the recipe.
        text: What it holds.
    """
    return text.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(_WRITTEN) or any(
        (path.parent / name).exists() for name in _BESIDE
    )


def _found(raw: Mapping[str, Any]) -> Iterator[tuple[tuple[Any, ...], str]]:
    losses, search = _mapping(raw.get("losses")), _mapping(raw.get("search"))
    specs: list[tuple[tuple[Any, ...], Any]] = [
        (("task",), raw.get("task")),
        (("register_models",), raw.get("register_models")),
        (("fusion",), raw.get("fusion")),
        *((("losses", key), losses.get(key)) for key in ("distill", "row_weight", *_SCHEDULED)),
        *((("losses", "distill", i), entry) for i, entry in enumerate(_list(losses.get("distill")))),
        *(
            (("losses", "hidden", i), entry.get("loss") if isinstance(entry, Mapping) else entry)
            for i, entry in enumerate(_list(losses.get("hidden")))
        ),
        *((("search", "fusion", i), spec) for i, spec in enumerate(_list(search.get("fusion")))),
    ]
    yield from ((place, name) for place, spec in specs if (name := own_path(spec, {})))
    for i, name in enumerate(_list(_mapping(raw.get("evaluation")).get("metrics"))):
        if isinstance(name, str) and name not in METRICS:
            yield ("evaluation", "metrics", i), name
    models = enumerate(_list(_mapping(raw.get("teachers")).get("models")))
    entries: list[tuple[tuple[Any, ...], Any]] = [
        (("student",), raw.get("student")),
        *((("teachers", "models", i), entry) for i, entry in models),
    ]
    for place, entry in entries:
        if isinstance(entry, Mapping) and entry.get("trust_remote_code") is True:
            yield (*place, "trust_remote_code"), str(entry.get("model"))
    config = _mapping(_mapping(raw.get("student")).get("config"))
    for key, name in config.items():
        if str(key).endswith("_implementation") and isinstance(name, str) and "/" in name:
            yield ("student", "config", key), name


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else []

"""A finished run is not replaced by another recipe's without a word."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ..errors import ConfigurationError
from ..markdown import markdown_table
from ..processes import once
from ..recipe import yaml12
from ..recipe.sections import Recipe
from ..recipe.setup import Setup, written
from ..verdict.recipes_apart import apart

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
# What a run leaves that is of its student, and would be taken to be the next one's.
_OF_THE_STUDENT = ("checkpoint-*", "seed-*", "verdict", "evaluation", "onnx", "int8", "adapter", "publish")
# What another value of makes no other student: more seeds, another place for the cache, logs, pushes.
_ALIKE = (
    "evaluation.seeds",
    "evaluation.single_teacher",
    "evaluation.baseline",
    "evaluation.batch_size",
    "evaluation.verdict",
    "hub",
    "search",
    "teachers.cache_dir",
    "teachers.placement",
    *(
        f"training.{key}"
        for key in (
            "output_dir", "disable_tqdm", "log_level", "logging_first_step", "logging_steps", "logging_strategy", "report_to",
            "run_name", "save_steps", "save_total_limit", "save_strategy", "dataloader_num_workers", "push_to_hub",
            "dataloader_pin_memory", "per_device_eval_batch_size", "hub_model_id", "hub_strategy", "hub_private_repo", "hub_always_push",
            "hub_revision",
        )
    ),
)  # fmt: skip
_MOST_SHOWN = 12


def refuse_replacing(setup: Setup, *, overwrite: bool = False) -> None:
    """Refuse to train into the folder of another recipe's run, or, where that is meant, take what was its student's away.

    Args:
        setup: Of the recipe that is to be trained.
        overwrite: Whether the run that lies there is to be replaced.

    Raises:
        ConfigurationError: Another recipe's student or checkpoints are there; the message has what differs.
    """
    folder = setup.folder
    if not has_run(folder):
        return
    differing = differences(_stored(folder), written(setup.recipe))
    if not differing:
        return
    if overwrite:
        once(lambda: _clear(folder), PartialState())
        return
    rows = [[path, _shown(before), _shown(now)] for path, before, now in differing[:_MOST_SHOWN]]
    more = len(differing) - len(rows)
    table = markdown_table(["key", "the run there", "this recipe"], rows)
    raise ConfigurationError(
        f"{folder} holds a run of another recipe:\n\n{table}\n\n"
        + (f"and {more} more. " if more else "")
        + "Train into another folder with training.output_dir=…, or replace that run with --overwrite (overwrite=True)."
    )


def has_run(folder: Path) -> bool:
    """Whether a folder has a run's recipe, and a student or checkpoints of it."""
    return (folder / "recipe.yaml").is_file() and (
        any((folder / name).is_file() for name in _WEIGHTS) or any(folder.glob("checkpoint-*"))
    )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """What two recipes say differently, of all that makes another student.

    Args:
        before, now: Recipes as mappings.

    Returns:
        Key, value before, value now; None where there is none.

    Example:
        >>> differences({"losses": {"temperature": 2}}, {"losses": {"temperature": 4}, "hub": {"push": True}})
        [('losses.temperature', 2, 4)]
    """
    return [
        (key, *values)
        for key, values in apart(before, now)
        if not any(f"{key}.".startswith(f"{alike}.") for alike in _ALIKE)
    ]


def _stored(folder: Path) -> dict[str, Any]:
    """The recipe of a run, its defaults as they are today."""
    raw, _, unreadable = yaml12.read((folder / "recipe.yaml").read_bytes())
    if unreadable or not isinstance(raw, dict):
        raise ConfigurationError(
            f"{folder} holds a run whose recipe.yaml cannot be read: train into another folder with "
            "training.output_dir=…, or replace that run with --overwrite (overwrite=True)."
        )
    try:
        return written(Recipe.model_validate(raw))
    except ValueError:  # of an older version, or edited
        return raw


def _clear(folder: Path) -> None:
    for pattern in _OF_THE_STUDENT:
        for path in folder.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)


def _shown(value: Any) -> str:
    text = (
        "–" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    )
    return text if len(text) <= 60 else f"{text[:59]}…"

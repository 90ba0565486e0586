"""What a run is, written into every checkpoint, so that a resumed run is the same one or is refused."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import xxhash
from accelerate import PartialState

from ..errors import ConfigurationError, CorruptStateError
from ..files import read_json, write_json
from ..fusion import ALL_FUSIONS, FusionChoice, build_fusion
from ..lookup import named, suggest
from ..losses import ALL_LOSSES, HIDDEN_LOSSES, LOSSES
from ..losses.row_weights import ROW_WEIGHTS
from ..markdown import markdown_table
from ..processes import once, say
from ..teachers.cache.key import teacher_key
from ..teachers.cache.reading import CachedTeacher
from ..teachers.cache.settings import CacheSettings
from ..teachers.held_out import FUSION_FILE, load_choice
from ..teachers.teacher import Teacher
from .callbacks import AdaptiveStrength, ScheduleCallback
from .commits import checkpoints, is_checkpoint, problem
from .schedules import SCHEDULES

STATE_FILE = "trainer_state.json"
"""What `Trainer` writes into every checkpoint of how far it is."""

RUN_FILE = "run_state.json"
"""Where a checkpoint says which run it is of."""

FORMAT = 2
"""Of `RUN_FILE`; the first, which had no number, named built-ins by the paths of their modules."""

_SECONDS = "seconds"

_TABLES = (ALL_LOSSES, HIDDEN_LOSSES, ROW_WEIGHTS, SCHEDULES, ALL_FUSIONS)

# How the first format called what is in the tables: functions by the names they still have.
_FORMER = {
    **{name: name for table in (LOSSES, HIDDEN_LOSSES, ROW_WEIGHTS) for name in table},
    "LinearPool": "linear_pool",
    "LogPool": "log_pool",
    "PoolThenTemper": "pool_then_temper",
    "EntropyWeighted": "entropy_weighted",
    "ConfidenceWeighted": "confidence_weighted",
    "LikelihoodWeighted": "likelihood_weighted",
    "GreedySelection": "greedy_selection",
    "Stacking": "stacking",
    "Gate": "gate",
    "StochasticTeacher": "stochastic_teacher",
    "MajorityVote": "majority_vote",
    "BestTeacher": "best_teacher",
    "Constant": "constant",
    "Linear": "linear",
    "Cosine": "cosine",
    "WarmUp": "warm_up",
}

# What a config says of where it came from, or what saving and training write into it.
_IRRELEVANT = {
    "_name_or_path", "transformers_version", "architectures", "dtype", "use_cache", "problem_type", "output_hidden_states",
    "output_attentions", "pad_token_id", "bos_token_id", "eos_token_id",
}  # fmt: skip


def describe_run(trainer: Any, fusion: Any) -> dict[str, Any]:
    """What decides the updates of a run, apart from the optimizer's settings, which may be changed on purpose.

    Args:
        trainer: The `MultiTeacherDistillationTrainer`, before any callback changes its arguments.
        fusion: As the user gave it.

    Returns:
        Plain numbers and texts by field: these are the names that a resumed run can be allowed to change.
    """
    args = trainer.args
    schedules = [
        {name: described(schedule) for name, schedule in callback.schedules.items()}
        if isinstance(callback, ScheduleCallback)
        else f"adaptive {callback.prefix}"
        for callback in trainer.callback_handler.callbacks
        if isinstance(callback, (ScheduleCallback, AdaptiveStrength))
    ]
    config = {k: v for k, v in trainer.student.config.to_dict().items() if k not in _IRRELEVANT}
    run = {
        "teachers": [_teacher(teacher) for teacher in trainer.teachers],
        "fusion": _fusion(fusion),
        "student": {
            "class": type(trainer.student).__name__,
            "config": _hash(json.dumps(config, sort_keys=True, default=str).encode()),
            "tokens": trainer.student_view.key,
        },
        "data": _data(trainer.train_dataset),
        "losses": {
            "distill": described(trainer.distillation_loss),
            "row_weight": described(trainer.row_weight),
            "task": described(trainer.compute_loss_func),
            "temperature": args.temperature,
            "task_weight": args.task_weight,
            "distill_weight": args.distill_weight,
            "label_share": args.label_share,
            "label_smoothing_factor": args.label_smoothing_factor,
            "schedules": schedules,
            "hidden": [described(loss) for loss in trainer.hidden.losses] if trainer.hidden else [],
        },
        "seed": [args.seed, args.data_seed],
        "world_size": args.world_size,
        "batch_size": args.train_batch_size,
        "accumulation": args.gradient_accumulation_steps,
    }
    if trainer.class_weights is not None:
        run["losses"]["class_weights"] = list(trainer.class_weights)
    if trainer.augment is not None:
        run["augment"] = described(trainer.augment.augmentation)
    return json.loads(json.dumps(run))


def find_checkpoint(
    given: str | bool | None,
    output_dir: str | os.PathLike[str],
    *,
    unverified: bool = False,
    best: bool = False,
) -> Path | None:
    """The checkpoint that ``resume_from_checkpoint`` means, looked for by the main process for all of them.

    Args:
        given: A folder; True: the newest in ``output_dir`` whose files are what was saved; else none is meant.
        output_dir: The run's folder.
        unverified: Whether a folder that is named may have no manifest, or other files than were saved.
        best: Whether the run loads its best checkpoint at its end, so that this one must be whole too.

    Returns:
        Its folder; what was passed over, and why, is printed.

    Raises:
        ConfigurationError: There is none at all.
        CorruptStateError: None can be relied on.
    """
    if given is None or given is False:
        if unverified:
            raise ConfigurationError(
                "A checkpoint that is not verified is gone on from only where it is named: --resume CHECKPOINT --unverified "
                "(resume_from_checkpoint=CHECKPOINT, unverified=True)."
            )
        return None
    if given is True:
        return once(lambda: _newest(Path(output_dir), unverified, best), PartialState())
    return once(lambda: _named(Path(given), unverified, best), PartialState())


def _newest(folder: Path, unverified: bool, best: bool) -> Path:
    if unverified:
        find_checkpoint(None, folder, unverified=True)
    found = checkpoints(folder)
    if not found:
        raise ConfigurationError(
            f"--resume (resume_from_checkpoint): there is no checkpoint in {folder.absolute()}; leave it out to train from the "
            "start."
        )
    passed = []
    for path in found:
        why = _why_not(path, best)
        if why is None:
            for line in passed:
                say(line)
            if passed:
                say(f"The run goes on from {path}.")
            return path
        passed.append(f"{path} is passed over: {why}.")
    raise CorruptStateError(
        f"No checkpoint in {folder.absolute()} can be relied on: "
        + "; ".join(
            f"{path.name}: {line.partition(' is passed over: ')[2][:-1]}"
            for path, line in zip(found, passed, strict=True)
        )
        + ". Train from the start, or name one that you trust: --resume CHECKPOINT --unverified (unverified=True)."
    )


def _named(path: Path, unverified: bool, best: bool) -> Path:
    stateless = not (path / STATE_FILE).is_file()
    if not path.is_dir() or (stateless and not is_checkpoint(path)):
        raise ConfigurationError(
            f"--resume (resume_from_checkpoint): {path.absolute()} is no checkpoint, it has no {STATE_FILE}."
        )
    why = _why_not(path, best)
    if why is None:
        return path
    if not unverified or stateless:
        raise CorruptStateError(
            f"{path} is not gone on from: {why}. Without its path, --resume (resume_from_checkpoint=True) takes the newest "
            "that is whole; where you trust this one all the same, add --unverified (unverified=True)."
        )
    say(f"{path} is gone on from as it is, though {why}.")
    return path


def _why_not(path: Path, best: bool) -> str | None:
    """Why a checkpoint cannot be gone on from: its own files, or those of the best one before it."""
    why = problem(path)
    if why is not None or not best:
        return why
    known = json.loads((path / STATE_FILE).read_text(encoding="utf-8")).get("best_model_checkpoint")
    # One that is gone altogether was left behind on purpose; Trainer says so.
    if known is None or not Path(known).is_dir():
        return None
    damage = problem(Path(known))
    return None if damage is None else f"the best checkpoint until then, {known}, is not whole ({damage})"


def resume(
    run: Mapping[str, Any],
    checkpoint: Path,
    choice: FusionChoice,
    allow_changes: Sequence[str],
    trust: Iterable[str] = (),
) -> FusionChoice:
    """Compare a run with the one that a checkpoint is of.

    Args:
        run: Of `describe_run`.
        checkpoint: The checkpoint's folder.
        choice: The fusion that the run would start with.
        allow_changes: Names of fields that may differ.
        trust: Paths of your own that the checkpoint may name, beside the fusion that the run starts with.

    Returns:
        The fusion to go on with: the checkpoint's, where it has one and it may not be changed.

    Raises:
        ConfigurationError: Other fields differ; the message has a table of them.
        CorruptStateError: What the checkpoint says of its run cannot be read.
        UnsafeFileError: It names code that is neither built in, nor of this run, nor trusted.
    """
    for name in allow_changes:
        if name not in run:
            raise ConfigurationError(
                f"A resumed run has no field {name!r} that could be allowed to change{suggest(name, run)}; there are "
                f"{', '.join(run)}."
            )
    fused = checkpoint / FUSION_FILE
    names = [teacher["name"] for teacher in run["teachers"]]
    kept = None
    if fused.is_file() and "fusion" not in allow_changes and _fusion_names(fused) == names:
        kept = load_choice(checkpoint, names, trust=[*trust, named(choice.fusion, ALL_FUSIONS)])
    path = checkpoint / RUN_FILE
    if not path.is_file():
        if PartialState().is_main_process:
            print(f"{checkpoint} has no {RUN_FILE}, so nothing says whether it is of this run.")
        return kept or choice
    before = load_run(path)
    if kept is not None and run["fusion"] == _fusion(kept):
        before = {**before, "fusion": run["fusion"]}  # given as it was fitted, instead of fitted again
    rows = [
        row
        for field in run
        if field not in allow_changes
        for row in _differences(field, before.get(field), run[field])
    ]
    if rows:
        fields = list(dict.fromkeys(row[0].partition(".")[0] for row in rows))
        raise ConfigurationError(
            f"This is not the run that {checkpoint} is of:\n\n{markdown_table(['field', 'checkpoint', 'now'], rows)}\n\n"
            f"Correct what differs; where it is meant to, allow it by name: allow_changes={tuple(fields)}, or "
            f"{' '.join(f'--allow {field}' for field in fields)} for hf-distill train --resume."
        )
    return kept or choice


def save_run(run: Mapping[str, Any], folder: Path, seconds: float = 0.0) -> None:
    """Write what a run is into a checkpoint, and how many seconds of training are behind it, which tell no runs apart."""
    write_json(folder / RUN_FILE, {"format": FORMAT, **run, _SECONDS: seconds}, indent=1)


def seconds_behind(checkpoint: Path) -> float:
    """How long the training was that led to a checkpoint, in all its parts; 0 where it does not say so."""
    path = checkpoint / RUN_FILE
    said = _read_run(path)[0].get(_SECONDS) if path.is_file() else None
    return float(said) if isinstance(said, (int, float)) else 0.0


def load_run(path: Path) -> dict[str, Any]:
    """What a checkpoint says of its run, with today's names where it was written before they had a format.

    Raises:
        CorruptStateError: It cannot be read.
    """
    run, found = _read_run(path)
    run.pop(_SECONDS, None)
    return _renamed(run) if found == 1 else run


def _read_run(path: Path) -> tuple[dict[str, Any], int]:
    try:
        return read_json(path, FORMAT)
    except (OSError, ValueError) as error:
        raise CorruptStateError(
            f"{path} cannot be read ({error}), so nothing says whether the checkpoint is of this run: resume from another "
            "one."
        ) from error


def described(value: Any) -> Any:
    """An object of a run in plain words, the same in another process and wherever its module lies: no addresses.

    Example:
        >>> from hf_distill.losses import forward_kl
        >>> described(forward_kl), described(functools.partial(forward_kl, temperature=2.0))
        ('forward_kl', ['forward_kl', {'temperature': 2.0}])
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [described(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): described(item) for key, item in value.items()}
    if isinstance(value, functools.partial):
        return [described(value.func), *map(described, value.args), described(value.keywords)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: described(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"use": described(type(value)), **fields}
    return named(value, *_TABLES)


def _renamed(value: Any) -> Any:
    """What the first format said, in which built-ins had the paths of their modules, as `described` says it."""
    if isinstance(value, dict):
        return {key: _renamed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_renamed(item) for item in value]
    path = re.fullmatch(r"hf_distill\.[\w.]+:(\w+)", value) if isinstance(value, str) else None
    return value if path is None else _FORMER.get(path[1], f"hf_distill:{path[1]}")


def _teacher(teacher: Any) -> dict[str, Any]:
    key = None
    if isinstance(teacher, Teacher):
        key = teacher_key(teacher, CacheSettings())
    elif isinstance(teacher, CachedTeacher):
        key = f"cache {teacher.view.key}"
    said = {"name": teacher.name, "labels": list(teacher.label_names), "is": key or described(teacher)}
    convert = getattr(teacher, "convert", None)
    return said if convert is None else {**said, "convert": dict(convert)}


def _fusion(given: Any) -> Any:
    made = build_fusion(given)
    return described(made.fusion if isinstance(made, FusionChoice) else made)


def _fusion_names(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["teachers"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def in_one_order(values: np.ndarray) -> np.ndarray:
    """Numbers as every machine writes them: whole ones in 64 bits, others in float64.

    Example:
        >>> in_one_order(np.array([1, 2], np.int32)).dtype, in_one_order(np.array([0.5], np.float32)).dtype
        (dtype('int64'), dtype('float64'))
    """
    return values.astype("<f8" if np.issubdtype(values.dtype, np.floating) else "<i8")


def _data(rows: Any) -> dict[str, Any]:
    """Prepared rows by their content, in their order."""
    if not isinstance(rows, datasets.Dataset):
        return {"rows": type(rows).__name__}
    columns = rows.with_format("numpy", columns=["example_id", "labels"])
    content = [in_one_order(np.asarray(columns[name][:])).tobytes() for name in ("example_id", "labels")]
    return {"rows": len(rows), "content": _hash(b"".join(content))}


def _differences(field: str, before: Any, now: Any) -> list[list[str]]:
    if before == now:
        return []
    if isinstance(before, dict) and isinstance(now, dict):
        keys = dict.fromkeys([*before, *now])
        return [row for key in keys for row in _differences(f"{field}.{key}", before.get(key), now.get(key))]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = enumerate(zip(before, now, strict=True))
        return [row for i, (a, b) in pairs for row in _differences(f"{field}.{i}", a, b)]
    return [[field, _shown(before), _shown(now)]]


def _shown(value: Any) -> str:
    text = (
        "–" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    )
    return (text if len(text) <= 60 else text[:59] + "…").replace("|", "\\|")


def _hash(content: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(content)

"""Teachers once, students many: each teacher runs over each row once, and its outputs are read back by content.

Shapes: N distinct rows, B rows of a batch, Ck classes of teacher k.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from ...errors import ConfigurationError, DataError
from ...rows.columns import Ragged
from ...rows.preparing import distinct_rows, find_row
from ...rows.views import BreakingRow
from ...tasks import build_task
from ...tasks.task import Task
from ..teacher import Teacher, TeacherSpec, labels_on_disk, load_teacher, said_labels
from .key import folder_identity, key_facts, recall, remember, teacher_key
from .reading import CachedTeacher, CachedView
from .settings import AUTOCAST, STORED_AS, CacheSettings
from .store import RowReader, Store, read_description, shard_name


class TeacherCache:
    """The stored outputs of some teachers, to which datasets are added.

    One teacher is in memory at a time where they are given by id or folder.

    Args:
        teachers: `Teacher`s, or ids and folders.
        cache_dir: Folder of the cache; one folder per teacher in it, named by `teacher_key`.
        settings: How outputs are computed and stored; one for all teachers, or one for each.
        task: Loads teachers given by id or folder.
        device: Where they run; None: the process's own.

    Example:
        >>> cache = TeacherCache([teacher], tmp_path / "cache")
        >>> cache.add(rows, ("text",))
        64
        >>> cache.add(rows.select(range(9)), ("text",))
        0
    """

    def __init__(
        self,
        teachers: Sequence[str | Teacher],
        cache_dir: str | os.PathLike[str],
        settings: CacheSettings | Sequence[CacheSettings] = CacheSettings(),  # noqa: B008 - frozen
        *,
        task: str | Task = "text-classification",
        device: torch.device | None = None,
    ) -> None:
        self.settings = [settings] * len(teachers) if isinstance(settings, CacheSettings) else list(settings)
        self.device = device
        with contextlib.suppress(OSError):  # the stores inside explain what is wrong
            Path(cache_dir).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._task = build_task(task)
        self._given = list(teachers)
        self.teachers: list[CachedTeacher] = []
        for given, own in zip(self._given, self.settings, strict=True):
            entry = self._entry(given, own, cache_dir)
            view = CachedView(Path(cache_dir) / entry["key"], entry["key"], f"Teacher {entry['name']!r}")
            self.teachers.append(
                CachedTeacher(
                    entry["name"],
                    tuple(entry["labels"]),
                    view,
                    entry["parameters"],
                    entry["source"],
                    entry["revision"],
                    own.wanted,
                    entry.get("layers"),
                    entry.get("width"),
                    getattr(given, "said_labels", None) or said_labels(getattr(given, "labels", None)),
                    place=getattr(given, "place", None),
                )
            )

    def _entry(
        self, given: Any, settings: CacheSettings, cache_dir: str | os.PathLike[str]
    ) -> dict[str, Any]:
        """Name, key, labels and size of a teacher, which is loaded only where its folder was never seen before."""
        spec = TeacherSpec(os.fspath(given)) if isinstance(given, (str, os.PathLike)) else given
        identity = None
        if isinstance(spec, TeacherSpec):
            identity = folder_identity(spec, key_facts(self._task, settings))
            known = recall(cache_dir, identity, labels_on_disk(spec))
            if known is not None:
                return {**known, "name": spec.called, "source": spec.source, "revision": None}
        teacher = load_teacher(spec, self._task)
        if not isinstance(teacher, Teacher):
            raise ConfigurationError(
                f"The teacher {getattr(given, 'name', given)!r} is a {type(given).__name__}, which is no model that "
                "could be run once: pass it live, without a cache."
            )
        key = teacher_key(teacher, settings)
        store = Store(Path(cache_dir) / key, key)
        config = teacher.model.config
        known = {
            "key": key,
            "labels": list(teacher.label_names),
            "parameters": teacher.num_parameters,
            "layers": getattr(config, "num_hidden_layers", None),
            "width": getattr(config, "hidden_size", None),
        }
        before = read_description(store.folder)
        made_by = before.get("folders")
        made_by = made_by if isinstance(made_by, list) else []
        made_by = made_by if identity is None or identity in made_by else [*made_by, identity]
        if any(before.get(name) != value for name, value in {**known, "folders": made_by}.items()):
            store.write_description(
                {
                    **known,
                    "folders": made_by,
                    "teacher": teacher.name,
                    "source": Path(teacher.source).name if os.path.isdir(teacher.source) else teacher.source,
                    "revision": teacher.revision,
                    "dtype": settings.dtype,
                    "precision": settings.precision,
                }
            )
        remember(cache_dir, identity, known)
        return {**known, "name": teacher.name, "source": teacher.source, "revision": teacher.revision}

    def add(self, dataset: datasets.Dataset, text_columns: Sequence[str]) -> int:
        """Compute what is missing of a dataset: each distinct row once per teacher, ever.

        Under several processes each computes a share; all return when all rows are there.

        Args:
            dataset: Raw rows.
            text_columns: The columns that teachers read.

        Returns:
            How many outputs this process computed, over all teachers.

        Raises:
            DataError: Rows that cannot be read, or a teacher whose outputs are not finite.
            ConfigurationError: The outputs would take more than ``limit_bytes``.
            StoreError: The folder cannot be used.
        """
        text_columns = [text_columns] if isinstance(text_columns, str) else list(text_columns)
        rows = distinct_rows(dataset, text_columns)
        ids = np.fromiter(rows, dtype="<i8", count=len(rows))
        with PartialState().main_process_first():  # only it speaks, so it has to be the one that finds damage
            opened = [self._open(cached, ids) for cached in self.teachers]
        self._refuse_too_large([len(missing) for _, _, missing in opened])
        computed = 0
        for given, cached, settings, (store, known, missing) in zip(
            self._given, self.teachers, self.settings, opened, strict=True
        ):
            if len(missing):
                try:
                    computed += self._compute(load_teacher(given, self._task), settings, store, missing, rows)
                except BreakingRow as error:
                    raise DataError(f"Row {find_row(dataset, text_columns, error.texts)}: {error}") from error
            PartialState().wait_for_everyone()
            # Always, and here: what is missing for us may have been written by others, and workers inherit the maps.
            cached.view.open(None if len(missing) else known)
        return computed

    def _open(self, cached: CachedTeacher, ids: np.ndarray) -> tuple[Store, RowReader, np.ndarray]:
        """A teacher's store, its readable rows, and those of some ids (n,) that are missing; damaged shards are removed."""
        store = Store(cached.view.folder, cached.view.key)
        shards = []
        for shard in store.shards():
            logits = shard.fields.get("logits")
            if logits is None or logits.shape[1:] != (len(cached.label_names),):
                found = "no logits" if logits is None else f"logits of shape {logits.shape}"
                store.damaged[shard.name] = f"it has {found}, for {len(cached.label_names)} labels"
            else:
                shards.append(shard)
        known = RowReader(shards, cached.view.what)
        for name, reason in list(store.damaged.items()):
            if PartialState().is_main_process:
                where = f"Cache of teacher {cached.name!r}: shard {name}"
                tqdm.write(f"{where} is damaged ({reason}) and is built anew.", file=sys.stderr)
            store.discard(name)
        return store, known, known.missing(ids)

    def _refuse_too_large(self, missing: Sequence[int]) -> None:
        """Say what a build will take, and refuse it where that is more than the limit.

        Args:
            missing: Rows to be computed, per teacher.
        """
        if not any(missing):
            return
        needed = sum(
            rows
            * (8 + STORED_AS[own.dtype]().itemsize * (len(t.label_names) + len(own.wanted) * (t.width or 0)))
            for rows, own, t in zip(missing, self.settings, self.teachers, strict=True)
        )
        states = max(len(own.wanted) for own in self.settings)
        what = f"{max(missing):,} rows of {sum(map(bool, missing))} teacher(s)" + (
            f", with up to {states} hidden state(s) per row" if states else ""
        )
        limits = [own.limit_bytes for own in self.settings if own.limit_bytes is not None]
        if limits and needed > min(limits):
            raise ConfigurationError(
                f"The teachers' outputs would take about {_bytes(needed)} ({what}), which is more than limit_bytes, "
                f"{_bytes(min(limits))}: ask for fewer layers (layers='last'), or raise CacheSettings(limit_bytes=…)."
            )
        if PartialState().is_main_process:
            tqdm.write(f"Teacher cache: {what}, about {_bytes(needed)}", file=sys.stderr)

    def _compute(
        self,
        teacher: Teacher,
        settings: CacheSettings,
        store: Store,
        missing: np.ndarray,
        rows: Mapping[int, tuple[str, ...]],
    ) -> int:
        state = PartialState()
        size = settings.shard_rows
        shards = [missing[i : i + size] for i in range(0, len(missing), size)]
        # Each process begins with its own share and then helps where others are not done.
        first = [s for k, s in enumerate(shards) if k % state.num_processes == state.process_index]
        others = [s for k, s in enumerate(shards) if k % state.num_processes != state.process_index]
        device = self.device or state.device
        home = next(teacher.model.parameters()).device
        teacher.to(device)
        computed = 0
        bar = tqdm(
            total=len(missing),
            unit="row",
            desc=f"Teacher {teacher.name}",
            disable=not state.is_main_process,
            leave=False,
        )
        with bar, contextlib.ExitStack() as cleanup:
            cleanup.callback(teacher.to, home)
            pending = [(ids, False) for ids in [*first, *others]]
            while pending:
                ids, wait = pending.pop(0)
                name = shard_name(ids)
                with store.lock(name, wait=wait) as mine:
                    if not mine:
                        pending.append((ids, True))
                        continue
                    if not store.has(name):
                        store.write(ids, _outputs(teacher, settings, ids, rows, device))
                        computed += len(ids)
                bar.update(len(ids))
        store.sweep()
        return computed


def _outputs(
    teacher: Teacher,
    settings: CacheSettings,
    ids: np.ndarray,
    rows: Mapping[int, tuple[str, ...]],
    device: torch.device,
) -> dict[str, np.ndarray]:
    """The fields (n, …) of a shard: rows in order of length, as many per forward as the token budget holds."""
    tokens = teacher.view.encode(
        [list(column) for column in zip(*(rows[i] for i in ids.tolist()), strict=True)]
    )
    lengths = np.array([len(row) for row in tokens["input_ids"]])
    fields: dict[str, np.ndarray] = {}
    dtype = AUTOCAST[settings.precision]
    budget = settings.token_budget or (1024 if device.type == "cpu" else 8192)
    for batch in _by_length(lengths, budget):
        encoded = {key: Ragged.of([values[i] for i in batch]) for key, values in tokens.items()}
        inputs = teacher.view.collate(encoded, torch.from_numpy(ids[batch]))
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            outputs = teacher.run({k: v.to(device) for k, v in inputs.items()}, settings.wanted)
        found = {"logits": outputs.logits}
        if settings.wanted:
            found["hidden_states"] = torch.stack([outputs.hidden_states[want] for want in settings.wanted], 1)
        for name, values in found.items():
            if name not in fields:
                fields[name] = np.empty((len(ids), *values.shape[1:]), dtype=STORED_AS[settings.dtype])
            with np.errstate(over="ignore"):  # too large for the type becomes infinite: refused below
                fields[name][batch] = values.float().cpu().numpy()
    finite = np.all([np.isfinite(f).reshape(len(ids), -1).all(1) for f in fields.values()], axis=0)
    if not finite.all():
        row = rows[int(ids[np.flatnonzero(~finite)[0]])]
        raise DataError(
            f"Teacher {teacher.name!r} gives outputs that are not finite in {settings.dtype} for "
            f"{len(ids) - finite.sum()} row(s), e.g. {row[0][:80]!r}: they are not stored. Store float32 if they are "
            "large, lower the precision's autocast, or drop the teacher."
        )
    return fields


def cache_teacher_outputs(
    teachers: Sequence[str | Teacher],
    dataset: datasets.Dataset,
    *,
    cache_dir: str | os.PathLike[str],
    text_columns: Sequence[str] = ("text",),
    dtype: str = "float16",
    precision: str | None = None,
    shard_rows: int = 4096,
    token_budget: int | None = None,
    hidden_states: Sequence[int] | None = None,
    task: str | Task = "text-classification",
    device: torch.device | None = None,
) -> list[CachedTeacher]:
    """Run each teacher over each row once and keep its logits; rows already there are not computed again.

    Args:
        teachers: `Teacher`s, or ids and folders, of which one is in memory at a time.
        dataset: Raw rows.
        cache_dir: Folder of the cache.
        text_columns: One column of text, or two for pairs.
        dtype, precision, shard_rows, token_budget, hidden_states: See `CacheSettings`.
        task: Loads teachers given by id or folder.
        device: Where they run; None: the process's own.

    Returns:
        Teachers that read the cache, for ``teachers=`` of the trainer and of `evaluate_ensemble`.

    Raises:
        DataError, StoreError, ConfigurationError: As for `TeacherCache`.

    Example:
        >>> cached = cache_teacher_outputs([teacher], rows, cache_dir=tmp_path / "cache")
        >>> evaluate_ensemble(cached, rows, metrics=["accuracy"]).rows
        64
    """
    settings = CacheSettings(
        dtype, precision, shard_rows, token_budget, hidden_states=tuple(hidden_states or ())
    )
    cache = TeacherCache(teachers, cache_dir, settings, task=task, device=device)
    cache.add(dataset, text_columns)
    return cache.teachers


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.3g} {unit}" if count < 1000 else f"{count:,.0f} {unit}"
        count /= 1000
    raise AssertionError(count)


def _by_length(lengths: np.ndarray, token_budget: int) -> Iterator[np.ndarray]:
    """Indices of rows, longest first, in batches whose padded size keeps within the budget."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        count = max(1, token_budget // max(int(lengths[order[start]]), 1))
        yield order[start : start + count]
        start += count

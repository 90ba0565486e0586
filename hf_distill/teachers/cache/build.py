"""Teachers once, students many: each teacher runs over each row once, and its outputs are read back by content.

Shapes: N distinct rows, B rows of a batch, Ck classes of teacher k.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from ...errors import ConfigurationError, DataError
from ...rows.content import Content
from ...rows.preparing import DistinctRows, SeenIds, distinct_rows, find_row, identified, narrow
from ...rows.texts import TEXTS
from ...rows.views import BreakingRow
from ...tasks import build_task
from ...tasks.task import Task
from ..teacher import Teacher, TeacherSpec, labels_on_disk, load_teacher, said_labels
from .key import folder_identity, key_facts, recall, remember, teacher_key
from .pipeline import Part, compute_parts
from .reading import CachedTeacher, CachedView
from .settings import STORED_AS, CacheSettings
from .store import RowReader, Store, read_description
from .tokens import KeptTokens, kept_tokens


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
        given_settings = [settings] * len(teachers) if isinstance(settings, CacheSettings) else list(settings)
        self.settings = [own.on(device) for own in given_settings]
        self._chosen = self.settings != given_settings
        self.device = device
        self._folder = Path(cache_dir)
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
                    task=build_task(getattr(given, "task", None) or self._task),
                    convert=getattr(given, "convert", None),
                )
            )

    def _entry(
        self, given: Any, settings: CacheSettings, cache_dir: str | os.PathLike[str]
    ) -> dict[str, Any]:
        """Name, key, labels and size of a teacher, which is loaded only where its folder was never seen before."""
        spec = TeacherSpec(os.fspath(given)) if isinstance(given, (str, os.PathLike)) else given
        identity = None
        if isinstance(spec, TeacherSpec):
            identity = folder_identity(spec, key_facts(build_task(spec.task or self._task), settings))
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

    def add(self, dataset: datasets.Dataset | datasets.IterableDataset, text_columns: Sequence[str]) -> int:
        """Compute what is missing of a dataset or stream: each distinct row once per teacher, ever.

        No text is held: of a dataset eight bytes for each row, of a stream one shard besides. A stream is read once for
        each teacher, shard by shard. Under several processes each computes a share; all return when all rows are there.

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
        streamed = isinstance(dataset, datasets.IterableDataset)
        content = self._task.content
        rows = None if streamed else distinct_rows(dataset, text_columns, content)
        ids = np.empty(0, dtype="<i8") if rows is None else rows.ids
        with PartialState().main_process_first():  # only it speaks, so it has to be the one that finds damage
            opened = [self._open(cached, ids) for cached in self.teachers]
        if streamed:
            self._say("the rows of a stream", len(self.teachers), None)
        else:
            self._refuse_too_large([len(missing) for _, _, missing in opened])
        computed = 0
        at_work = len(opened) if streamed else sum(len(missing) > 0 for _, _, missing in opened)
        with kept_tokens(self._folder, at_work) as tokens:
            for number, (store, known, missing) in enumerate(opened):
                if streamed or len(missing):
                    size = self.settings[number].shard_rows
                    parts = (
                        self._within_limit(
                            number, streamed_parts(dataset, text_columns, known, size, content)
                        )
                        if rows is None
                        else stored_parts(rows, missing, size)
                    )
                    try:
                        computed += self._compute(
                            number, store, parts, tokens, None if streamed else len(missing)
                        )
                    except BreakingRow as error:
                        number_of_row = find_row(dataset, text_columns, error.texts, content)
                        raise DataError(f"Row {number_of_row}: {error}") from error
                PartialState().wait_for_everyone()
                # Always, and here: what is missing for us may have been written by others, and workers inherit the maps.
                self.teachers[number].view.open(None if streamed or len(missing) else known)
        return computed

    def _open(self, cached: CachedTeacher, ids: np.ndarray) -> tuple[Store, RowReader, np.ndarray]:
        """A teacher's store, its readable rows, and which of some ids (n,) are missing; damaged shards are removed."""
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
        return store, known, narrow(np.flatnonzero(known.lacks(ids)))

    def _bytes_of_row(self, number: int) -> int:
        """What a row of a teacher takes."""
        own, teacher = self.settings[number], self.teachers[number]
        numbers = len(teacher.label_names) + len(own.wanted) * (teacher.width or 0)
        return 8 + STORED_AS[own.dtype]().itemsize * numbers

    def _refuse_too_large(self, missing: Sequence[int]) -> None:
        """Say what a build will take, and refuse it where that is more than the limit.

        Args:
            missing: Rows to be computed, per teacher.
        """
        if not any(missing):
            return
        needed = sum(rows * self._bytes_of_row(number) for number, rows in enumerate(missing))
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
        self._say(what, None, needed)

    def _say(self, what: str, teachers: int | None, needed: int | None) -> None:
        if PartialState().is_main_process:
            chosen = {own.precision or "the teachers' own precision" for own in self.settings}
            tqdm.write(
                f"Teacher cache: {what}"
                + (f" of {teachers} teacher(s)" if teachers else "")
                + (f", about {_bytes(needed)}" if needed is not None else "")
                + (f", in {' and '.join(sorted(chosen))} (precision: auto)" if self._chosen else ""),
                file=sys.stderr,
            )

    def _within_limit(self, number: int, parts: Iterable[Part]) -> Iterator[Part]:
        """The parts of a stream, whose rows nobody can count beforehand, as long as they are within ``limit_bytes``."""
        limit, each, rows = self.settings[number].limit_bytes, self._bytes_of_row(number), 0
        for part in parts:
            rows += len(part.ids)
            if limit is not None and rows * each > limit:
                raise ConfigurationError(
                    f"The outputs of teacher {self.teachers[number].name!r} for this stream take more than limit_bytes, "
                    f"{_bytes(limit)}: what was computed is kept; raise CacheSettings(limit_bytes=…) and go on."
                )
            yield part

    def _compute(
        self,
        number: int,
        store: Store,
        parts: Iterable[Part],
        tokens: KeptTokens | None,
        total: int | None,
    ) -> int:
        """Run a teacher over the rows of shards."""
        state, given = PartialState(), self._given[number]
        device = self.device or state.device
        cached = self.teachers[number]
        bar = tqdm(
            total=total,
            unit="row",
            desc=f"Teacher {cached.name}",
            disable=not state.is_main_process,
            leave=False,
        )
        with bar, contextlib.ExitStack() as cleanup:
            teacher = load_teacher(given, self._task)
            cleanup.callback(teacher.to, next(teacher.model.parameters()).device)
            teacher.to(device)
            run = functools.partial(
                compute_parts,
                teacher=teacher,
                settings=self.settings[number],
                store=store,
                device=device,
                tokens=tokens,
                done=bar.update,
            )
            built = run(parts, wait=False)
            computed, postponed = built.computed, built.postponed
            while postponed:
                # Others have them: wait for the first, which may turn out to be ours, and see what is left then.
                built = run(postponed[:1], wait=True)
                computed += built.computed
                postponed = postponed[1:]
        store.sweep()
        return computed


def stored_parts(rows: DistinctRows, missing: np.ndarray, size: int) -> Iterator[Part]:
    """The shards of what is missing of a dataset: each process begins with its own share and then helps the others.

    Args:
        rows: Of the dataset.
        missing: (m,) which of them are to be computed.
        size: Rows of a shard.
    """
    state = PartialState()
    shards = [missing[i : i + size] for i in range(0, len(missing), size)]
    own = [k % state.num_processes == state.process_index for k in range(len(shards))]
    for mine in (True, False):
        for shard, owned in zip(shards, own, strict=True):
            if owned == mine:
                yield Part(rows.ids[shard], functools.partial(rows.texts, shard))


def streamed_parts(
    dataset: datasets.IterableDataset,
    text_columns: Sequence[str],
    known: RowReader,
    size: int,
    content: Content = TEXTS,
) -> Iterator[Part]:
    """The shards of what is missing of a stream, while it passes; of several processes each takes every so many.

    Args:
        dataset: Raw rows.
        text_columns: The columns that teachers read.
        known: What is there already; the same for all processes.
        size: Rows of a shard.
        content: What the columns hold.
    """
    state, seen, shards = PartialState(), SeenIds(), 0
    ids, texts = np.empty(0, dtype="<i8"), [[] for _ in text_columns]

    def part() -> Iterator[Part]:
        nonlocal ids, texts, shards
        shards += 1
        whole = texts
        if (shards - 1) % state.num_processes == state.process_index:
            taken = [column[:size] for column in whole]
            yield Part(ids[:size], lambda: taken)
        ids, texts = ids[size:], [column[size:] for column in whole]

    for some, columns in identified(dataset, text_columns, size, content):
        new = seen.new(some)
        new = new[known.lacks(some[new])]
        ids = np.concatenate([ids, some[new]])
        texts = [[*column, *(values[i] for i in new)] for column, values in zip(texts, columns, strict=True)]
        while len(ids) >= size:
            yield from part()
    if len(ids):
        yield from part()


def cache_teacher_outputs(
    teachers: Sequence[str | Teacher],
    dataset: datasets.Dataset | datasets.IterableDataset,
    *,
    cache_dir: str | os.PathLike[str],
    text_columns: Sequence[str] | None = None,
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
        dataset: Raw rows; a stream is read once for each teacher.
        cache_dir: Folder of the cache.
        text_columns: The columns that teachers read; None: the task's.
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
    cache.add(dataset, build_task(task).text_columns if text_columns is None else text_columns)
    return cache.teachers


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.3g} {unit}" if count < 1000 else f"{count:,.0f} {unit}"
        count /= 1000
    raise AssertionError(count)

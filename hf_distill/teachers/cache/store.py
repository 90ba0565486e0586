"""Arrays on disk, by row id: content-addressed shards that are whole or not there.

A store is a folder. A shard of n rows is three kinds of file: ``NAME.ids.npy`` (n,) int64, one ``NAME.<field>.npy``
(n, …) per field, and ``NAME.json``, written last, which holds their checksums: without it the shard does not exist.
NAME is a hash of the ids, so writers that compute the same rows write the same files.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import numpy as np
import xxhash

from ...errors import CorruptStateError, DataError
from ...files import checksum, read_json, sync_folder, whole
from ...rows.preparing import first_places

DESCRIPTION = "teacher.json"
"""What a person wants to know of a store; nothing depends on it."""

_FORMAT = 1
_LOCK_WAIT = 0.05


class StoreError(CorruptStateError):
    """A store that cannot be written or read: full disk, missing rights, foreign owner."""


def shard_name(ids: np.ndarray) -> str:
    """The name of the shard that holds these rows in this order.

    Example:
        >>> shard_name(np.array([1, 2])) == shard_name(np.array([1, 2])) != shard_name(np.array([2, 1]))
        True
    """
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(ids, dtype="<i8").tobytes())


class Store:
    """One folder of shards.

    Args:
        folder: Made with mode 0700 where missing.
        key: What the rows were computed by; a shard that names another key is not ours.

    Raises:
        StoreError: The folder cannot be used.
    """

    def __init__(self, folder: str | os.PathLike[str], key: str) -> None:
        self.folder = Path(folder)
        self.key = key
        with self._explained("make"):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if hasattr(os, "getuid") and self.folder.stat().st_uid != os.getuid():
                raise StoreError(
                    f"The cache folder {self.folder} belongs to another user (id {self.folder.stat().st_uid}), who could "
                    "change what is trained on: choose another cache_dir, or let that user give it to you."
                )
        self.damaged: dict[str, str] = {}

    # ---- Writing ----

    def write(self, ids: np.ndarray, fields: Mapping[str, np.ndarray]) -> None:
        """Add a shard: every file under a temporary name, synced, renamed; the folder synced; the manifest last.

        Args:
            ids: (n,) int64 row ids.
            fields: Arrays (n, …) by field name.

        Raises:
            StoreError: The disk is full or the folder cannot be written; shards written before stay whole.
        """
        name = shard_name(ids)
        arrays = {"ids": np.ascontiguousarray(ids, dtype="<i8"), **fields}
        sums = {}
        for field, array in arrays.items():
            assert len(array) == len(ids), (field, array.shape, ids.shape)
            sums[field] = self._write(self.folder / f"{name}.{field}.npy", array)
        manifest = {"format": _FORMAT, "key": self.key, "rows": len(ids), "xxh3_128": sums}
        self._write(self.folder / f"{name}.json", (json.dumps(manifest, sort_keys=True) + "\n").encode())

    def _write(self, path: Path, content: bytes | np.ndarray) -> str:
        """Write a whole file, its name synced too; returns its checksum."""
        with self._explained("write to"):
            with whole(path, "wb") as file:
                if isinstance(content, bytes):
                    file.write(content)
                else:
                    np.save(file, content, allow_pickle=False)
            sync_folder(self.folder)
            return checksum(path)

    @contextlib.contextmanager
    def lock(self, name: str, *, wait: bool) -> Iterator[bool]:
        """Be the only one who computes a shard, as far as locks work here.

        Where the file system has no locks every process goes on: they then compute the same rows and write the same
        bytes.

        Args:
            name: The shard's name.
            wait: Whether to wait for another holder, or to be told.

        Yields:
            Whether to go on; False only where another process holds the lock and ``wait`` is False.
        """
        path = self.folder / f".{name}.lock"
        # Not of one thread alone: whoever writes the shard releases it.
        held = filelock.FileLock(str(path), timeout=-1 if wait else 0, thread_local=False)
        try:
            held.acquire(poll_interval=_LOCK_WAIT)
        except filelock.Timeout:
            yield False
            return
        except (OSError, NotImplementedError):
            yield True
            return
        try:
            yield True
        finally:
            # While it is held: whoever waits for it then finds the shard finished.
            with contextlib.suppress(OSError):
                path.unlink()
            held.release()

    def sweep(self) -> None:
        """Remove the temporary files of writers that were killed; those of the last hour may belong to a live one."""
        for path in self.folder.glob(".*.unfinished*"):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < time.time() - 3600:
                    path.unlink()

    def write_description(self, description: Mapping[str, Any]) -> None:
        """Write teacher.json: what a person wants to know of the store; nothing depends on it."""
        self._write(
            self.folder / DESCRIPTION,
            (json.dumps({"format": _FORMAT, **description}, sort_keys=True) + "\n").encode(),
        )

    # ---- Reading ----

    def has(self, name: str) -> bool:
        """Whether a shard was finished."""
        return (self.folder / f"{name}.json").exists()

    def shards(self) -> list[Shard]:
        """Every whole shard, checked against its checksums; the others are named in `damaged` and not returned."""
        found = []
        for path in sorted(self.folder.glob("*.json")):
            if path.name == DESCRIPTION:
                continue
            try:
                found.append(self._open(path))
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                self.damaged[path.stem] = str(error)
        return found

    def discard(self, name: str) -> None:
        """Remove a damaged shard, its manifest first, so that it does not exist from the first moment on."""
        with self._explained("remove a damaged shard from"):
            for path in [self.folder / f"{name}.json", *self.folder.glob(f"{name}.*.npy")]:
                path.unlink(missing_ok=True)
            sync_folder(self.folder)
        self.damaged.pop(name, None)

    def _open(self, manifest_path: Path) -> Shard:
        name = manifest_path.stem
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        if manifest["format"] != _FORMAT or manifest["key"] != self.key:
            raise ValueError(f"it was written for another teacher or format ({manifest['key'][:12]}…)")
        arrays = {}
        for field, expected in manifest["xxh3_128"].items():
            if re.fullmatch("[a-z0-9_]+", field) is None:
                raise ValueError(f"it names {field!r}, which is no field")
            path = self.folder / f"{name}.{field}.npy"
            if checksum(path) != expected:
                raise ValueError(f"the checksum of {path.name} does not match")
            arrays[field] = np.load(path, mmap_mode="r", allow_pickle=False)
            if len(arrays[field]) != manifest["rows"]:
                raise ValueError(f"{path.name} has {len(arrays[field])} rows, not {manifest['rows']}")
        ids = arrays.pop("ids")
        if shard_name(ids) != name:
            raise ValueError("its rows are not those of its name")
        return Shard(name, np.asarray(ids), arrays)

    @contextlib.contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            advice = {
                errno.ENOSPC: "the disk is full: free room or choose another cache_dir; finished shards are kept",
                errno.EDQUOT: "your quota is used up: free room or choose another cache_dir; finished shards are kept",
                errno.EACCES: "you may not write there: choose another cache_dir",
                errno.EPERM: "you may not write there: choose another cache_dir",
                errno.EROFS: "it is read-only: choose another cache_dir",
            }.get(error.errno, str(error))
            raise StoreError(f"Cannot {doing} the cache folder {self.folder}: {advice}.") from error


class Shard(NamedTuple):
    """A whole shard: (n,) ids in memory, fields (n, …) mapped from disk."""

    name: str
    ids: np.ndarray
    fields: Mapping[str, np.ndarray]


class RowReader:
    """Rows of several shards by id.

    Args:
        shards: Whole shards of one store; a row that several hold is taken from the first.
        what: Whose rows they are, for messages.
    """

    def __init__(self, shards: Sequence[Shard], what: str) -> None:
        self.what = what
        self.shards = [shard.fields for shard in shards]
        # Sixteen bytes for each row are held.
        sizes = [len(shard.ids) for shard in shards]
        self.ids, places = first_places(
            np.concatenate([np.empty(0, dtype="<i8"), *(shard.ids for shard in shards)])
        )
        self.shard_of = np.repeat(np.arange(len(shards), dtype=np.int32), sizes)[places]
        self.row_of = places
        self.row_of -= np.cumsum([0, *sizes], dtype=places.dtype)[self.shard_of]

    def lacks(self, ids: np.ndarray) -> np.ndarray:
        """(n,) bool, which of some ids (n,) are not there."""
        if not len(self.ids):
            return np.ones(len(ids), dtype=bool)
        return self.ids[np.searchsorted(self.ids, ids).clip(max=len(self.ids) - 1)] != ids

    def missing(self, ids: np.ndarray) -> np.ndarray:
        """Those of some ids that are not there, in their order."""
        return ids[self.lacks(ids)]

    def read(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Gather rows.

        Args:
            ids: (B,) int64.

        Returns:
            Arrays (B, …) by field name.

        Raises:
            CorruptStateError: A row is not there.
        """
        at = np.searchsorted(self.ids, ids).clip(max=max(len(self.ids) - 1, 0))
        if not len(self.ids) or not (self.ids[at] == ids).all():
            raise CorruptStateError(
                f"{self.what}: {len(np.setdiff1d(ids, self.ids))} of {len(ids)} rows are not in the cache: build it for "
                "this dataset with cache_teacher_outputs, or run the teachers live."
            )
        shard_of, row_of = self.shard_of[at], self.row_of[at]
        present = np.unique(shard_of)
        if len(present) == 1:
            return {field: array[row_of] for field, array in self.shards[present[0]].items()}
        gathered = {
            field: np.empty((len(ids), *array.shape[1:]), dtype=array.dtype)
            for field, array in self.shards[present[0]].items()
        }
        for shard in present:
            here = shard_of == shard
            for field, array in self.shards[shard].items():
                gathered[field][here] = array[row_of[here]]
        return gathered


def read_description(folder: Path) -> dict[str, Any]:
    """What the description of a store says; empty where it is missing or unreadable, or a later version wrote it."""
    try:
        return read_json(folder / DESCRIPTION, _FORMAT)[0]
    except (OSError, ValueError, RecursionError):
        return {}


def cache_info(cache_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """What a cache holds: per teacher its description, rows, bytes, and when it was last written.

    Args:
        cache_dir: Folder of the cache.

    Returns:
        Dicts with ``key, teacher, labels, parameters, dtype, precision, source, revision, rows, bytes, damaged,
        written`` (seconds since 1970).

    Raises:
        DataError: There is no such folder.
    """
    folder = Path(cache_dir)
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}: name the cache_dir of a run or recipe.")
    found = []
    for place in sorted(path for path in folder.iterdir() if (path / DESCRIPTION).is_file()):
        store = Store(place, place.name)
        shards = store.shards()
        found.append(
            {
                **read_description(place),
                "key": place.name,
                "rows": sum(len(shard.ids) for shard in shards),
                "bytes": sum(path.stat().st_size for path in place.glob("*.npy")),
                "damaged": sorted(store.damaged),
                "written": max(path.stat().st_mtime for path in place.glob("*.json")),
            }
        )
    return found

"""Tokens that several teachers share while a cache is built, kept on disk between one teacher and the next.

Teachers are in memory one at a time, so what the next one reads through the same tokenizer would be tokenized again.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from ...rows.columns import Ragged

_MOST_BYTES = 4 * 10**9
_PREFIX = ".tokens-"


class KeptTokens:
    """Flat tokens by tokenization and shard, in a folder that is gone in the end.

    What cannot be written or read is tokenized again.

    Args:
        folder: Its own.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._bytes = folder, 0

    def _path(self, view: str, shard: str) -> Path:
        return self._folder / f"{view[:32]}-{shard}.npz"

    def read(self, view: str, shard: str) -> dict[str, Ragged] | None:
        """The inputs of a shard's rows; None where nobody tokenized them.

        Args:
            view: The view's key.
            shard: Its name.
        """
        try:
            with np.load(self._path(view, shard), allow_pickle=False) as stored:
                lengths = stored["lengths"]
                return {
                    name.removeprefix("of "): Ragged(stored[name], lengths)
                    for name in stored.files
                    if name != "lengths"
                }
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def write(self, view: str, shard: str, tokens: Mapping[str, Ragged]) -> None:
        """Keep them, if there is room."""
        if not tokens:
            return
        lengths = next(iter(tokens.values())).lengths
        if any((column.lengths != lengths).any() for column in tokens.values()):
            return
        narrow = {
            f"of {name}": c.values.astype(np.min_scalar_type(c.values.max(initial=0)))
            if c.values.dtype.kind in "iu" and c.values.min(initial=0) >= 0
            else c.values
            for name, c in tokens.items()
        }
        self._bytes += lengths.nbytes + sum(values.nbytes for values in narrow.values())
        if self._bytes > _MOST_BYTES:
            return
        path = self._path(view, shard)
        try:
            np.savez(path, lengths=lengths, **narrow)
        except OSError:  # a part of it would be read as all of it
            with contextlib.suppress(OSError):
                path.unlink()


@contextlib.contextmanager
def kept_tokens(cache_dir: Path, teachers: int) -> Iterator[KeptTokens | None]:
    """A place for tokens beside the teachers' outputs; None where no second teacher will ask or nothing can be kept.

    Args:
        cache_dir: Folder of the cache.
        teachers: How many are to be run.
    """
    for old in cache_dir.glob(f"{_PREFIX}*"):  # of builds that were killed
        with contextlib.suppress(OSError):
            if old.stat().st_mtime < time.time() - 86400:
                shutil.rmtree(old)
    if teachers < 2:
        yield None
        return
    try:
        place = tempfile.TemporaryDirectory(prefix=_PREFIX, dir=cache_dir, ignore_cleanup_errors=True)
    except OSError:
        yield None
        return
    with place as folder:
        yield KeptTokens(Path(folder))

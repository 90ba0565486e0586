"""The one way to write a file: it is there whole, or what was there before is."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def whole(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file to be written that takes its name only once it is whole.

    It is written beside its place under a name of its own, flushed to the disk, and renamed; a reader, a second writer
    and a machine that stops in between find the former file or the new one. Where the block raises, nothing is left.

    Args:
        path: Where it is to be; its folder is made.
        mode: ``w`` for UTF-8 text, ``wb`` for bytes.

    Raises:
        OSError: It cannot be written.

    Example:
        >>> path = tmp_path / "made" / "a.txt"
        >>> with whole(path) as file:
        ...     _ = file.write("all of it")
        >>> path.read_text(), [file.name for file in path.parent.iterdir()]
        ('all of it', ['a.txt'])
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".unfinished", dir=path.parent)
    try:
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _as_others(unfinished, path)
        os.replace(unfinished, path)
    except BaseException:
        Path(unfinished).unlink(missing_ok=True)
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a whole text, as UTF-8."""
    with whole(path) as file:
        file.write(text)


def write_json(path: str | os.PathLike[str], content: Any, **options: Any) -> None:
    """Write a whole JSON file that ends with a line's end.

    Args:
        path: Where it is to be.
        content: What `json.dumps` takes.
        options: Of `json.dumps`.
    """
    write_text(path, json.dumps(content, **options) + "\n")


def read_json(path: str | os.PathLike[str], newest: int) -> tuple[dict[str, Any], int]:
    """Read a JSON file that carries the number of its format.

    Args:
        path: Where it is.
        newest: The number that is written today.

    Returns:
        What it holds beside the number, and the number: 1 where none stands in it.

    Raises:
        OSError, ValueError: It cannot be read, holds something else, or a later version wrote it.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it nests too deeply to be one of ours") from None
    if not isinstance(content, dict):
        raise ValueError("it holds no mapping")
    found = content.pop("format", 1)
    if found not in range(1, newest + 1):
        raise ValueError(f"its format is {found!r}, and this version of hf_distill reads 1 to {newest}")
    return content, found


def _as_others(unfinished: str, path: Path) -> None:
    # A temporary file is its owner's alone; one that is given a name has the rights that any new file has.
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(unfinished, path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~mask)

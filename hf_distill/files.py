"""The one way to write a file: it is there whole, or what was there before is."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import xxhash

TROUBLE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your quota is used up",
    errno.EROFS: "it is read-only",
    errno.EACCES: "you may not write there",
    errno.EPERM: "you may not write there",
    errno.EFBIG: "a file may not be that large there",
    errno.EIO: "the disk does not take it (input/output error)",
}
"""What storage says that takes nothing more, by its number."""


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
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.unfinished")
    # With the rights of any new file, as the system gives them: to ask for the mask is to set it, for all threads.
    opened = open(unfinished, mode.replace("w", "x"), encoding=None if "b" in mode else "utf-8")  # noqa: SIM115
    try:
        with opened as file:
            if path.exists():
                os.chmod(unfinished, path.stat().st_mode & 0o777)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
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


def checksum(path: str | os.PathLike[str]) -> str:
    """The xxh3 checksum, of 128 bits, of a file's bytes: it finds accidents, not enemies.

    Example:
        >>> path = tmp_path / "a.txt"
        >>> write_text(path, "all of it")
        >>> checksum(path)
        '50498ca317bb48f574177a57527cbb52'
    """
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Have a folder's names on the disk: a rename is only there once its folder is."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sync_file(path: str | os.PathLike[str]) -> None:
    """Have on the disk what others wrote into a file."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def trouble(error: BaseException, folder: str | os.PathLike[str]) -> str | None:
    """What keeps a folder from taking more, None where an error says nothing of storage.

    safetensors and torch write in other languages: the former tells the system's number in its text, the latter only that
    it failed, so a small file is tried in its place.

    Args:
        error: Whatever writing into the folder raised.
        folder: Where it was written.

    Example:
        >>> trouble(OSError(28, "No space left on device"), "."), trouble(ValueError("no"), ".")
        ('the disk is full', None)
    """
    if isinstance(error, OSError) and error.errno is not None:
        return TROUBLE.get(error.errno)
    told = re.search(r"os error (\d+)", str(error))
    if told:
        return TROUBLE.get(int(told[1]))
    if not re.search(
        r"PytorchStreamWriter|inline_container|iostream|cannot be opened|not a file", str(error)
    ):
        return None
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(bytes(1 << 16))
            file.flush()
            os.fsync(file.fileno())
    except OSError as tried:
        return TROUBLE.get(tried.errno or 0, str(tried))
    return "the disk took only a part of it"

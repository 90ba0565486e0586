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

from .errors import ConfigurationError, DataError
from .lookup import suggest

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


def run_folder(path: str | os.PathLike[str]) -> Path:
    """The folder of a run that somebody named: it is one, and is looked for nowhere else.

    Args:
        path: As it was named.

    Raises:
        DataError: It is a file, or is not there.

    Example:
        >>> run_folder(tmp_path) == tmp_path
        True
    """
    folder = Path(path)
    if not folder.is_dir():
        raise DataError(
            f"{_capital(no_folder(folder))}: name the folder of a trained run, its training.output_dir."
        )
    return folder


def no_folder(path: Path) -> str:
    """Say of what is no folder that it is a file, or not there, and what was probably meant.

    Args:
        path: It is no folder.

    Example:
        >>> (tmp_path / "bert").mkdir()
        >>> no_folder(tmp_path / "brt").replace(str(tmp_path), "…")
        "there is no folder …/brt (did you mean 'bert'?)"
    """
    if path.exists():
        return f"{path.absolute()} is a file, not a folder"
    absent = first_absent(path)
    return f"there is no folder {path.absolute()}{suggest(absent.name, folders(absent.parent))}"


def first_absent(path: Path) -> Path:
    """The uppermost part of a path that is no folder; what it would lie in is one.

    Example:
        >>> first_absent(tmp_path / "a" / "b") == tmp_path / "a"
        True
    """
    absent = path.absolute()
    while not absent.parent.is_dir():
        absent = absent.parent
    return absent


def folders(folder: Path) -> list[str]:
    """The names of a folder's folders that are not hidden; none where it cannot be looked into."""
    try:
        return [child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")]
    except OSError:
        return []


def refuse_file(path: str | os.PathLike[str], what: str) -> None:
    """Refuse a place for a folder where a file lies, before hours go into what it is to hold.

    Args:
        path: Where the folder is to be, or is.
        what: Who named it: "--output", "training.output_dir".

    Raises:
        ConfigurationError: It, or what it is to lie in, is a file.

    Example:
        >>> refuse_file(tmp_path / "new" / "one", "--output")
    """
    place = Path(path)
    file = next((one for one in (place, *place.parents) if one.exists() and not one.is_dir()), None)
    if file is not None:
        raise ConfigurationError(
            f"{what}: {file.absolute()} is a file, and a folder is to be there: name another."
        )


def _capital(sentence: str) -> str:
    return sentence if sentence.startswith("/") else sentence[:1].upper() + sentence[1:]


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

"""Checkpoints that count: a manifest with the checksum of every file, written last; what has none, or another file, does not."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash
from safetensors import SafetensorError
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..errors import StorageError
from ..files import checksum, sync_file, sync_folder, trouble, write_text
from ..processes import say

MANIFEST = "checkpoint.json"
"""Says which files a checkpoint has, with their sizes and checksums; a folder without it is no checkpoint yet, or no more."""

_FORMAT = 1
# What is read where it lies in a checkpoint, so that a file nobody saved could take the place of one that was.
_READ = re.compile(
    r".*\.(safetensors|bin|pt|pth|distcp|index\.json)|(config|adapter_config|trainer_state|run_state|fusion)\.json|\.metadata|latest"
)


def begin(folder: Path) -> None:
    """Clear the place of a checkpoint that is about to be written, of what an interrupted save or another run left there.

    Raises:
        OSError: It cannot be removed.
    """
    if folder.exists():
        discard(folder)


def commit(folder: Path, step: int) -> None:
    """Make a checkpoint count: every file of it on the disk, then its manifest, renamed into its place, then the folders.

    Args:
        folder: Of the checkpoint, with all that belongs into it.
        step: The step it is of.

    Raises:
        OSError: It cannot be written.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    files = {}
    for path in paths:
        sync_file(path)
        name = path.relative_to(folder).as_posix()
        files[name] = {"bytes": path.stat().st_size, "xxh3_128": checksum(path)}
    for inner in {path.parent for path in paths} | {folder}:
        sync_folder(inner)
    write_text(folder / MANIFEST, _manifest({"format": _FORMAT, "step": step, "files": files}))
    try:
        sync_folder(folder)
        sync_folder(folder.parent)
    except OSError:
        (folder / MANIFEST).unlink(
            missing_ok=True
        )  # a machine that stops now could leave the name without what it names
        raise


def discard(folder: Path) -> None:
    """Remove a checkpoint, its manifest first: it does not count from the first moment on, whenever this is interrupted.

    Raises:
        OSError: It cannot be removed.
    """
    if folder.is_symlink() or not folder.is_dir():
        folder.unlink()
        return
    (folder / MANIFEST).unlink(missing_ok=True)
    sync_folder(folder)
    shutil.rmtree(folder)
    sync_folder(folder.parent)


def problem(folder: Path) -> str | None:
    """Why a checkpoint cannot be relied on, as a clause; None where every file is what was saved.

    Args:
        folder: Of the checkpoint.
    """
    try:
        return _problem(folder)
    except OSError as error:
        return f"{Path(error.filename or folder).name} cannot be read ({error.strerror or error})"


def is_committed(folder: Path) -> bool:
    """Whether a checkpoint was finished; its files are not looked at."""
    return (folder / MANIFEST).is_file()


def checkpoints(output_dir: str | os.PathLike[str]) -> list[Path]:
    """Every folder of a run that is called like a checkpoint, the newest step first."""
    folder = Path(output_dir)
    found = [path for path in folder.iterdir() if _step(path) is not None] if folder.is_dir() else []
    return sorted(found, key=lambda path: _step(path) or 0, reverse=True)


def rotate(output_dir: Path, limit: int | None, protected: Sequence[Path]) -> None:
    """Remove the oldest checkpoints of a run, once a newer one counts; first those that do not count.

    Args:
        output_dir: The run's folder.
        limit: How many stay; None or 0: all.
        protected: Those that stay in any case.
    """
    if not limit:
        return
    stay = {path.absolute() for path in protected}
    found = [path for path in checkpoints(output_dir) if path.is_dir()]
    candidates = [path for path in found if path.absolute() not in stay]
    candidates.sort(key=lambda path: (is_committed(path), path.stat().st_mtime, _step(path) or 0))
    surplus = len(found) - max(limit, len(found) - len(candidates))
    for path in candidates[: max(0, surplus)]:
        try:
            discard(path)
        except OSError as error:  # what is there too much endangers nothing
            say(
                f"{path} cannot be removed ({error.strerror or error}); it is tried again after the next checkpoint."
            )


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is called like a checkpoint of `Trainer`, not like a finished student.

    Example:
        >>> is_checkpoint(Path("out/checkpoint-500")), is_checkpoint(Path("out"))
        (True, False)
    """
    return _step(folder) is not None


def copied_manifest(checkpoint: Path, names: Sequence[str]) -> str:
    """The text of a manifest for a copy of a checkpoint that has only some of its files.

    Args:
        checkpoint: The whole one.
        names: The files of the copy, relative to its folder.
    """
    content = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    files = {name: file for name, file in content["files"].items() if name in names}
    return _manifest({"format": content["format"], "step": content["step"], "files": files})


@contextmanager
def saving(folder: Path, needed: int, run: Path) -> Iterator[None]:
    """Say in a sentence why a folder could not be saved, where its storage takes no more.

    Args:
        folder: What is saved; a checkpoint that was not finished is removed again, for it takes room and counts for nothing.
        needed: How many bytes it takes, as far as that is known.
        run: The folder that holds the run's checkpoints.

    Raises:
        StorageError: The disk is full, a quota is used up, or nothing may be written there.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        place = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
        why = trouble(error, place)
        if why is None:
            raise
        free = shutil.disk_usage(place).free
        if is_checkpoint(folder) and folder.is_dir() and not is_committed(folder):
            shutil.rmtree(folder, ignore_errors=True)
        kept = next((path for path in checkpoints(run) if problem(path) is None), None)
        goes_on = (
            "no checkpoint was saved before; start again"
            if kept is None
            else f"{kept} is whole, and --resume (resume_from_checkpoint=True) goes on from it"
        )
        raise StorageError(
            f"{folder} cannot be saved, since {why}: it takes {needed:,} bytes and {free:,} are free; {goes_on} once "
            "there is room and it may be written."
        ) from error


def size(folder: Path) -> int:
    """How many bytes the files of a checkpoint have, by its manifest; 0 where it has none."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return sum(file["bytes"] for file in files.values())
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _manifest(content: dict[str, Any]) -> str:
    """Its text, of which every character is covered by the checksum that stands in it."""
    digest = xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())
    return json.dumps({**content, "xxh3_128": digest}, sort_keys=True, indent=1) + "\n"


def _problem(folder: Path) -> str | None:
    if not folder.is_dir():
        return "it is no folder"
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return (
            f"it has no {MANIFEST}, so its saving was interrupted, or it was made by transformers' own Trainer or by a "
            "version of hf_distill before there were manifests"
        )
    try:
        text = manifest.read_bytes().decode()
        content = json.loads(text)
        del content["xxh3_128"]
        whole = _manifest(content) == text
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"its {MANIFEST} is damaged"
    if not whole:
        return f"its {MANIFEST} is damaged"
    if content.get("format") != _FORMAT:
        return f"its {MANIFEST} has format {content.get('format')!r}, and this version of hf_distill reads {_FORMAT}"
    if _step(folder) not in (None, content["step"]):
        return f"it holds step {content['step']}"
    files = content["files"]
    for name, meant in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        found = path.stat().st_size
        if found != meant["bytes"]:
            return f"{name} has {found:,} bytes instead of {meant['bytes']:,}"
    for name, meant in files.items():
        if checksum(folder / name) != meant["xxh3_128"]:
            return f"{name} is not as it was saved, its checksum differs"
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name not in files and not path.is_dir() and _READ.fullmatch(path.name):
            return f"{name} lies in it, was not saved with it, and would be read"
    return None


def _step(path: Path) -> int | None:
    number = re.fullmatch(PREFIX_CHECKPOINT_DIR + r"-(\d+)", path.name)
    return None if number is None else int(number[1])

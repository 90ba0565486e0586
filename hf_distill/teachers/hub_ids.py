"""What an id on the Hub stands for here: whether it is one, and which commit was loaded, which models no longer remember."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..lookup import suggest

_READ = ("config.json", "adapter_config.json")


def hub_id(source: str | None) -> str | None:
    """A source as an id on the Hub; None for folders, and for what cannot be an id.

    Example:
        >>> hub_id("org/model"), hub_id("/home/me/model"), hub_id("./model"), hub_id("two words")
        ('org/model', None, None, None)
    """
    if not source or Path(source).exists():
        return None
    try:
        validate_repo_id(source)
    except HFValidationError:
        return None
    return source


def missing_folder(source: str) -> str | None:
    """Say of a source that cannot be loaded that it is no folder here, and what was probably meant.

    Args:
        source: What was given, a folder or an id.

    Returns:
        None where the folder is there, or where it can only be meant as an id: nothing of its path is here.

    Example:
        >>> missing_folder("org/model") is None
        True
        >>> missing_folder(str(tmp_path / "bret"))  # doctest: +ELLIPSIS
        '...it must hold the files of a checkpoint, config.json among them'
    """
    path = Path(source)
    if not source or path.exists():
        return None
    home = path.expanduser()
    if source.startswith("~") and home.exists():
        return f"~ is not written out here: write {home}"
    folder = path.parent
    local = source.startswith((".", "/", "~")) or source.count("/") > 1
    if not local and hub_id(source) is not None:
        # An id of the Hub, unless its beginning is a folder here or a folder beside is called nearly so.
        beside = folder.is_dir() and suggest(path.name, _folders(folder))
        if not beside and (not folder.is_dir() or folder == Path(".")):
            return None
    while not folder.is_dir():
        path, folder = folder, folder.parent
    near = suggest(path.name, _folders(folder))
    said = f"there is no folder {path.absolute()}{near}"
    there = (
        ""
        if near
        else f"; in {folder.absolute()} are: {', '.join(sorted(_folders(folder))[:8]) or 'no folders'}"
    )
    return f"{said}{there}; it must hold the files of a checkpoint, config.json among them"


def _folders(folder: Path) -> list[str]:
    return [child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")]


def loaded_commit(repo: str, revision: str | None) -> str | None:
    """The commit that loading a model by its id has just used.

    Args:
        repo: Id on the Hub, or a folder.
        revision: Branch, tag or commit that was asked for; None: none, which means main.

    Returns:
        None where the cache does not have it.
    """
    if hub_id(repo) is None:
        return None
    for name in _READ:
        found = try_to_load_from_cache(repo, name, revision=revision)
        if isinstance(found, str):
            return Path(found).parent.name
    return None


def only_commit(repo: str) -> str | None:
    """The commit of a model that was loaded some time ago, nobody knows at which revision.

    Args:
        repo: Id on the Hub.

    Returns:
        None where the cache has several, or none.
    """
    folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo, repo_type="model"), "snapshots")
    found = {path.parent.name for name in _READ for path in folder.glob(f"*/{name}")}
    return found.pop() if len(found) == 1 else None


def data_commit(rows: Any) -> str | None:
    """The commit of the data set on the Hub that rows were really loaded from, without asking the Hub.

    `datasets` keeps them in a folder of that name. Offline it takes the last one that it has, whichever revision is asked for.

    Args:
        rows: A `datasets.Dataset`.

    Returns:
        None where they are of no data set or of several, or are not kept in files.

    Example:
        >>> data_commit(rows) is None
        True
    """
    folders = {Path(kept["filename"]).parent.name for kept in getattr(rows, "cache_files", ())}
    commits = [name for name in folders if re.fullmatch("[0-9a-f]{40}", name)]
    return commits[0] if len(commits) == 1 else None

"""What an id on the Hub stands for here: whether it is one, and which commit was loaded, which models no longer remember."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..errors import DataError, in_a_line
from ..files import first_absent, folders, no_folder
from ..lookup import suggest

_READ = ("config.json", "adapter_config.json")
_TIMEOUT = 10.0
"""Seconds that the Hub has for saying whether it has a model."""


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
    if not source or path.is_dir():
        return None
    must = "it must hold the files of a checkpoint, config.json among them"
    if path.exists():
        return f"{no_folder(path)}; {must}"
    home = path.expanduser()
    if source.startswith("~") and home.exists():
        return f"~ is not written out here: write {home}"
    if not is_path(source) and hub_id(source) is not None:
        # An id of the Hub, unless its beginning is a folder here or a folder beside is called nearly so.
        folder = path.parent
        beside = folder.is_dir() and suggest(path.name, folders(folder))
        if not beside and (not folder.is_dir() or folder == Path(".")):
            return None
    found, above = no_folder(path), first_absent(path).parent
    if not found.endswith("?)"):
        found += f"; in {above} are: {', '.join(sorted(folders(above))[:8]) or 'no folders'}"
    return f"{found}; {must}"


def no_checkpoint(source: str) -> str | None:
    """Say of a folder that nothing can be loaded from it, since it has no config; None of any other, and of ids.

    Example:
        >>> no_checkpoint("org/model") is None
        True
        >>> no_checkpoint(str(tmp_path)).replace(str(tmp_path), "…")
        'there is no checkpoint in …, it has no config.json; in it are: no folders'
    """
    folder = Path(source)
    if not source or not folder.is_dir() or any((folder / name).is_file() for name in _READ):
        return None
    within = sorted(folders(folder))
    return (
        f"there is no checkpoint in {folder.absolute()}, it has no config.json; in it are: "
        f"{', '.join(within[:8]) or 'no folders'}"
    )


def doubtful_id(source: str) -> str | None:
    """Say of what reads as an id that it may have been meant as a folder; None where the Hub's cache has it, or nothing says so.

    Example:
        >>> doubtful_id("org/model") is None
        True
    """
    repo = None if is_path(source) else hub_id(source)
    if repo is None or _kept(repo) or missing_folder(source) is None:
        return None
    return f"{no_folder(Path(source))}, so {source} is taken for an id of the Hub"


def is_path(source: str) -> bool:
    """Whether a source cannot be an id of the Hub, which has one slash at most and does not begin with a dot.

    Example:
        >>> is_path("org/model"), is_path("./model"), is_path("runs/a/student")
        (False, True, True)
    """
    return source.startswith((".", "/", "~")) or source.count("/") > 1 or Path(source).exists()


def refuse_absent(source: str, what: str) -> None:
    """Refuse a source that is no folder here and that the Hub does not have, without waiting for the Hub again and again.

    What is in the Hub's cache is not asked for, nor is anything where the Hub is not to be asked.

    Args:
        source: A folder or an id.
        what: Who it is for, for messages: "Teacher 'bert'".

    Raises:
        DataError: It is neither, or nobody can be asked.
    """
    if not source or Path(source).is_dir():
        return
    sentence, repo = missing_folder(source), None if is_path(source) else hub_id(source)
    if repo is not None:
        if _kept(repo):
            return
        if not is_offline_mode():
            found = _asked(repo)
            if found is True or (found is None and sentence is None):
                return
            if isinstance(found, str):
                here = sentence or f"there is no folder {Path(source).absolute()}"
                raise DataError(
                    f"{what}: {here}, and the Hub, where {source} may be, does not answer ({found})."
                )
    if sentence is not None:
        raise DataError(f"{what}: {source}: {sentence}.")


def _kept(repo: str) -> list[Path]:
    """The files of a model's configs in the Hub's cache."""
    folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo, repo_type="model"), "snapshots")
    return [path for name in _READ for path in folder.glob(f"*/{name}")]


def _asked(repo: str) -> bool | str | None:
    """Whether the Hub has a model, asked once: None where it says no or something else, a text where it cannot be asked."""
    try:
        HfApi().model_info(repo, timeout=_TIMEOUT)
        return True
    except GatedRepoError:
        return True
    except RepositoryNotFoundError:
        return None
    except HfHubHTTPError as error:  # an answer, if none that helps: whoever loads it says more
        return True if error.response.status_code >= 500 else None
    except Exception as error:
        return in_a_line(error, 200)


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
    found = {path.parent.name for path in _kept(repo)}
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

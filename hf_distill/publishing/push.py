"""To the Hub: the repository checked before training, one commit of listed files after it, and a card that says it all.

Tokens come from the login or from HF_TOKEN (or ``hub_token`` of the arguments) and go into requests alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import traceback
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    get_token,
    is_offline_mode,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from .. import __version__
from ..errors import (
    ConfigurationError,
    CorruptStateError,
    DataError,
    HfDistillError,
    PushError,
    hide_tokens,
    in_a_line,
)
from ..files import run_folder, write_text
from ..teachers.damaged_files import refuse_cut
from .card import Rows, model_card, origins
from .facts import REPORT_FILE, RunFacts, licence_of, load_facts, report_digest
from .pushed_files import STALE, documents_to_push, files_to_push, holding_a_token, laid_out

# What cards say that `transformers` and `peft` write by themselves.
_GENERATED = ("generated automatically according to the information the Trainer", "[More Information Needed]")

_DIGEST = "hf_distill_card"
"""The key of a card's metadata with the digest of all else in it, by which a card that somebody has edited is told."""

_HUB_TIMEOUT = 10.0
"""Seconds that a look-up for the card may take; the card does without it."""


def check_repository(
    repo: str, *, private: bool = False, token: str | None = None, read_only: bool = False
) -> str:
    """Make sure, before anything is trained, that a push will be possible: the repository is made where it is missing.

    Args:
        repo: ``user/name``, or a name of the user's own.
        private: Whether it has to be private.
        token: Instead of the login's.
        read_only: Whether the right to read is enough, as it is for a pull request.

    Returns:
        The full id of the repository.

    Raises:
        ConfigurationError: There is no token, it is not accepted or may not write, the Hub cannot be reached, or the
            repository exists and is public though it has to be private.
    """
    try:
        return _open(_api(token), repo, private=private, read_only=read_only)
    except Exception as error:  # whatever is wrong is said before hours of training
        raise ConfigurationError(
            f"The student could not be pushed to {repo}, so nothing was trained: {reason(error, token)}"
        ) from without_tokens(error, token)


def push_run(
    folder: str | os.PathLike[str],
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    pull_request: bool = False,
    keep_edits: bool = True,
) -> CommitInfo:
    """Write the card of a run, and push the student with it.

    Args:
        folder: Of the run.
        repo: ``user/name``; made where it is missing.
        private: Whether it has to be private.
        revision: A branch, made where it is missing; None: main.
        pull_request: Whether to open a pull request instead.
        keep_edits: Whether a card that somebody has edited stays as it is.

    Returns:
        The commit; its ``pr_url`` is the pull request's.

    Raises:
        ConfigurationError: ``repo`` cannot be the name of a repository.
        DataError: There is no whole student, or nothing says how it was made.
        CorruptStateError: What says it, or the report, cannot be read.
        PushError: The push failed, with the command that finishes it.
    """
    folder = run_folder(folder)
    _refuse_name(repo)
    _refuse_incomplete(folder)
    write_card(folder, repo=repo, keep_edits=keep_edits)
    return push_folder(folder, repo, private=private, revision=revision, pull_request=pull_request)


def prepare_push(folder: str | os.PathLike[str], repo: str | None = None) -> dict[str, Path]:
    """Do all that a push does but to push: the card and `publish/` are written, and nothing leaves.

    Args:
        folder: Of the run.
        repo: ``user/name`` for the card; None: the folder's name.

    Returns:
        What would leave, by its name in the repository.

    Raises:
        ConfigurationError: ``repo`` cannot be the name of a repository.
        DataError: There is no whole student, or nothing says how it was made.
        CorruptStateError: What says it, or the report, cannot be read.
        PushError: One of the files holds a token of the Hub.
    """
    folder = run_folder(folder)
    _refuse_name(repo)
    _refuse_incomplete(folder)
    write_card(folder, repo=repo, keep_edits=True)
    files = _listed(folder)
    if holder := holding_a_token(files, get_token()):
        raise PushError(
            f"{holder} holds a token of the Hub, so a push would be refused: take it out of that file."
        )
    return laid_out(folder, files)


def _refuse_incomplete(folder: Path) -> None:
    facts = load_facts(folder)
    files = files_to_push(folder, adapter=facts.adapter if facts else None, reports=False)
    for name, file in files.items():
        if name.endswith(".safetensors") and isinstance(file, Path):
            refuse_cut(file, "The student")


def _listed(folder: Path) -> dict[str, Path | bytes]:
    """What leaves with a push."""
    facts = load_facts(folder)
    adapter, reports = facts.adapter if facts else None, not _outdated(folder, facts)
    return files_to_push(folder, adapter=adapter, reports=reports)


def push_folder(
    folder: Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    pull_request: bool = False,
    token: str | None = None,
    message: str = "Student, card and report",
    also: Mapping[str, Path] | None = None,
    run: Path | None = None,
) -> CommitInfo:
    """One commit of the student, its card and its reports; what the repository has already is not uploaded again.

    No text of a row that the report shows is among it.

    Args:
        folder: With the card in it.
        repo: ``user/name``; made where it is missing.
        private: Whether it has to be private.
        revision: A branch, made where it is missing; None: main.
        pull_request: Whether to open a pull request instead.
        token: Instead of the login's.
        message: Of the commit.
        also: Further files by their names in the repository.
        run: The folder that the command which finishes a failed push names; None: ``folder``.

    Raises:
        PushError: The push failed, with the command that finishes it.
    """
    if pull_request and revision:
        raise ConfigurationError(
            "A pull request is opened against main: name either a branch or a pull request."
        )
    files = _listed(folder)
    api = _api(token)
    shown = folder if run is None else run
    command = push_command(shown, repo, private=private, revision=revision, pull_request=pull_request)
    try:
        # Before what is for people is written into `publish/`, which would then hold it too.
        if holder := holding_a_token({**files, **(also or {})}, token or get_token()):
            raise PushError(
                f"Nothing was pushed to {repo}: {holder} holds a token of the Hub, which would be published.\n"
                f"The student is complete in {shown}. Once the token is out of that file, this pushes it:\n    {command}"
            )
        opened = _open(api, repo, private=private, read_only=pull_request)
        if opened != repo:
            write_card(folder, repo=opened, keep_edits=True)
            files = _listed(folder)
        pushed = {**laid_out(folder, files), **(also or {})}
        branch = revision if revision not in (None, "main") else None
        if branch and not branch.startswith("refs/"):
            api.create_branch(opened, branch=branch, exist_ok=True)
        there = api.list_repo_files(opened, revision=branch)
        stale = [name for name in there if name not in files and any(fnmatch(name, old) for old in STALE)]
        return api.create_commit(
            opened,
            [
                *(CommitOperationAdd(name, what) for name, what in pushed.items()),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message=message,
            revision=branch,
            create_pr=pull_request,
        )
    except PushError:
        raise
    except Exception as error:  # whatever fails here, what was trained is complete and must not look lost
        raise PushError(
            f"The push to {repo} failed: {reason(error, token)}\n"
            f"The student is complete in {shown}. This finishes the push:\n    {command}"
        ) from without_tokens(error, token)


def write_card(
    folder: Path,
    *,
    repo: str | None = None,
    keep_edits: bool = False,
    token: str | None = None,
) -> Path:
    """Write the card of a run as README.md, from what is kept beside the student.

    A key of its metadata holds the digest of all else in it, by which an edited one is told.

    Args:
        folder: Of the run.
        repo: What the card is for; None: the folder's name.
        keep_edits: Whether a card that somebody has edited, or wrote himself, stays as it is.
        token: For licences of private teachers.

    Returns:
        The card's path.

    Raises:
        DataError: Nothing says how the student was made, and there is no card yet.
        CorruptStateError: What says it cannot be read.
    """
    path, facts = folder / "README.md", load_facts(folder)
    if facts is None:
        if path.is_file():
            return path
        raise DataError(
            f"Nothing in {folder.absolute()} says how the student was made (no distillation.json), so its card cannot be "
            "written: push the folder of a run of hf_distill, or write a README.md there."
        )
    if keep_edits and path.is_file() and _edited(path.read_text(encoding="utf-8", errors="replace")):
        print(f"{path} was edited, so it stays as it is; remove it for a new one.")
        return path
    reports = not _outdated(folder, facts)
    documents = documents_to_push(folder, reports=reports)
    card = model_card(
        facts,
        repo=repo or folder.absolute().name,
        report=_report(folder) if reports else None,
        files=list(documents),
        captions=documents,
        rows=_rows(folder),
        licences=look_up_licences(facts, token),
    )
    write_text(path, f"{_sealed(card)}\n")
    return path


def card_of_run(folder: str | os.PathLike[str], repo: str | None = None) -> Path:
    """Write the card of a trained run; one that somebody has edited stays as it is.

    Args:
        folder: Of the run.
        repo: ``user/name`` that the card names; None: the folder's name.

    Returns:
        The card's path.

    Raises:
        ConfigurationError: ``repo`` cannot be the name of a repository.
        DataError: There is no whole student, or nothing says how it was made.
        CorruptStateError: What says it, or the report, cannot be read.
    """
    folder = run_folder(folder)
    _refuse_name(repo)
    _refuse_incomplete(folder)
    return write_card(folder, repo=repo, keep_edits=True)


def _refuse_name(repo: str | None) -> None:
    try:
        if repo is not None:
            validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigurationError(
            f"{repo!r} cannot be a repository on the Hub ({in_a_line(error, 200).rstrip('.')}): name it user/name."
        ) from error


def look_up_licences(facts: RunFacts, token: str | None = None) -> dict[str, str]:
    """What the Hub says of the licences of all that a student came from, by id; those that cannot be asked are left out."""
    found: dict[str, str] = {}
    for origin in origins(facts):
        if origin.source is None or origin.source in found or is_offline_mode():
            continue
        try:
            info = _api(token).model_info(origin.source, revision=origin.revision, timeout=_HUB_TIMEOUT)
        except HfHubHTTPError:  # private, gated or gone
            continue
        except Exception:  # nobody answers; the next one would not either
            break
        found[origin.source] = licence_of(info.card_data or {})
    return found


# ---- The Hub ----


def _api(token: str | None) -> HfApi:
    return HfApi(token=token, library_name="hf_distill", library_version=__version__)


def _open(api: HfApi, repo: str, *, private: bool, read_only: bool = False) -> str:
    """The full id of a repository that can be pushed to; made where it is missing."""
    if is_offline_mode():
        raise ConfigurationError("HF_HUB_OFFLINE is set, which forbids all requests; unset it.")
    if not (api.token or get_token()):
        raise ConfigurationError(
            "there is no token of the Hub; log in with `hf auth login`, or set HF_TOKEN."
        )
    repo = api.create_repo(repo, private=private or None, exist_ok=True).repo_id
    if private and api.repo_info(repo).private is False:
        raise ConfigurationError(
            f"{repo} exists and is public, but the student is to be private; make the repository private in its settings, "
            "name another one, or allow a public one."
        )
    if not read_only:
        try:
            api.auth_check(repo, write=True)
        except HfHubHTTPError as error:
            unknown = _status(error) == 404 and not isinstance(error, RepositoryNotFoundError)
            if not unknown:  # a server that speaks an older API; it refuses the commit where it has to
                raise
    return repo


def reason(error: BaseException, token: str | None = None) -> str:
    """Why a request to the Hub failed, in a sentence, without any token.

    Args:
        error: What was raised.
        token: The one in use; None: the login's.

    Example:
        >>> reason(ValueError("hf_abcDEFghijkl is no token"))
        'hf_… is no token'
    """
    chain = [error]
    while chain[-1].__cause__ is not None:  # uploads wrap what happened in a sentence of their own
        chain.append(chain[-1].__cause__)
    answered = next((found for found in chain if isinstance(found, HfHubHTTPError)), None)
    status = None if answered is None else _status(answered)
    said = _one_line(_hidden(str(answered or error), token))[:500]
    if isinstance(error, HfDistillError):
        return said
    if status == 401:
        return f"the Hub does not accept the token (401): log in again with `hf auth login`, or correct HF_TOKEN. It says: {said}"
    if status == 403:
        return f"the token may not do this (403): it needs write access to the repository. It says: {said}"
    if status is not None and status >= 500:
        return f"the Hub has an error of its own ({status}): try again later. It says: {said}"
    modules = {type(found).__module__.partition(".")[0] for found in chain}
    if isinstance(chain[-1], OSError) or any(module.startswith("httpx") for module in modules):
        return f"the connection to the Hub failed: {said}"
    return said


def without_tokens(error: BaseException, token: str | None = None) -> BaseException | None:
    """An error to raise from, unless its traceback, with all errors behind it, would show a token."""
    shown = "".join(traceback.format_exception(error))
    return error if _hidden(shown, token) == shown else None


def _hidden(text: str, token: str | None) -> str:
    for secret in filter(None, (token, get_token())):
        text = text.replace(secret, "hf_…")
    return hide_tokens(text)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _status(error: HfHubHTTPError) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def push_command(
    folder: str | os.PathLike[str], repo: str, *, private: bool, revision: str | None, pull_request: bool
) -> str:
    """The command that pushes a run.

    Example:
        >>> push_command("runs/a b", "me/small", private=True, revision=None, pull_request=False)
        "hf-distill push 'runs/a b' me/small --private"
    """
    options = [
        *(["--private"] if private else []),
        *(["--revision", revision] if revision else []),
        *(["--pull-request"] if pull_request else []),
    ]
    return shlex.join(["hf-distill", "push", os.fspath(folder), repo, *options])


# ---- What lies in a run's folder ----


def _outdated(folder: Path, facts: RunFacts | None) -> bool:
    """Whether the report that lies there is of an earlier training."""
    return (
        facts is not None and facts.older_report is not None and report_digest(folder) == facts.older_report
    )


def _report(folder: Path) -> dict[str, Any] | None:
    path = folder / REPORT_FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorruptStateError(
            f"{path} cannot be read ({_one_line(str(error))[:200]}): evaluate again, or remove it."
        ) from error
    return content if isinstance(content, dict) else None


def _rows(folder: Path) -> Rows:
    """What the recipe beside the student says of its data."""
    try:
        # As texts all: a split called no or a revision 1e5 must not become something else.
        data = yaml.load((folder / "recipe.yaml").read_text(encoding="utf-8"), Loader=yaml.BaseLoader)["data"]
        files = (data.get("files") or {}).get("train", ())
        return Rows(data.get("dataset"), data.get("config"), data.get("revision"), tuple(files))
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError):  # none, or not one of ours
        return Rows()


def _sealed(card: ModelCard) -> str:
    """A card's text, with the digest of its content in its metadata."""
    read = ModelCard(str(card), ignore_metadata_errors=True)  # as whoever checks it will read it
    read.data[_DIGEST] = _digest(read)
    return str(read).rstrip("\n")


def _digest(card: ModelCard) -> str:
    """Of all that a card says, however its metadata are written."""
    data = {key: value for key, value in card.data.to_dict().items() if key != _DIGEST}
    content = json.dumps([data, card.text.strip()], sort_keys=True, default=str, ensure_ascii=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _edited(text: str) -> bool:
    """Whether a card is somebody's own, and not as it was generated."""
    try:
        card = ModelCard(text.replace("\r\n", "\n"))
        found = card.data.get(_DIGEST)
    except (ValueError, TypeError, yaml.YAMLError):
        return True  # metadata that nothing of ours writes
    # `transformers` and `peft` leave no field by which their own cards are known.
    return found != _digest(card) if found else not any(generated in text for generated in _GENERATED)

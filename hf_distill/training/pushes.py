"""The pushes of a trainer: what stands behind `Trainer`'s own methods for the Hub, by the list of files of `pushed_files.py`."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from accelerate import PartialState
from huggingface_hub import CommitInfo

from ..errors import ConfigurationError, PushError
from ..files import write_text
from ..processes import once
from ..publishing.facts import save_facts
from ..publishing.push import check_repository, push_folder, reason, write_card
from .commits import MANIFEST, copied_manifest, is_committed
from .run_facts import run_facts

# They hold a pickle of the arguments, which resuming does not read.
_NOT_OF_A_CHECKPOINT = ("training_args.bin",)


class BackgroundPushes:
    """Pushes that run while training goes on; what became of them is kept.

    It has the methods by which `Trainer` waits for its pushes.
    """

    def __init__(self) -> None:
        self.jobs: list[Future[Any]] = []
        self._threads = ThreadPoolExecutor(
            1, thread_name_prefix="push"
        )  # one after the other, in their order

    def start(self, push: Callable[..., Any], *args: Any, **options: Any) -> Future[Any]:
        """Begin a push once those before it are done."""
        self.jobs.append(self._threads.submit(push, *args, **options))
        return self.jobs[-1]

    def is_done(self) -> bool:
        """Whether none is under way."""
        return all(job.done() for job in self.jobs)

    def wait_until_done(self) -> None:
        """Wait for all of them."""
        wait(self.jobs)

    def failures(self) -> list[str]:
        """Why those that failed did, of the finished ones."""
        errors = [error for job in self.jobs if job.done() and (error := job.exception()) is not None]
        return [
            str(error).partition("\n")[0] if isinstance(error, PushError) else reason(error)
            for error in errors
        ]


def check_arguments(args: Any, token: str | None = None, private: bool | None = None) -> str:
    """Make sure that ``push_to_hub`` will be possible, see `check_repository`; before teachers are loaded.

    Args:
        args: `TrainingArguments`.
        token, private: Instead of the arguments' own.

    Returns:
        The full id of the repository.
    """
    return check_repository(
        args.hub_model_id or Path(args.output_dir).absolute().name,
        private=bool(args.hub_private_repo if private is None else private),
        token=token or args.hub_token,
    )


def check_for_all(args: Any) -> str:
    """`check_arguments` on the first process; all others get the same id, or the same error instead of waiting for it.

    Args:
        args: `TrainingArguments`, the same on all processes.
    """
    return once(lambda: check_arguments(args), PartialState())


def open_for(trainer: Any, token: str | None = None, private: bool | None = None) -> None:
    """`Trainer.init_hf_repo`, with a sentence for whatever cannot work."""
    if trainer.is_world_process_zero():
        checked = trainer._repository if token is None and private is None else None
        trainer.hub_model_id = checked or check_arguments(trainer.args, token, private)
        trainer.push_in_progress = BackgroundPushes()


def create_card(trainer: Any, **options: Any) -> None:
    """`Trainer.create_model_card`: the card in ``output_dir``, written anew each time.

    Args:
        trainer: Of the run.
        options: Arguments of `Trainer.create_model_card`; those given once stay.

    Raises:
        ConfigurationError: It has no such argument.
    """
    known = ("language", "license", "tags", "model_name", "finetuned_from", "tasks") + (
        "dataset_tags",
        "dataset",
        "dataset_args",
    )
    for name in options:
        if name not in known:
            raise ConfigurationError(f"A model card has no option {name!r}; it has: {', '.join(known)}.")
    if not trainer.is_world_process_zero():
        return
    given = {name: value for name, value in options.items() if value is not None}
    trainer.card_options = {**getattr(trainer, "card_options", {}), **given}
    folder = Path(trainer.args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    save_facts(run_facts(trainer), folder)
    write_card(folder, repo=trainer.hub_model_id or trainer.args.hub_model_id, token=trainer.args.hub_token)


def push_trained(
    trainer: Any,
    *,
    message: str | None = "End of training",
    blocking: bool = True,
    token: str | None = None,
    revision: str | None = None,
    private: bool | None = None,
    pull_request: bool = False,
    **card: Any,
) -> CommitInfo | Future[CommitInfo] | None:
    """`Trainer.push_to_hub`: save, write the card, push what belongs to the student.

    Args:
        trainer: Of the run; on processes other than the first it only takes part in saving.
        message: Of the commit.
        blocking: Whether to wait; else the push is one of the trainer's background pushes.
        token, revision, private: As for `Trainer.push_to_hub`.
        pull_request: Whether to open a pull request instead.
        card: As for `create_card`.

    Raises:
        PushError: The push failed, with the command that finishes it.
    """
    args = trainer.args
    trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
    trainer.save_model(_internal_call=True)
    if not trainer.is_world_process_zero():
        return None
    trainer.create_model_card(**card)
    trainer._finish_current_push()
    if getattr(trainer, "push_in_progress", None) is None:
        trainer.push_in_progress = BackgroundPushes()
    token = token or args.hub_token
    what = {
        "private": bool(args.hub_private_repo if private is None else private),
        "revision": revision or args.hub_revision,
        "pull_request": pull_request,
        "token": token,
        "message": message or "End of training",
    }
    folder = Path(args.output_dir)
    repo = trainer.hub_model_id or args.hub_model_id or folder.absolute().name
    return (
        push_folder(folder, repo, **what)
        if blocking
        else trainer.push_in_progress.start(push_folder, folder, repo, **what)
    )


def push_checkpoint(trainer: Any, checkpoint: str) -> None:
    """`Trainer._push_from_checkpoint`: push a checkpoint's student while training goes on, as ``hub_strategy`` says.

    The push reads links to the checkpoint's files, so that it does not matter when the checkpoint is deleted.
    """
    args = trainer.args
    if args.hub_strategy == "end":
        return
    trainer.accelerator.wait_for_everyone()  # each process has put its own random state into the checkpoint
    if not trainer.is_world_process_zero():
        return
    pushes: BackgroundPushes = trainer.push_in_progress
    if not args.hub_always_push and not pushes.is_done():
        return
    trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
    folder = Path(tempfile.mkdtemp(prefix=".push-", dir=args.output_dir))
    linked = _link(Path(checkpoint), folder)
    also = {}
    if args.hub_strategy != "every_save":
        where = "last-checkpoint" if args.hub_strategy == "checkpoint" else Path(checkpoint).name
        also = {f"{where}/{name}": folder / name for name in linked}
    recipe = Path(args.output_dir, "recipe.yaml")
    if recipe.is_file():
        shutil.copy(recipe, folder)
    save_facts(run_facts(trainer), folder)
    pushes.start(
        _push_and_remove,
        folder,
        trainer.hub_model_id,
        run=Path(args.output_dir),
        also=also,
        message="Training in progress, "
        + (
            f"step {trainer.state.global_step}"
            if args.save_strategy == "steps"
            else f"epoch {int(trainer.state.epoch)}"
        ),
        revision=args.hub_revision,
        private=bool(args.hub_private_repo),
        token=args.hub_token,
    )


def failed_pushes(trainer: Any) -> list[str]:
    """Why background pushes failed, one sentence each; empty where none did."""
    pushes = getattr(trainer, "push_in_progress", None)
    return pushes.failures() if isinstance(pushes, BackgroundPushes) else []


def announce_failed_pushes(trainer: Any) -> None:
    """Say at the end of training that pushes failed, which `Trainer` keeps to itself."""
    failures = failed_pushes(trainer)
    if failures:
        print(
            f"{len(failures)} of {len(trainer.push_in_progress.jobs)} pushes during training failed. The last: {failures[-1]}"
        )


def _push_and_remove(folder: Path, repo: str, *, token: str | None, **what: Any) -> None:
    try:
        write_card(folder, repo=repo, token=token)
        push_folder(folder, repo, token=token, **what)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _link(checkpoint: Path, folder: Path) -> list[str]:
    """All that a checkpoint needs, in another folder without a second copy; returns the names."""
    names = [
        path.relative_to(checkpoint).as_posix() for path in sorted(checkpoint.rglob("*")) if path.is_file()
    ]
    names = [name for name in names if name not in (*_NOT_OF_A_CHECKPOINT, MANIFEST)]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(checkpoint / name, folder / name)
        except OSError:  # a file system without links
            shutil.copy2(checkpoint / name, folder / name)
    if is_committed(checkpoint):
        write_text(folder / MANIFEST, copied_manifest(checkpoint, names))
        names.append(MANIFEST)
    return names

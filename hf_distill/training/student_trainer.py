"""What `Trainer` does around a batch: raw rows in; checkpoints, and the student alone, out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..evaluation.results import EvaluationReport
from ..publishing.facts import confirm_report, report_digest
from ..rows.columns import indexed
from ..rows.views import VIEWS, TokenView
from .hidden import StudentWithProjections, bare
from .preparation import RowPreparation
from .pushes import announce_failed_pushes, create_card, open_for, push_checkpoint, push_trained


class StudentTrainer(Trainer):
    """A `Trainer` for raw rows, whose ``model`` may be a `StudentWithProjections`.

    Rows are prepared once, whichever way they come in. Whatever is saved is the student alone, loadable without this
    package, and no token of the Hub lies beside it; projections go into checkpoints, under a name that pushes leave out, and
    come back on resume and with the best model.

    Attributes:
        _prepare: Set before `Trainer` is initialised.
    """

    _prepare: RowPreparation
    _loaded: Any = None
    _repository: str | None = None

    @property
    def student(self) -> PreTrainedModel:
        """The student itself; ``model`` holds the projections of hidden losses besides, where there are any."""
        return bare(self.accelerator.unwrap_model(self.model))

    @property
    def student_view(self) -> TokenView:
        """How the student reads text."""
        return self._prepare.student_view

    # ---- Raw rows in, prepared rows to the loaders, the student's columns to the student ----

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """As `Trainer.get_eval_dataloader`; its persistent loaders are kept by name, and every dataset is "eval"."""
        if not isinstance(eval_dataset, str):
            eval_dataset = self._prepare(
                self.eval_dataset if eval_dataset is None else eval_dataset, "evaluation set"
            )
            if eval_dataset is not self._loaded:
                getattr(self, "_eval_dataloaders", {}).pop("eval", None)
            self._loaded = eval_dataset
        return super().get_eval_dataloader(eval_dataset)

    def _get_dataloader(self, dataset: Any, description: str, *args: Any, **options: Any) -> Any:
        return super()._get_dataloader(
            self._prepare(dataset, f"{description.lower()} set"), description, *args, **options
        )

    def _remove_unused_columns(self, dataset: Any, description: str | None = None) -> Any:
        return indexed(dataset)  # prepared rows have no other columns

    def _get_collator_with_removed_columns(self, data_collator: Any, description: str | None = None) -> Any:
        return data_collator

    def _student_inputs(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        # Without labels, or the model would compute a loss of its own; many models swallow what they do not know.
        self._set_signature_columns_if_needed()
        own = set(self._signature_columns) - {"labels", "label", "label_ids", "example_id", VIEWS}
        return {key: value for key, value in inputs.items() if key in own}

    def _set_signature_columns_if_needed(self) -> None:
        with self._student_as_model():
            super()._set_signature_columns_if_needed()

    # ---- The student out ----

    @contextlib.contextmanager
    def _student_as_model(self) -> Iterator[StudentWithProjections | None]:
        """`Trainer` finds the student in the place of the model; yields the module that holds projections, if one does."""
        model, inside = self.model, self.accelerator.unwrap_model(self.model)
        wrapper = inside if isinstance(inside, StudentWithProjections) else None
        self.model = model if wrapper is None else wrapper.student
        try:
            yield wrapper
        finally:
            self.model = model

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        # Trainer pickles its arguments beside the student, and a push uploads the folder.
        token, self.args.hub_token = self.args.hub_token, None
        try:
            with self._student_as_model() as wrapper:
                super()._save(
                    output_dir, state_dict if wrapper is None else wrapper.part_of_student(state_dict)
                )
        finally:
            self.args.hub_token = token
        if self.args.should_save and wrapper is not None and is_checkpoint(folder):
            wrapper.save_projections(folder, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:  # it keeps the whole model in files of its own
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        with self._student_as_model() as wrapper:
            super()._load_from_checkpoint(resume_from_checkpoint)
            if wrapper is not None:
                wrapper.load_projections(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
            return
        with self._student_as_model() as wrapper:
            super()._load_best_model()
            if wrapper is not None:
                wrapper.load_projections(Path(self.state.best_model_checkpoint))

    # ---- The Hub ----

    def train(self, *args: Any, **options: Any) -> Any:
        """As `Trainer.train`; pushes that failed meanwhile are named at its end."""
        self.older_report = report_digest(self.args.output_dir)
        output = super().train(*args, **options)
        announce_failed_pushes(self)
        return output

    def keep_report(self, report: EvaluationReport) -> None:
        """Write a report into ``output_dir``; it is of this training, even if it reads as the one that lay there before."""
        if self.is_world_process_zero():
            report.save(self.args.output_dir)
            confirm_report(self.args.output_dir)
        self.older_report = None

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """As `Trainer.init_hf_repo`, with a sentence for whatever cannot work."""
        open_for(self, token, private)

    def create_model_card(self, language: str | None = None, **options: Any) -> None:
        """As `Trainer.create_model_card`, of what really ran; what was said once for the card stays in it."""
        create_card(self, language=language, **options)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **options: Any,
    ) -> Any:
        """As `Trainer.push_to_hub`, by the list of files of docs/hub.md; also ``pull_request=True``.

        Raises:
            PushError: The push failed, with the command that finishes it.
        """
        where = {"token": token, "revision": revision, "private": private}
        return push_trained(self, message=commit_message, blocking=blocking, **where, **options)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        push_checkpoint(self, checkpoint_folder)


def is_checkpoint(folder: Path) -> bool:
    """Whether `Trainer` writes a checkpoint there, and not the finished student.

    Example:
        >>> is_checkpoint(Path("out/checkpoint-500")), is_checkpoint(Path("out"))
        (True, False)
    """
    return folder.name.startswith(PREFIX_CHECKPOINT_DIR + "-")

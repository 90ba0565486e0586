"""What `Trainer` does around a batch: raw rows in; checkpoints, and the student alone, out."""

from __future__ import annotations

import contextlib
import pickle
import signal
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..errors import (
    ConfigurationError,
    CorruptStateError,
    DataError,
    StoppedError,
    UnsafeFileError,
    in_a_line,
)
from ..evaluation.results import EvaluationReport
from ..lookup import suggest
from ..processes import Request, noted
from ..publishing.facts import confirm_report, report_digest
from ..rows.batches import ahead
from ..rows.collator import StudentCollator
from ..rows.columns import indexed
from ..rows.images import SeenThisEpoch
from ..rows.labels import count_labelled
from ..rows.views import VIEWS, View
from ..tasks.task import Task
from .commits import begin, checkpoints, commit, is_checkpoint, is_committed, problem, rotate, saving, size
from .finite import FiniteUpdates, refuse_not_finite
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
        numbers: Watches whether they are finite; set before `Trainer` is initialised.
        teachers: Those that are learnt from; none: labels alone are.
        task: Says what its labels are.
        student_labels: The student's label names.
        augment: What is done to training rows at random; None: nothing. `_augmented` collates them.
    """

    _prepare: RowPreparation
    numbers: FiniteUpdates
    teachers: Sequence[Any]
    task: Task
    student_labels: Sequence[str]
    _loaded: Any = None
    _learnt_from: dict[str, Any] | None = None
    _repository: str | None = None
    _saving: bool = False
    _to_push: str | None = None
    _unverified: bool = False
    augment: SeenThisEpoch | None = None
    _augmented: Any = None

    @property
    def student(self) -> PreTrainedModel:
        """The student itself; ``model`` holds the projections of hidden losses besides, where there are any."""
        # Unwrapping searches the disk for packages, which is too long for a step that has nothing to unwrap.
        plain = isinstance(self.model, (PreTrainedModel, StudentWithProjections))
        return bare(self.model if plain else self.accelerator.unwrap_model(self.model))

    @property
    def student_view(self) -> View:
        """How the student reads rows."""
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
        rows = self._prepare(dataset, f"{description.lower()} set")
        return ahead(super()._get_dataloader(rows, description, *args, **options))

    def get_train_dataloader(self) -> Any:
        """As `Trainer.get_train_dataloader`, of rows that are augmented where they are to be; others never are."""
        plain = self.data_collator
        self.data_collator = plain if self._augmented is None else self._augmented
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = plain

    def _run_epoch(self, *args: Any, **options: Any) -> Any:
        if self.augment is not None:  # before the epoch's first batch is made
            self.augment.begin_epoch(options["epoch"])
        return super()._run_epoch(*args, **options)

    @contextlib.contextmanager
    def student_alone(self) -> Iterator[None]:
        """While it lasts, rows are prepared for the student alone: no teacher reads, runs or stores anything of them."""
        prepare, collator = self._prepare, self.data_collator
        self._prepare = self._prepare.of_student(self.student_labels, self.task)
        self.data_collator = StudentCollator(getattr(collator, "student", collator))
        try:
            yield
        finally:
            self._prepare, self.data_collator = prepare, collator
            getattr(self, "_eval_dataloaders", {}).pop("eval", None)
            self._loaded = None

    def predict(
        self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> Any:
        """As `Trainer.predict`: the student answers, no teacher runs, and the loss is the cross-entropy with the labels."""
        with self.student_alone():
            return super().predict(test_dataset, ignore_keys, metric_key_prefix)

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
        if self._signature_columns is None:
            with self._student_as_model():
                super()._set_signature_columns_if_needed()

    # ---- Numbers that are not finite: Trainer only leaves them out of its logs, and trains and saves on ----

    def _inner_training_loop(self, *args: Any, **options: Any) -> Any:
        # Not in `train`: here a search's student is made, and a checkpoint's weights are loaded.
        self.numbers.begin()
        refuse_not_finite(self.model, "before the first step", "begin from other weights")
        return super()._inner_training_loop(*args, **options)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **options: Any) -> Tensor:
        """As `Trainer.training_step`; of a loss that is not finite nothing is logged, without waiting for it."""
        self._learnt_from = inputs
        loss = super().training_step(model, inputs, *args, **options)
        return torch.where(loss.isfinite(), loss, 0.0)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        # Trainer's last call before every update, and on_pre_optimizer_step is not given the norm.
        norm = super()._get_grad_norm(model, grad_norm)
        self.numbers.before_update(
            norm,
            self.state.global_step + 1,
            self.optimizer,
            scaled=self.accelerator.scaler is not None,
            model=self.model,
        )
        return norm

    def _maybe_log_save_evaluate(self, *args: Any, **options: Any) -> None:
        if self.control.should_log or self.control.should_evaluate or self.control.should_save:
            self.numbers.settle(self.model)
        super()._maybe_log_save_evaluate(*args, **options)

    # ---- The best checkpoint: Trainer looks a metric up that an evaluation may lack, and ends in a KeyError ----

    def _evaluate(self, *args: Any, **options: Any) -> dict[str, float]:
        try:
            metrics = super()._evaluate(*args, **options)
        except KeyError as error:  # a schedule that steps by the metric
            if "metric_for_best_model" not in str(error):
                raise
            self._refuse_choice(())
            raise
        self._refuse_choice(metrics)
        return metrics

    def _refuse_choice(self, metrics: Collection[str]) -> None:
        """Refuse to go on where the best checkpoint is chosen by what an evaluation does not have.

        Args:
            metrics: The names that it has.

        Raises:
            DataError: No row of the evaluation set has a label.
            ConfigurationError: There is no such metric.
        """
        chosen = self.args.metric_for_best_model
        if chosen is None or f"eval_{chosen.removeprefix('eval_')}" in metrics:
            return
        told = f"metric_for_best_model is {chosen!r} (load_best_model_at_end takes 'loss' where none is named), but "
        if count_labelled(self.eval_dataset) == 0:
            raise DataError(
                f"{told}no row of the evaluation set has a label, so an evaluation has no such figure: evaluate on rows with "
                "labels, or leave out both."
            )
        known = sorted(name.removeprefix("eval_") for name in metrics if name.startswith("eval_"))
        raise ConfigurationError(
            f"{told}an evaluation has only {', '.join(known) or 'other figures'}{suggest(chosen, known)}: choose one of these."
        )

    def _refuse_choice_without_labels(self) -> None:
        """The same before the first step, where it is sure."""
        chosen = self.args.metric_for_best_model
        if chosen is None or self.args.eval_strategy == "no" or count_labelled(self.eval_dataset) != 0:
            return
        # Without labels there is what the teachers make of the loss, where they are, and nothing else.
        if not chosen.removeprefix("eval_").startswith("loss") or not self.teachers:
            self._refuse_choice(())

    def _refuse_student_without_answers(self) -> None:
        refuse_not_finite(self.model, f"after step {self.state.global_step}")
        # An update may be finite and so large that no forward after it is: nobody would see that before the next one.
        if self._learnt_from is None or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return
        inputs, was_training = self._student_inputs(self._learnt_from), self.model.training
        with torch.no_grad(), self.accelerator.autocast():
            logits = self.student.eval()(**self._prepare_inputs(inputs)).logits
        self.model.train(was_training)
        self.numbers.refuse_answers(logits, self.state.global_step)

    def _finalize_training(self, *args: Any, **options: Any) -> Any:
        self.numbers.end(self.model)
        self._refuse_student_without_answers()
        self._learnt_from = None
        return super()._finalize_training(*args, **options)

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
        self.numbers.settle(self.model)
        refuse_not_finite(self.model, f"after step {self.state.global_step}")
        # Trainer pickles its arguments beside the student, and a push uploads the folder.
        token, self.args.hub_token = self.args.hub_token, None
        run = folder.parent if is_checkpoint(folder) else Path(self.args.output_dir)
        try:
            with saving(folder, self._bytes_of_student(), run), self._student_as_model() as wrapper:
                super()._save(
                    output_dir, state_dict if wrapper is None else wrapper.part_of_student(state_dict)
                )
        finally:
            self.args.hub_token = token
        if self.args.should_save and wrapper is not None and is_checkpoint(folder):
            wrapper.save_projections(folder, state_dict)

    # ---- Checkpoints that count ----

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As `Trainer._save_checkpoint`; the checkpoint counts once all of it is on the disk, and older ones go after that.

        `Trainer` writes over what lies there, pushes and rotates before anything is synced, and keeps the newest by the
        folders' times, whole or not: a process that is killed meanwhile can leave none. So its push and its rotation wait
        here until the manifest is there.
        """
        self.numbers.settle(self.model)
        self._refuse_student_without_answers()
        folder = Path(self._get_output_dir(trial=trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        before = next(filter(is_committed, checkpoints(folder.parent)), None)
        needed = (size(before) if before else 0) or 3 * self._bytes_of_student()
        limit, self._to_push = self.args.save_total_limit, None
        with saving(folder, needed, folder.parent):
            if self.args.should_save:
                begin(folder)
            self.accelerator.wait_for_everyone()
            self.args.save_total_limit, self._saving = None, True
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self.args.save_total_limit, self._saving = limit, False
            self.accelerator.wait_for_everyone()  # each process has put its own random state there
            if self.args.should_save:
                commit(folder, self.state.global_step)
        self.accelerator.wait_for_everyone()
        if self._to_push is not None:
            push_checkpoint(self, self._to_push)
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            rotate(folder.parent, limit, [folder, *([] if best is None else [Path(best)])])

    def _bytes_of_student(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.student.state_dict().values())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with reading(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with reading(checkpoint):
            super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with reading(checkpoint):
            super()._load_rng_state(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:  # it keeps the whole model in files of its own
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        with reading(resume_from_checkpoint), self._student_as_model() as wrapper:
            super()._load_from_checkpoint(resume_from_checkpoint)
            if wrapper is not None:
                wrapper.load_projections(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
            return
        best = Path(self.state.best_model_checkpoint)
        damage = problem(best)
        if damage is not None and not self._unverified:
            raise CorruptStateError(
                f"The best checkpoint of the training, {best}, is not what was saved ({damage}), so its student is not "
                "loaded: go on with --resume (resume_from_checkpoint=True), which takes an older one."
            )
        with reading(str(best)), self._student_as_model() as wrapper:
            super()._load_best_model()
            if wrapper is not None:
                wrapper.load_projections(Path(self.state.best_model_checkpoint))

    # ---- The Hub ----

    def train(self, *args: Any, **options: Any) -> Any:
        """As `Trainer.train`; pushes that failed meanwhile are named at its end.

        SIGTERM and SIGINT end it after the step that runs and a checkpoint of it.

        Raises:
            StoppedError: A signal did.
        """
        self.older_report = report_digest(self.args.output_dir)
        with noted() as request:
            stop = StopAfterStep(request)
            self.add_callback(stop)
            try:
                output = super().train(*args, **options)
            except StoppedError:
                self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
                raise
            finally:
                self.remove_callback(stop)
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
        if self._saving:
            self._to_push = checkpoint_folder
        else:
            push_checkpoint(self, checkpoint_folder)


class StopAfterStep(TrainerCallback):
    """Ends a training that was told to stop, on all processes after the same step and its checkpoint.

    Args:
        request: Filled in by a signal of this process.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self._group: Any = None
        self._number = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Prepare for asking the other processes."""
        if args.world_size > 1:
            # On the processors, beside whatever the devices are doing: to ask there would wait for them at every step.
            self._group = torch.distributed.new_group(backend="gloo")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put away what the processes were asked by."""
        if self._group is not None:
            torch.distributed.destroy_process_group(self._group)
            self._group = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a checkpoint where a process was told to stop."""
        self._number = self.request.number
        if self._group is not None:
            told = torch.tensor(self._number)
            torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX, group=self._group)
            self._number = int(told)
        if self._number:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the training, where it was to be."""
        if not self._number:
            return
        folder = Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
        raise StoppedError(
            f"Stopped by {signal.Signals(self._number).name} after step {state.global_step} of {state.max_steps}: "
            f"{folder} is saved, and train(resume_from_checkpoint=True) goes on from it.",
            number=self._number,
            checkpoint=str(folder),
        )


@contextlib.contextmanager
def reading(checkpoint: str | None) -> Iterator[None]:
    """Say in a sentence which checkpoint cannot be read, and whether it is damage or something that is no tensor.

    Raises:
        UnsafeFileError: A file has objects that could run code, which are not loaded.
        CorruptStateError: A file is damaged.
    """
    try:
        yield
    except pickle.UnpicklingError as error:
        raise UnsafeFileError(
            f"{checkpoint} is not loaded: a file in it has more than tensors and numbers, which could run code "
            f"({in_a_line(error, 200)}); go on from a checkpoint that you saved yourself."
        ) from error
    except (SafetensorError, EOFError, OSError, RuntimeError) as error:
        torn = isinstance(error, (SafetensorError, EOFError, OSError))
        if checkpoint is None or not (torn or "PytorchStreamReader" in str(error)):
            raise
        raise CorruptStateError(
            f"{checkpoint} cannot be read ({in_a_line(error, 200)}): go on from another checkpoint."
        ) from error

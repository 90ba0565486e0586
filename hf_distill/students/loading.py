"""The student: where it comes from, and the names of its labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from transformers import PretrainedConfig, PreTrainedModel

from ..errors import ConfigurationError, DataError
from ..rows.views import View
from ..tasks.task import Task
from ..teachers.checkpoints import load_config, load_processor, load_with_head
from ..teachers.fitting_parts import open_view, refuse_label_map
from .adapters import add_adapter

if TYPE_CHECKING:
    from peft import PeftConfig


def student_config(student: str | PreTrainedModel) -> PretrainedConfig:
    """The config of a student given as a model, id or folder.

    Raises:
        DataError: There is none.
    """
    if not isinstance(student, str):
        refuse_label_map(student.config, "The student")
        return student.config
    config = load_config(student, what="The student")
    refuse_label_map(config, "The student")
    return config


class OpenedStudent(NamedTuple):
    """A student that is ready to learn.

    Attributes:
        model: Its config names the labels.
        view: How it reads rows.
        label_names: The labels, in the order of its logits.
    """

    model: PreTrainedModel
    view: View
    label_names: tuple[str, ...]


def open_student(
    model: str | PreTrainedModel,
    processor: Any,
    rows: Any,
    *,
    task: Task,
    label_column: str,
    label_names: Sequence[str] | None,
    max_length: int | None,
    teachers: Sequence[Any] = (),
    peft_config: PeftConfig | None = None,
) -> OpenedStudent:
    """The student of a run: loaded where it is given by id or folder, its labels named, its processor found.

    Args:
        model: Id, folder or model.
        processor: A tokenizer or image processor, id or folder; None: the one stored with a student given by id or folder.
        rows: Raw rows, which may name the labels; or None.
        task: Its auto class loads the model.
        label_column: Of the rows.
        label_names: What the user says of the labels, see `Task.label_names`.
        max_length: Longest input in tokens; None: what tokenizer and positions allow.
        teachers: Whose models it must not be.
        peft_config: Of its adapter; None: all of it is trained.

    Raises:
        ConfigurationError: Nothing says which processor; it is a teacher; the adapter does not fit.
        DataError: It cannot be loaded, or its head was trained for other labels or another order of them.
    """
    processor = found_processor(model, processor, task, what="The student")
    config = student_config(model)
    names = task.label_names(label_names, rows, label_column, config)
    task.refuse_other_labels(config, names, "The student")
    if isinstance(model, str):
        model = load_student(model, names, task)
    if any(getattr(teacher, "model", None) is model for teacher in teachers):
        raise ConfigurationError(
            "The student is one of the teachers, which are frozen: load it a second time."
        )
    model = adapted(model, names, peft_config, task)
    return OpenedStudent(model, open_view(model, processor, max_length, what="The student", task=task), names)


def found_processor(model: str | PreTrainedModel | None, given: Any, task: Task, *, what: str) -> Any:
    """A student's tokenizer or image processor: the one that is given, or the one that lies with it.

    Args:
        model: Id, folder or model.
        given: A processor, id or folder; or None.
        task: Says what rows hold.
        what: Who it is for, for messages.

    Raises:
        ConfigurationError: Nothing says which.
        DataError: It cannot be loaded.
    """
    if isinstance(given, str) or (given is None and isinstance(model, str)):
        return load_processor(given or model, task.content, what=what)
    if given is None and task.content.processor_class is not None:
        kind = {"AutoTokenizer": "tokenizer", "AutoImageProcessor": "image processor"}
        raise ConfigurationError(
            f"processing_class= is missing: pass the student's {kind.get(task.content.processor_class, 'processor')} (it is read "
            "from the model only where that is given by id or folder)."
        )
    return given


def adapted(
    model: PreTrainedModel, label_names: Sequence[str], peft_config: PeftConfig | None, task: Task
) -> PreTrainedModel:
    """A student with the labels named in its config, and with its adapter, if it is to have one.

    Raises:
        DataError: The student has another number of outputs.
        ConfigurationError: The adapter does not fit.
    """
    head = task.head(label_names)
    if model.config.num_labels != head["num_labels"]:
        raise DataError(
            f"The student has {model.config.num_labels} outputs, but there are {len(label_names)} labels "
            f"{list(label_names)}: load it with num_labels={len(label_names)}, or correct label_names=."
        )
    model.config.update(head)  # whoever loads it later knows them
    return model if peft_config is None else add_adapter(model, peft_config, task)


def load_student(id_or_path: str, label_names: Sequence[str], task: Task) -> PreTrainedModel:
    """A student from the Hub or a folder, with a head for the labels: the checkpoint's, or a fresh one.

    Args:
        id_or_path: Hub id or folder.
        label_names: The label names in the order of its logits.
        task: Its auto class loads the model.

    Raises:
        DataError: It cannot be loaded, or has a head of another size.
    """
    return load_with_head(
        id_or_path,
        task,
        what="The student",
        require_head=False,
        dtype="float32",  # a checkpoint stored in half precision would be trained in it; args.bf16 and fp16 autocast
        **task.head(label_names),
    )


def load_trained(
    given: str | PreTrainedModel, label_names: Sequence[str], task: Task, what: str
) -> PreTrainedModel:
    """A finished student or baseline whose logits are in the order of the labels.

    Args:
        given: A model, id or folder.
        label_names: The label names, in the order that is expected of its logits.
        task: Its auto class loads the model.
        what: Who it is, for messages: "The baseline".

    Raises:
        DataError: It cannot be loaded, has no trained head, or answers in another order.
    """
    model = load_with_head(given, task, what=what, require_head=True) if isinstance(given, str) else given
    refuse_label_map(model.config, what)
    if model.config.num_labels != task.head(label_names)["num_labels"]:
        raise DataError(
            f"{what}: its head has {model.config.num_labels} outputs, but there are {len(label_names)} labels "
            f"{list(label_names)}: give a model with as many, or correct label_names=."
        )
    task.refuse_other_labels(model.config, label_names, what)
    return model

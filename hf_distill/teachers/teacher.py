"""Teachers: frozen models with their own processors, run over their own views of a batch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import ConfigurationError, DataError, LabelNameError
from ..fusion.alignment import TeacherOutputs, unclear_names
from ..lookup import suggest
from ..rows.views import WORD_OF, View, named_inputs
from ..tasks import build_task, refuse_other_kind
from ..tasks.task import Task, output_names, refuse_contradiction
from .checkpoints import load_processor, load_with_head, refuse_other_task
from .fitting_parts import name_outputs, open_view, refuse_label_map
from .hub_ids import loaded_commit
from .over_base import load_over_base
from .states import Wanted, Words, observe


@runtime_checkable
class TeacherSource(Protocol):
    """Whatever can say a teacher's logits for a batch: a live model, stored outputs, a service.

    Two attributes are asked for where there are some: ``task``, a `Task`, where it answers something else than the student
    learns, and ``convert``, as of `Teacher`.

    Attributes:
        name: Unique among the teachers of a run.
        label_names: The labels of the logits, in their order.
        view: How rows reach the teacher; None where it needs nothing of them but their ids.
    """

    name: str
    label_names: tuple[str, ...]
    view: View | None

    def __call__(self, view: Mapping[str, Tensor], example_id: Tensor) -> TeacherOutputs:
        """Run the teacher.

        Args:
            view: The inputs of its view, each (B, …); empty where it has none.
            example_id: (B,) int64, a hash of each row's content columns.

        Returns:
            `TeacherOutputs` with logits (B, Ck) on the device of ``example_id``.
        """
        ...


class Teacher:
    """A live teacher: a frozen model with a head, its processor, and the names of its labels.

    The model is put into evaluation mode and its parameters stop requiring gradients; it is never trained, wrapped
    or saved.

    Args:
        model: A model with the task's head.
        tokenizer: Its tokenizer; for other content than text what stands in its place, such as an image processor.
        name: What logs and reports call it; None: the last part of the id it was loaded from.
        labels: Where the checkpoint's names are missing or wrong: ``{its name: right name}``, or all names in the
            order of its logits. A name given as itself is another class than one of the student's that is nearly called so.
        max_length: Longest input in tokens; None: what tokenizer and positions allow.
        task: The task, by name or as an object.
        convert: Where the student's task is of another kind, how this teacher's outputs become the student's: ``{"edges": […],
            "spread": …, "order": […]}`` of a score as classes, ``{"means": {class: score}}`` of classes as a score; None: as
            held-out rows say.

    Raises:
        DataError: The model has the head of another task, or its labels cannot be named as asked.
        ConfigurationError: There is no such task, nothing names the teacher, or ``max_length`` is more than its positions.

    Example:
        >>> teacher = Teacher(bert, bert_tokenizer, name="bert")
        >>> teacher.label_names
        ('negative', 'positive')
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any = None,
        *,
        name: str | None = None,
        labels: Mapping[str, str] | Sequence[str] | None = None,
        max_length: int | None = None,
        task: str | Task = "text-classification",
        convert: Mapping[str, Any] | None = None,
    ) -> None:
        self.task, self.convert = build_task(task), convert
        self.source: str = getattr(model.config, "_name_or_path", "") or ""
        self.revision: str | None = None
        name = name or Path(self.source).name
        if not name:
            raise ConfigurationError(
                "A teacher has no name, since its model was not loaded from anywhere: pass name=."
            )
        self.name = name
        what = f"Teacher {name!r}"
        name_outputs(model, labels)
        refuse_label_map(model.config, what)
        refuse_other_task(model, self.task, what)
        view = open_view(model, tokenizer, max_length, what=what, task=self.task)
        self.label_names = _named(model, labels, name)
        self.said_labels = said_labels(labels)
        self.place: str | None = None
        self.view = view
        self.model = model.eval().requires_grad_(False)
        self._parameters = named_inputs(model)

    @classmethod
    def from_pretrained(
        cls,
        id_or_path: str,
        *,
        adapter: str | None = None,
        revision: str | None = None,
        name: str | None = None,
        labels: Mapping[str, str] | Sequence[str] | None = None,
        max_length: int | None = None,
        dtype: str | torch.dtype | None = None,
        trust_remote_code: bool = False,
        task: str | Task = "text-classification",
        convert: Mapping[str, Any] | None = None,
    ) -> Teacher:
        """Load a teacher from the Hub or a folder, from safetensors only.

        Args:
            id_or_path: Hub id or folder.
            adapter: Hub id or folder of a LoRA adapter over it; teachers over one base share its weights in memory.
            revision: Branch, tag or commit of the Hub repository.
            name: What logs and reports call it; None: the last part of the id, of the adapter's where there is one.
            labels: As for `Teacher`.
            max_length: As for `Teacher`.
            dtype: Type of the weights; None: that of the checkpoint.
            trust_remote_code: Whether code from the repository may run.
            task: The task, by name or as an object.
            convert: As for `Teacher`.

        Raises:
            DataError: Nothing can be loaded there, or the checkpoint lacks the task's head.
            ConfigurationError: There is no such task.
            UnsafeFileError: The weights are not stored as safetensors.

        Example:
            >>> Teacher.from_pretrained(bert_folder, name="bert").label_names
            ('negative', 'positive')
        """
        task = build_task(task)
        name = name or Path(adapter or id_or_path).name
        what, options = f"Teacher {name!r}", {"revision": revision, "trust_remote_code": trust_remote_code}
        types = {"dtype": "auto" if dtype is None else dtype}
        if adapter is None:
            model = load_with_head(id_or_path, task, what=what, require_head=True, **types, **options)
            tokenizer = load_processor(id_or_path, task.content, what=what, **options)
        else:
            model, tokenizer = load_over_base(id_or_path, adapter, task, what=what, **types, **options)
        teacher = cls(
            model, tokenizer, name=name, labels=labels, max_length=max_length, task=task, convert=convert
        )
        teacher.revision = loaded_commit(adapter or id_or_path, None if adapter else revision)
        if adapter is not None:  # the model's config speaks of the base
            teacher.source = adapter
        return teacher

    def __call__(self, view: Mapping[str, Tensor], example_id: Tensor | None = None) -> TeacherOutputs:
        """Logits for a batch; see `TeacherSource`."""
        return self.run(view)

    def run(
        self, view: Mapping[str, Tensor], wanted: Sequence[Wanted] = (), words: int = 0
    ) -> TeacherOutputs:
        """Logits, and states of some layers on request.

        Args:
            view: The inputs of its view, each (B, L), and `WORD_OF` where states of words are wanted.
            wanted: Which states; layers may be counted from the end, -1 being the last.
            words: W, the most words that a row has.
        """
        # Many forwards swallow inputs they do not know in **kwargs; only named parameters mean something to them.
        inputs = {key: value for key, value in view.items() if key in self._parameters}
        with torch.inference_mode():
            of_view = Words(view[WORD_OF], words) if WORD_OF in view else None
            outputs, states = observe(self.model, self.model, wanted, inputs, of_view)
        # Tensors of the inference mode cannot take part in the student's graph, a copy can.
        copies = {
            want: tuple(part.clone() for part in state) if isinstance(state, tuple) else state.clone()
            for want, state in states.items()
        }
        return TeacherOutputs(outputs.logits.clone(), copies)

    def to(self, device: torch.device) -> Teacher:
        """Move the model."""
        self.model.to(device)
        return self

    @property
    def num_parameters(self) -> int:
        """How many parameters the model has."""
        return self.model.num_parameters()

    def __repr__(self) -> str:
        return f"Teacher({self.name!r}, {type(self.model).__name__}, labels={list(self.label_names)})"


@dataclass(frozen=True)
class TeacherSpec:
    """A teacher that is loaded when it is needed; the fields are the arguments of `Teacher.from_pretrained`.

    Args:
        task: What it answers, where that is not what the student learns.
        place: Where a recipe names it, ``teachers.models.2``, for messages.
    """

    id_or_path: str
    revision: str | None = None
    name: str | None = None
    labels: Mapping[str, str] | Sequence[str] | None = None
    max_length: int | None = None
    dtype: str | torch.dtype | None = None
    trust_remote_code: bool = False
    adapter: str | None = None
    task: str | Task | None = None
    convert: Mapping[str, Any] | None = None
    place: str | None = field(default=None, compare=False)

    @property
    def source(self) -> str:
        """Where the teacher itself lies: its adapter, where it has one."""
        return self.adapter or self.id_or_path

    @property
    def called(self) -> str:
        """The teacher's name."""
        return self.name or Path(self.source).name

    def load(self, task: str | Task) -> Teacher:
        """The live teacher.

        Args:
            task: What the student learns, and this teacher answers where it says nothing else.

        Raises:
            ConfigurationError: Nothing is known by which its answers become the student's.
        """
        given = {
            part.name: getattr(self, part.name) for part in fields(self) if part.name not in ("place", "task")
        }
        refuse_other_kind(self.task or task, task, self.called)
        try:
            teacher = Teacher.from_pretrained(**given, task=self.task or task)
        except LabelNameError as error:
            raise error.placed(self.place) from None
        teacher.place = self.place
        return teacher


def load_teacher(given: str | TeacherSpec | TeacherSource, task: str | Task) -> TeacherSource:
    """A teacher as ``teachers=`` names it: an id, folder or spec is loaded, anything else is one already."""
    spec = TeacherSpec(os.fspath(given)) if isinstance(given, (str, os.PathLike)) else given
    teacher = spec.load(task) if isinstance(spec, TeacherSpec) else spec
    if not isinstance(teacher, TeacherSource):
        raise ConfigurationError(
            f"teachers= holds a {type(teacher).__name__}, which is no teacher: give ids, folders, or "
            "Teacher(model, tokenizer, name=…)."
        )
    return teacher


def said_labels(labels: Mapping[str, str] | Sequence[str] | None) -> frozenset[str]:
    """Of which of a teacher's labels the user says that they are meant as they are.

    Example:
        >>> said_labels({"LABEL_0": "negative", "NUM": "NUM"})
        frozenset({'NUM'})
    """
    return (
        frozenset(key for key, name in labels.items() if key == name)
        if isinstance(labels, Mapping)
        else frozenset()
    )


def labels_on_disk(spec: TeacherSpec) -> tuple[str, ...] | None:
    """The names of a teacher's logits, by the files of its folder alone.

    Args:
        spec: The teacher.

    Returns:
        None where they are not said there: for ids of the Hub, for adapters, which bring a head of their own, and for
        folders whose config names no labels.

    Example:
        >>> labels_on_disk(TeacherSpec(bert_folder))
        ('negative', 'positive')
    """
    if spec.adapter is not None:
        return None
    try:
        config = json.loads(Path(spec.id_or_path, "config.json").read_text(encoding="utf-8"))
        names = {int(i): str(name) for i, name in config["id2label"].items()}
        return _renamed([names[i] for i in range(len(names))], spec.labels, spec.called)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def stated_labels(spec: TeacherSpec) -> tuple[str, ...] | None:
    """As `labels_on_disk`, and the placeholders where a config leaves them out, as transformers writes it for two labels.

    Args:
        spec: The teacher.
    """
    found = labels_on_disk(spec)
    if found is not None or spec.adapter is not None:
        return found
    try:
        config = json.loads(Path(spec.id_or_path, "config.json").read_text(encoding="utf-8"))
        unnamed = "id2label" not in config and any("For" in name for name in config["architectures"])
        return _renamed(["LABEL_0", "LABEL_1"], spec.labels, spec.called) if unnamed else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _named(
    model: PreTrainedModel, labels: Mapping[str, str] | Sequence[str] | None, teacher: str
) -> tuple[str, ...]:
    """The names of the logits, after what the user says of them."""
    if labels is None:
        try:
            refuse_contradiction(model.config, f"Teacher {teacher!r}", "labels=")
        except DataError as error:
            before, _, after = str(error).partition("labels=")
            raise LabelNameError.of(before, {}, after) from None
    return _renamed(list(output_names(model.config)), labels, teacher)


def _renamed(
    own: list[str], labels: Mapping[str, str] | Sequence[str] | None, teacher: str
) -> tuple[str, ...]:
    if labels is None:
        names = own
    elif isinstance(labels, Mapping):
        unknown = [key for key in labels if key not in own]
        if unknown:
            raise LabelNameError.of(
                f"Teacher {teacher!r}: ",
                {},
                f" renames {unknown[0]!r}, but its labels are {own}{suggest(unknown[0], own)}.",
            )
        names = [str(labels.get(label, label)) for label in own]
    else:
        names = [str(label) for label in labels]
        if isinstance(labels, str) or len(names) != len(own):
            raise LabelNameError.of(
                f"Teacher {teacher!r}: ",
                {},
                f" gives {len(names)} names, but it has {len(own)} outputs: {own}.",
            )
    if unclear := unclear_names(names):
        raise LabelNameError.of(
            f"Teacher {teacher!r}: its labels {names} are not all different names: {unclear}; name them with ",
            {},
            ".",
        )
    return tuple(names)

"""Teachers: frozen models with their own tokenizers, run over their own views of a batch."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .alignment import LabelMap, TeacherBatch, TeacherOutputs, align, check_coverage
from .errors import ConfigurationError, DataError, UnsafeFileError
from .fusion import Fusion
from .lookup import suggest
from .tasks import TASKS, Task
from .views import VIEWS, TokenView, View, token_limit


@runtime_checkable
class TeacherSource(Protocol):
    """Whatever can say a teacher's logits for a batch: a live model, stored outputs, a service.

    Attributes:
        name: Unique among the teachers of a run.
        label_names: The labels of the logits, in their order.
        view: How the text reaches the teacher; None where it needs no tokens.
    """

    name: str
    label_names: tuple[str, ...]
    view: View | None

    def __call__(self, view: Mapping[str, Tensor], example_id: Tensor) -> TeacherOutputs:
        """Run the teacher.

        Args:
            view: The inputs of its view, each (B, L); empty where it has none.
            example_id: (B,) int64, a hash of each row's text columns.

        Returns:
            `TeacherOutputs` with logits (B, Ck) on the device of ``example_id``.
        """
        ...


class Teacher:
    """A live teacher: a frozen model with a head, its tokenizer, and the names of its labels.

    The model is put into evaluation mode and its parameters stop requiring gradients; it is never trained, wrapped
    or saved.

    Args:
        model: A model with the task's head.
        tokenizer: Its tokenizer.
        name: What logs and reports call it; None: the last part of the id it was loaded from.
        labels: Where the checkpoint's names are missing or wrong: ``{its name: right name}``, or all names in the
            order of its logits.
        max_length: Longest input in tokens; None: what tokenizer and positions allow.
        task: The task, by name or as an object.

    Raises:
        DataError: The model has the head of another task, or its labels cannot be named as asked.
        ConfigurationError: Nothing names the teacher, or ``max_length`` is more than its positions.

    Example:
        >>> teacher = Teacher(bert, bert_tokenizer, name="bert")
        >>> teacher.label_names
        ('negative', 'positive')
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str | None = None,
        labels: Mapping[str, str] | Sequence[str] | None = None,
        max_length: int | None = None,
        task: str | Task = "text-classification",
    ) -> None:
        self.task = TASKS[task] if isinstance(task, str) else task
        self.source: str = getattr(model.config, "_name_or_path", "") or ""
        self.revision: str | None = getattr(model.config, "_commit_hash", None)
        name = name or Path(self.source).name
        if not name:
            raise ConfigurationError(
                "A teacher has no name, since its model was not loaded from anywhere: pass name=."
            )
        self.name = name
        _refuse_other_task(model, self.task, f"Teacher {name!r}")
        if tokenizer.pad_token_id is None:
            raise DataError(
                f"Teacher {name!r}: its tokenizer has no padding token, so rows cannot be batched: set "
                "tokenizer.pad_token and model.config.pad_token_id before passing it."
            )
        self.label_names = _named(model, labels, name)
        limit = token_limit(model, tokenizer)
        if max_length is not None and limit is not None and max_length > limit:
            raise ConfigurationError(
                f"Teacher {name!r}: max_length is {max_length}, but it takes at most {limit} tokens."
            )
        self.view = TokenView(tokenizer, max_length or limit)
        self.model = model.eval().requires_grad_(False)
        self._parameters = frozenset(inspect.signature(model.forward).parameters)

    @classmethod
    def from_pretrained(
        cls,
        id_or_path: str,
        *,
        revision: str | None = None,
        name: str | None = None,
        labels: Mapping[str, str] | Sequence[str] | None = None,
        max_length: int | None = None,
        dtype: str | torch.dtype | None = None,
        trust_remote_code: bool = False,
        task: str | Task = "text-classification",
    ) -> Teacher:
        """Load a teacher from the Hub or a folder, from safetensors only.

        Args:
            id_or_path: Hub id or folder.
            revision: Branch, tag or commit of the Hub repository.
            name: What logs and reports call it; None: the last part of the id.
            labels: As for `Teacher`.
            max_length: As for `Teacher`.
            dtype: Type of the weights; None: that of the checkpoint.
            trust_remote_code: Whether code from the repository may run.
            task: The task, by name or as an object.

        Raises:
            DataError: Nothing can be loaded there, or the checkpoint lacks the task's head.
            UnsafeFileError: The weights are not stored as safetensors.

        Example:
            >>> Teacher.from_pretrained(bert_folder, name="bert").label_names
            ('negative', 'positive')
        """
        task = TASKS[task] if isinstance(task, str) else task
        name = name or Path(id_or_path).name
        model = load_with_head(
            id_or_path,
            task,
            what=f"Teacher {name!r}",
            require_head=True,
            revision=revision,
            dtype="auto" if dtype is None else dtype,
            trust_remote_code=trust_remote_code,
        )
        tokenizer = load_tokenizer(
            id_or_path, what=f"Teacher {name!r}", revision=revision, trust_remote_code=trust_remote_code
        )
        return cls(model, tokenizer, name=name, labels=labels, max_length=max_length, task=task)

    def __call__(self, view: Mapping[str, Tensor], example_id: Tensor | None = None) -> TeacherOutputs:
        """Logits for a batch; see `TeacherSource`."""
        return self.run(view)

    def run(self, view: Mapping[str, Tensor], hidden_states: Sequence[int] = ()) -> TeacherOutputs:
        """Logits, and pooled hidden states on request.

        Args:
            view: The inputs of its view, each (B, L).
            hidden_states: Layers, as indices into the model's ``hidden_states`` (0: embeddings, -1: the last layer),
                whose mean over the valid positions is wanted.
        """
        # Many forwards swallow inputs they do not know in **kwargs; only named parameters mean something to them.
        inputs = {key: value for key, value in view.items() if key in self._parameters}
        with torch.inference_mode():
            outputs = self.model(**inputs, **({"output_hidden_states": True} if hidden_states else {}))
            pooled = None
            if hidden_states:
                states = torch.stack([outputs.hidden_states[layer] for layer in hidden_states], 1).float()
                valid = view.get("attention_mask", torch.ones(states.shape[::2], device=states.device))
                valid = valid[:, None, :, None].float()  # (B, 1, L, 1)
                pooled = (states * valid).sum(2) / valid.sum(2).clamp(min=1)
        # Tensors of the inference mode cannot take part in the student's graph, a copy can.
        return TeacherOutputs(outputs.logits.clone(), None if pooled is None else pooled.clone())

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


class TeacherPool:
    """All teachers of a run, over one batch: forward of each on its own view, aligned by label names.

    Args:
        teachers: The teachers; names must differ.
        student_labels: The student's C label names.
        fusion: The fusion their outputs go to; its weights, if it has any, say which teachers are heard at all.
        placement: Where live models wait: ``resident`` on the device; ``swap`` in CPU memory, one at a time on the
            device; ``auto`` chooses by an estimate of their bytes against what is free, and prints it.

    Raises:
        DataError: Labels that cannot be matched, or names used twice.
        ConfigurationError: The fusion has not one weight per teacher.

    Example:
        >>> pool = TeacherPool([teacher], ("positive", "negative"))
        >>> pool.label_maps[0].columns
        (1, 0)
    """

    def __init__(
        self,
        teachers: Sequence[TeacherSource],
        student_labels: Sequence[str],
        fusion: Fusion | None = None,
        *,
        placement: str = "resident",
    ) -> None:
        if placement not in ("resident", "swap", "auto"):
            raise ConfigurationError(f"Teacher placement is {placement!r}: choose resident, swap or auto.")
        self.placement = placement
        self.teachers = list(teachers)
        names = [teacher.name for teacher in self.teachers]
        for name in names:
            if names.count(name) > 1:
                raise DataError(
                    f"{names.count(name)} teachers are called {name!r}; reports could not tell them apart: give each "
                    f'its own name, e.g. Teacher.from_pretrained(…, name="{name}-2").'
                )
        self.label_maps = [
            LabelMap.match(t.label_names, student_labels, teacher=t.name) for t in self.teachers
        ]
        weights = getattr(fusion, "weights", None)
        if weights is not None and len(weights) != len(names):
            raise ConfigurationError(
                f"The fusion has {len(weights)} weights for {len(names)} teachers ({', '.join(names)}): "
                "give one per teacher, in their order."
            )
        heard = [m for k, m in enumerate(self.label_maps) if weights is None or weights[k] > 0]
        if heard:
            check_coverage(heard, weights)
        # (C,) True where a teacher that is heard knows the class; of other classes nothing can be learnt here.
        self.covered = tuple(any(m.columns[c] is not None for m in heard) for c in range(len(student_labels)))
        self._device: torch.device | None = None
        self.views: dict[str, View] = {}
        self._view_of: dict[str, str] = {}
        first: dict[str, str] = {}
        for teacher in self.teachers:
            if teacher.view is not None:
                name = first.setdefault(teacher.view.key, teacher.name)
                self._view_of[teacher.name] = name
                self.views.setdefault(name, teacher.view)

    def __call__(self, inputs: Mapping[str, Tensor | Mapping[str, Mapping[str, Tensor]]]) -> TeacherBatch:
        """Run every teacher and align.

        Args:
            inputs: A batch of `MultiTeacherCollator`.

        Returns:
            `TeacherBatch` with logits (K, N, C).
        """
        views = inputs[VIEWS]
        outputs = [
            teacher(
                views[self._view_of[teacher.name]] if teacher.view is not None else {}, inputs["example_id"]
            )
            for teacher in self.teachers
        ]
        return align(outputs, self.label_maps)

    def to(self, device: torch.device) -> TeacherPool:
        """Say where teachers that are models run; a call that changes nothing costs nothing."""
        if device != self._device:
            self._device = device
            live = [teacher for teacher in self.teachers if isinstance(teacher, Teacher)]
            if self.placement == "auto" and live:
                self.placement = _placement(sum(t.model.get_memory_footprint() for t in live), device)
            for teacher in live:
                teacher.to(torch.device("cpu") if self.placement == "swap" else device)
        return self

    @contextlib.contextmanager
    def _at_work(self, teacher: TeacherSource) -> Iterator[None]:
        if self.placement != "swap" or not isinstance(teacher, Teacher) or self._device is None:
            yield
            return
        teacher.to(self._device)
        try:
            yield
        finally:
            teacher.to(torch.device("cpu"))


def _placement(needed: int, device: torch.device) -> str:
    """Resident while the teachers leave half of the free device memory to the student and its activations."""
    if device.type != "cuda":
        return "resident"  # they would wait in the same memory
    free, _ = torch.cuda.mem_get_info(device)
    chosen = "resident" if needed <= free / 2 else "swap"
    print(f"Teachers take {needed / 1e9:.2f} GB of {free / 1e9:.2f} GB free on {device}: placement {chosen}.")
    return chosen


@dataclass(frozen=True)
class TeacherSpec:
    """A teacher that is loaded when it is needed; the fields are the arguments of `Teacher.from_pretrained`."""

    id_or_path: str
    revision: str | None = None
    name: str | None = None
    labels: Mapping[str, str] | Sequence[str] | None = None
    max_length: int | None = None
    dtype: str | torch.dtype | None = None
    trust_remote_code: bool = False

    def load(self, task: str | Task) -> Teacher:
        """The live teacher."""
        options = {field.name: getattr(self, field.name) for field in fields(self)}
        return Teacher.from_pretrained(**options, task=task)


def load_teacher(given: str | TeacherSpec | TeacherSource, task: str | Task) -> TeacherSource:
    """A teacher as ``teachers=`` names it: an id, folder or spec is loaded, anything else is one already."""
    spec = TeacherSpec(given) if isinstance(given, str) else given
    return spec.load(task) if isinstance(spec, TeacherSpec) else spec


def load_with_head(
    id_or_path: str, task: Task, *, what: str, require_head: bool, **options: object
) -> PreTrainedModel:
    """`from_pretrained` of the task's auto class, with errors that say what to do.

    Args:
        id_or_path: Hub id or folder.
        task: Its auto class loads the model.
        what: Who it is for, for messages: "Teacher 'bert'".
        require_head: Whether a freshly initialised head is refused.
        options: Arguments of ``from_pretrained``.

    Raises:
        DataError: Nothing can be loaded there, sizes do not fit, or a required head is missing.
        UnsafeFileError: The weights are not stored as safetensors.
    """
    auto = getattr(transformers, task.auto_class)
    try:
        model, info = auto.from_pretrained(
            id_or_path, use_safetensors=True, output_loading_info=True, **options
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        if "safetensors" in reason and "not a local folder" not in reason:
            raise UnsafeFileError(
                f"{what}: {id_or_path} holds no model.safetensors; other formats can run code when read and are "
                "refused. Convert it once where you trust it (load, then save_pretrained) and use the result."
            ) from error
        raise DataError(
            f"{what}: {id_or_path} cannot be loaded as {task.auto_class}: {reason[:500]}"
        ) from error
    if require_head:
        _refuse_other_task(model, task, what)
        if info["missing_keys"]:
            missing = ", ".join(sorted(info["missing_keys"])[:4])
            raise DataError(
                f"{what}: {id_or_path} has no trained head for {task.name} (not in the checkpoint: {missing}), so its "
                "answers would be random. Fine-tune it first, or name the fine-tuned checkpoint."
            )
    return model


def load_tokenizer(id_or_path: str, *, what: str, **options: object) -> PreTrainedTokenizerBase:
    """`AutoTokenizer.from_pretrained`, with an error that says whose tokenizer is missing.

    Raises:
        DataError: No tokenizer can be loaded there.
    """
    advice = "Save it there with tokenizer.save_pretrained, or pass it."
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(id_or_path, **options)
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())[:400]
        raise DataError(
            f"{what}: no tokenizer can be loaded from {id_or_path}: {reason}. {advice}"
        ) from error
    # transformers 5 makes an empty tokenizer of the model's type where no file of one is found, without a word.
    if set(tokenizer.get_vocab().values()) <= set(tokenizer.all_special_ids):
        raise DataError(f"{what}: there is no tokenizer in {id_or_path}. {advice}")
    return tokenizer


def _refuse_other_task(model: PreTrainedModel, task: Task, what: str) -> None:
    config = model.config
    architectures = config.architectures or [type(model).__name__]
    # PEFT and custom classes wrap the model that has the head; what the checkpoint was saved from decides.
    if not any(task.architecture in name for name in architectures) and any(
        "For" in n for n in architectures
    ):
        raise DataError(
            f"{what}: it was saved as {', '.join(architectures)}, but {task.name} needs a *{task.architecture} head: "
            "name a checkpoint fine-tuned for that task."
        )
    if config.num_labels < 2 or config.problem_type in ("regression", "multi_label_classification"):
        kind = config.problem_type or "one output, which is regression"
        raise DataError(
            f"{what}: its head is for another task ({kind}; {config.num_labels} output(s)), but {task.name} here means "
            "one of several classes per row."
        )


def _named(
    model: PreTrainedModel, labels: Mapping[str, str] | Sequence[str] | None, teacher: str
) -> tuple[str, ...]:
    """The names of the logits, after what the user says of them."""
    own = [str(model.config.id2label[i]) for i in range(model.config.num_labels)]
    if labels is None:
        names = own
    elif isinstance(labels, Mapping):
        unknown = [key for key in labels if key not in own]
        if unknown:
            raise DataError(
                f"Teacher {teacher!r}: labels= renames {unknown[0]!r}, but its labels are {own}{suggest(unknown[0], own)}."
            )
        names = [str(labels.get(label, label)) for label in own]
    else:
        names = [str(label) for label in labels]
        if isinstance(labels, str) or len(names) != len(own):
            raise DataError(
                f"Teacher {teacher!r}: labels= gives {len(names)} names, but it has {len(own)} outputs: {own}."
            )
    if len(set(names)) < len(names):
        raise DataError(
            f"Teacher {teacher!r}: its labels {names} are not all different: name them with labels=."
        )
    return tuple(names)

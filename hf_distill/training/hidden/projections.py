"""Student and projections as one module, so that whatever wraps the model for training sees every parameter.

Shapes: N rows, L tokens, W words, D and E hidden sizes of student and teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...errors import ConfigurationError, CorruptStateError
from ...rows.views import WORD_MASK, WORD_OF
from ...teachers.states import Wanted, Words, observe
from .plan import HiddenPlan

PROJECTIONS_FILE = "_projections.safetensors"
"""Where a checkpoint keeps them; pushes leave out files whose name starts so."""


class StudentWithProjections(nn.Module):
    """A student and the linear maps from its hidden size to its teachers', run in one forward.

    Attributes that it has not are the student's (``config``, ``num_parameters``, ``get_input_embeddings``, …), so it passes
    for the student wherever no states are asked for.

    Args:
        student: The student.
        wanted: Its states that are needed.
        projections: By name the state that goes in and the width that comes out.
        seed: Of the projections' first values, which then depend on nothing else.

    Example:
        >>> wrapped = StudentWithProjections(student, [Wanted(1, "mean")], {"0-0-0": (Wanted(1, "mean"), 32)})
        >>> outputs, states = wrapped(**bert_tokenizer(["a film"], return_tensors="pt"))
        >>> states["0-0-0"].shape, bare(wrapped) is student
        (torch.Size([1, 32]), True)
    """

    def __init__(
        self,
        student: nn.Module,
        wanted: Sequence[Wanted],
        projections: Mapping[str, tuple[Wanted, int]],
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.student = student
        self.wanted = tuple(wanted)
        self.reads = {name: want for name, (want, _) in projections.items()}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.projections = nn.ModuleDict(
                {
                    name: nn.Linear(student.config.hidden_size, width)
                    for name, (_, width) in projections.items()
                }
            )

    def forward(
        self, word_of: Tensor | None = None, word_mask: Tensor | None = None, **inputs: Tensor
    ) -> tuple[Any, dict[Any, Any]]:
        """The student's output, and its states.

        The columns of a batch are chosen by the student's own signature before they come here.

        Args:
            word_of: (N, L) int64, each token's word, where states of words are needed.
            word_mask: (N, W) bool.
            inputs: The student's.

        Returns:
            The output without hidden states; the states by `Wanted`, and projected ones by the projection's name, (N, L, E)
            or (N, E).
        """
        words = None if word_of is None or word_mask is None else Words(word_of, word_mask.shape[1])
        outputs, states = observe(self.student, self.student, self.wanted, inputs, words)
        found: dict[Any, Any] = {
            name: projection(states[self.reads[name]].to(projection.weight.dtype))
            for name, projection in self.projections.items()
        }
        return outputs, {**states, **found}

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "student":
                raise
            return getattr(self.student, name)

    def part_of_student(self, state_dict: Mapping[str, Tensor] | None) -> dict[str, Tensor] | None:
        """The student's part of a state of the whole module, by its own names; None where there is none."""
        return (
            None
            if state_dict is None
            else {k.removeprefix("student."): v for k, v in state_dict.items() if k.startswith("student.")}
        )

    def save_projections(self, folder: Path, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Write the projections into a checkpoint.

        Args:
            folder: Of the checkpoint.
            state_dict: Of the whole module, where it was gathered from several processes; None: its own.
        """
        own = self.state_dict() if state_dict is None else state_dict
        save_file(
            {k: v.contiguous().cpu() for k, v in own.items() if k.startswith("projections.")},
            folder / PROJECTIONS_FILE,
        )

    def load_projections(self, folder: Path) -> None:
        """Read the projections of a checkpoint.

        Raises:
            CorruptStateError: There are none.
            ConfigurationError: They are others.
        """
        try:
            tensors = load_file(folder / PROJECTIONS_FILE)
        except (OSError, ValueError) as error:
            raise CorruptStateError(
                f"{folder} has no readable {PROJECTIONS_FILE}, so the projections of the hidden losses cannot go on where "
                "they were: resume from another checkpoint, or train from the start."
            ) from error
        known = {
            key: value.shape for key, value in self.state_dict().items() if key.startswith("projections.")
        }
        if known != {key: value.shape for key, value in tensors.items()}:
            raise ConfigurationError(
                f"{folder} has other projections than these hidden losses need: a run goes on with the hidden losses it was "
                "begun with."
            )
        self.load_state_dict(tensors, strict=False)


def student_pass(
    plan: HiddenPlan | None,
    model: nn.Module,
    student: nn.Module,
    own: Mapping[str, Tensor],
    inputs: Mapping[str, Any],
) -> tuple[Any, dict[Any, Any]]:
    """Run the student of a batch, and take the states that hidden losses need.

    Args:
        plan: Of the hidden losses; None: none.
        model: What is trained: the student, with projections or without, as wrapped for training.
        student: The student itself.
        own: Its inputs.
        inputs: The whole batch.

    Returns:
        As `StudentWithProjections`.
    """
    if plan is None:
        return model(**own), {}
    words = {key: inputs[key] for key in (WORD_OF, WORD_MASK) if key in inputs}
    if plan.projections:
        return model(**own, **words)
    of_view = Words(words[WORD_OF], words[WORD_MASK].shape[1]) if words else None
    return observe(model, student, plan.wanted_of_student, own, of_view)


def with_projections(plan: HiddenPlan | None, student: nn.Module, seed: int) -> nn.Module:
    """What is trained: the student, and the projections of its hidden losses where there are any.

    Args:
        plan: Of the hidden losses; None: none.
        student: The student.
        seed: Of the projections' first values.

    Raises:
        ConfigurationError: It is not the student that the plan was made for.
    """
    if plan is None or not plan.projections:
        return student
    size = (student.config.num_hidden_layers, student.config.hidden_size)
    if size != (plan.student.layers, plan.student.width):
        raise ConfigurationError(
            f"model_init made a student of {size[0]} layers of width {size[1]}, but the hidden losses were resolved for "
            f"{plan.student.layers} of {plan.student.width}: let it make students of one size."
        )
    return StudentWithProjections(student, plan.wanted_of_student, plan.projections, seed=seed)


def bare(model: nn.Module) -> nn.Module:
    """The student itself, of a model that may hold projections besides."""
    return model.student if isinstance(model, StudentWithProjections) else model

"""How alike the layers of a student and of a teacher are, whatever their widths and tokenizers.

Shapes: N texts, D hidden size, Ls and Lt the numbers of layers of student and teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...errors import ConfigurationError
from ...losses import linear_cka
from ...rows.views import TokenView, named_inputs, text_batches
from ...rows.words import masked_mean
from ...teachers.teacher import Teacher
from ..cost import evaluating
from .maps import Text


class LayerSimilarity(NamedTuple):
    """How alike the layers of a student and of a teacher are.

    Attributes:
        teacher: The teacher's name.
        cka: (Ls+1, Lt+1), of the student.
        before: The same of the student before training; None where nobody knows it.
        by_chance: The most that any pair of layers has, before or after, once the teacher's rows are shuffled: what CKA is
            on so few rows where there is nothing in common.
    """

    teacher: str
    cka: Tensor
    before: Tensor | None
    by_chance: float


def layer_similarity(
    student: PreTrainedModel,
    student_view: TokenView,
    teacher: Teacher,
    texts: Sequence[Text],
    *,
    batch_size: int = 32,
) -> Tensor:
    """Linear CKA between every layer of a student and every layer of a teacher.

    Compared are the means over each text's tokens, so neither the hidden sizes nor the tokenizers have to agree. 1: the
    texts form the same shape in both, up to rotation, shift and scale. With few texts beside the hidden sizes the number is
    well above 0 even between layers that have nothing in common.

    Args:
        student: The student.
        student_view: How it reads text.
        teacher: The teacher.
        texts: N texts or pairs, at least three.
        batch_size: Texts per forward.

    Returns:
        (Ls+1, Lt+1) float32 in [0, 1], from the embeddings on.

    Raises:
        ConfigurationError: Too few texts, or a model without hidden states.

    Reference:
        Kornblith et al.: Similarity of Neural Network Representations Revisited, 2019, arXiv:1905.00414.

    Example:
        >>> layer_similarity(bert, teacher.view, teacher, rows["text"][:8]).diagonal().round(decimals=4)
        tensor([1., 1., 1.])
    """
    return similarity(
        pooled_states(student, student_view, texts, "The student", batch_size=batch_size),
        pooled_states(teacher.model, teacher.view, texts, f"Teacher {teacher.name!r}", batch_size=batch_size),
    )


def pooled_states(
    model: PreTrainedModel, view: TokenView, texts: Sequence[Text], what: str, *, batch_size: int = 32
) -> list[Tensor]:
    """The mean over each text's tokens, for every layer: L+1 tensors (N, D) in float32, where the model is.

    Raises:
        ConfigurationError: Fewer than three texts, or a model without hidden states.
    """
    if len(texts) < 3:
        raise ConfigurationError(
            f"There are {len(texts)} texts to compare layers on, but any two of them always agree: give three or more, "
            "better hundreds."
        )
    named, found = named_inputs(model), []
    columns = [texts] if isinstance(texts[0], str) else list(zip(*texts, strict=True))
    for batch in text_batches(view, columns, batch_size):
        inputs = {key: value.to(model.device) for key, value in batch.items() if key in named}
        with evaluating(model), torch.no_grad():
            states = getattr(model(**inputs, output_hidden_states=True), "hidden_states", None)
        if not states:
            raise ConfigurationError(f"{what} ({type(model).__name__}) gives no hidden states.")
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).to(model.device)
        found.append([masked_mean(state, mask) for state in states])
    return [torch.cat(layer) for layer in zip(*found, strict=True)]


def similarity(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """CKA (Ls+1, Lt+1), on the CPU, of two results of `pooled_states`."""
    found = torch.stack(
        [torch.stack([1 - linear_cka(own, theirs.to(own.device)) for theirs in teacher]) for own in student]
    )
    return found.clamp(0, 1).cpu()  # rounding may exceed the bounds


def compare_layers(
    name: str, teacher: Sequence[Tensor], student: Sequence[Tensor], before: Sequence[Tensor] | None
) -> LayerSimilarity:
    """`LayerSimilarity` from the `pooled_states` of a teacher, a student, and the same before training."""
    order = torch.randperm(len(teacher[0]), generator=torch.Generator().manual_seed(0))
    shuffled = [layer[order.to(layer.device)] for layer in teacher]
    students = [states for states in (student, before) if states is not None]
    return LayerSimilarity(
        name,
        similarity(student, teacher),
        None if before is None else similarity(before, teacher),
        max(float(similarity(states, shuffled).max()) for states in students),
    )

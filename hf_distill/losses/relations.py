"""Loss between the relations that tokens have to each other inside an attention layer.

Shapes: N sequences, L tokens, A relation heads, D hidden size of queries, keys or values (all heads side by side), which
may differ between student and teacher and, with grouped queries, between queries and keys.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigurationError
from .distributions import kl_of_log_probs
from .properties import declare


@declare(compares="relations")
def minilm_relations(
    student: Sequence[Tensor] | Tensor,
    teacher: Sequence[Tensor] | Tensor,
    mask: Tensor,
    *,
    relation_heads: int,
) -> Tensor:
    """KL(teacher ‖ student) of softmax(X Xᵀ / √d), for X the queries, the keys and the values of a layer, summed.

    The heads' outputs, side by side, are split again into A relation heads of width d = D / A, so student and teacher
    need neither the same width nor the same number of heads, and no projection. Both must see the same tokens. Per
    sequence each of the three terms is the mean over relation heads and valid tokens; their sum is the paper's loss
    with weight 1 for query–query, key–key and value–value and 0 for the mixed relations. Padding is neither asked nor
    attended to; no causal mask is applied. Additive: a sequence's value does not depend on the others.

    Args:
        student: (Q, K, V), each (N, L, D), any floating type; also stacked, (3, N, L, D).
        teacher: As the student's, of another D where it has one.
        mask: (N, L) bool, True at tokens.
        relation_heads: A. More heads are finer relations: the paper takes 48 for teachers of 768, 64 for 1024.

    Returns:
        (N,) nats in float32; 0 with a graph where a sequence has no token. Memory: some N·A·L² numbers for each of Q,
        K and V.

    Raises:
        ConfigurationError: A width that A does not divide, or tokens that differ between student and teacher.

    Reference:
        Wang et al.: MiniLMv2, 2021, arXiv:2012.15828.

    Example:
        >>> student, teacher = torch.tensor([[[1.0], [0.0]]]), torch.tensor([[[0.0], [0.0]]])
        >>> mask = torch.tensor([[True, True]])
        >>> value = minilm_relations([student] * 3, [teacher] * 3, mask, relation_heads=1)
        >>> round(value.item(), 4)  # 3 · (KL((½, ½) ‖ (0.731, 0.269)) + 0) / 2
        0.1802
    """
    if len(student) != len(teacher):
        raise ConfigurationError(
            f"minilm_relations: the student gives {len(student)} of queries, keys and values, the teacher {len(teacher)}."
        )
    return torch.stack(
        [
            _relation_kl(ours, theirs, mask.bool(), relation_heads)
            for ours, theirs in zip(student, teacher, strict=True)
        ]
    ).sum(0)


def _relation_kl(student: Tensor, teacher: Tensor, mask: Tensor, relation_heads: int) -> Tensor:
    """(N, L, D), (N, L, E), (N, L) -> (N,), the mean over relation heads and valid tokens."""
    if not student.shape[:2] == teacher.shape[:2] == mask.shape:
        raise ConfigurationError(
            f"minilm_relations: the student's states are {tuple(student.shape)}, the teacher's {tuple(teacher.shape)} and "
            f"the mask {tuple(mask.shape)}; sequences and tokens must be the same, so the teacher must share the "
            "student's tokenizer."
        )
    kl = kl_of_log_probs(
        _log_relations(teacher, mask, relation_heads, "teacher"),
        _log_relations(student, mask, relation_heads, "student"),
    )  # (N, A, L)
    # Padded tokens are zeros: on both sides they attend to all valid ones alike, which adds exactly nothing.
    return kl.sum((1, 2)) / (relation_heads * mask.sum(-1).clamp(min=1))


def _log_relations(states: Tensor, mask: Tensor, relation_heads: int, whose: str) -> Tensor:
    """(N, L, D) -> (N, A, L, L) log-probabilities over the last dimension, the tokens attended to."""
    width = states.shape[-1]
    if relation_heads < 1 or width % relation_heads:
        raise ConfigurationError(
            f"minilm_relations: {relation_heads} relation heads cannot share the {whose}'s width of {width} equally; "
            "choose a number that divides the widths of student and teacher."
        )
    # Zeros before the product: a NaN at padding would spread. No -inf after it: a row of nothing else would be NaN.
    heads = (
        states.float().masked_fill(~mask[..., None], 0.0).unflatten(-1, (relation_heads, -1)).transpose(1, 2)
    )
    with torch.autocast(states.device.type, enabled=False):
        scores = heads @ heads.mT * (width // relation_heads) ** -0.5
    scores = scores.masked_fill(~mask[:, None, None, :], torch.finfo(scores.dtype).min)
    return F.log_softmax(scores, -1)

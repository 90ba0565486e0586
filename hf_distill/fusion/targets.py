"""What the student of a batch is to imitate.

Shapes: K teachers, N prediction units, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from . import Fusion, teacher_disagreement
from .alignment import TeacherBatch
from .alignment import labelled as with_label
from .shares import checked_weights, heard


class Targets(NamedTuple):
    """What the student of a batch is to imitate.

    Attributes:
        log_probs: (N, C) float32, fused, at the temperature; -inf for a class that no teacher has.
        temperature: The one that softens the student too.
        teachers: The aligned logits of the teachers that are heard.
        unknown: (N, C) bool, True where nothing can be learnt of a class, since no teacher that is heard has it; None
            where all classes are known.
        disagreement: (N,) float32, `teacher_disagreement`; None where one teacher was drawn.
        ensemble: (N, C) float32, the fused log-probabilities at temperature 1 and without labels, in evaluation; else
            None.
    """

    log_probs: Tensor
    temperature: float
    teachers: TeacherBatch
    unknown: Tensor | None
    disagreement: Tensor | None
    ensemble: Tensor | None


def make_targets(
    teachers: TeacherBatch,
    fusion: Fusion,
    *,
    temperature: float,
    labels: Tensor | None,
    label_share: float = 0.0,
    drawn: bool = False,
    mix: Callable[[Tensor, Tensor, float], Tensor] | None = None,
    disagreement_of: Callable[..., Tensor] = teacher_disagreement,
    of_fits: Callable[[Tensor], Tensor] | None = None,
) -> Targets:
    """Fuse the teachers of a batch into a target.

    Args:
        teachers: Of `TeacherPool`.
        fusion: Makes one distribution of them. Where it has a ``target_temperature``, its target is fixed and that
            is the student's temperature.
        temperature: T > 0.
        labels: (N,) int64, -100 where unknown, or (N, C) numbers, NaN where unknown; None in evaluation, where no label may
            reach the target.
        label_share: λ in [0, 1]: on labelled rows the target is λ y + (1 − λ) p (teacher annealing, Clark et al. 2019,
            arXiv:1907.04829).
        drawn: Whether the teachers are those that the fusion drew for this batch.
        mix: What ``label_share`` does, as `mix_in_labels`, which None means.
        disagreement_of: How far the teachers are from their own mean, as `teacher_disagreement`.
        of_fits: Labels as fusions read them; None: as they are.

    Example:
        >>> batch = TeacherBatch(torch.tensor([[[0.5, 0.5]], [[0.1, 0.9]]]).log(), None)
        >>> from hf_distill.fusion import LinearPool
        >>> make_targets(batch, LinearPool(), temperature=1.0, labels=torch.tensor([0]), label_share=0.5).log_probs.exp()
        tensor([[0.6500, 0.3500]])
    """
    temperature = getattr(fusion, "target_temperature", temperature)
    read = labels if labels is None or of_fits is None else of_fits(labels)
    log_probs = fusion(teachers.logits, temperature=temperature, labels=read, mask=teachers.mask)
    if label_share and labels is not None:
        log_probs = (mix or mix_in_labels)(log_probs, labels, label_share)
    unknown = None
    if teachers.unknown is not None:
        # A label may have put mass on a class that no teacher has: then the label is what can be learnt.
        unknown = teachers.unknown & (log_probs == -torch.inf)
    ensemble = None if labels is not None else of_ensemble(fusion, teachers)
    disagreement, weights = None, getattr(fusion, "weights", None)
    if hasattr(
        fusion, "aligned"
    ):  # what is learnt from each teacher is on the student's scale, as their mean is
        teachers = teachers._replace(logits=fusion.aligned(teachers.logits))
    if not drawn:
        if weights is not None:
            # Those of weight 0 did not run in training: nobody is to meet the NaN in their place.
            spoken = [max(weight, 0.0) for weight in weights]  # a pool of numbers may subtract one
            _, logits, mask = heard(checked_weights(spoken), None, teachers.logits, teachers.mask)
            teachers = teachers._replace(logits=logits, mask=mask)
            weights = [weight for weight in spoken if weight > 0]
        disagreement = disagreement_of(
            teachers.logits, temperature=temperature, weights=weights, mask=teachers.mask
        )
    return Targets(log_probs, temperature, teachers, unknown, disagreement, ensemble)


def of_ensemble(fusion: Fusion, teachers: TeacherBatch) -> Tensor:
    """What the ensemble answers, (N, C): the fusion at temperature 1; of an output that no teacher has, nobody says that it is so.

    Args:
        fusion: How they are fused.
        teachers: What they say.

    Example:
        >>> batch = TeacherBatch(torch.tensor([[[0.5, 0.5]], [[0.1, 0.9]]]).log(), None)
        >>> from hf_distill.fusion import LinearPool
        >>> of_ensemble(LinearPool(), batch).exp()
        tensor([[0.3000, 0.7000]])
    """
    said = fusion(teachers.logits, temperature=1.0, mask=teachers.mask)
    return said if teachers.unknown is None else said.masked_fill(teachers.unknown, -torch.inf)


def mix_in_labels(log_probs: Tensor, labels: Tensor, share: float) -> Tensor:
    """λ y + (1 − λ) p on labelled rows, p on the others.

    Args:
        log_probs: (N, C).
        labels: (N,) int64, -100 where unknown.
        share: λ in [0, 1].

    Example:
        >>> mix_in_labels(torch.tensor([[0.5, 0.5]] * 2).log(), torch.tensor([1, -100]), 0.2).exp()
        tensor([[0.4000, 0.6000],
                [0.5000, 0.5000]])
    """
    labelled = with_label(labels)
    mixed = (1 - share) * log_probs.exp()
    mixed = mixed.scatter_add(-1, labels.clamp(min=0)[:, None], torch.full_like(mixed[:, :1], share))
    return torch.where(labelled[:, None], mixed.log(), log_probs)


class Draws:
    """A generator per training batch that depends on the seed, the step and the process alone, so resuming repeats it.

    Example:
        >>> draws = Draws(seed=0, process=0)
        >>> first = torch.rand(1, generator=draws(step=3))
        >>> bool(first == torch.rand(1, generator=Draws(seed=0, process=0)(step=3)))
        True
    """

    def __init__(self, seed: int, process: int) -> None:
        self._seed, self._process = seed, process
        self._step, self._index = -1, 0

    def __call__(self, step: int) -> torch.Generator:
        """The generator of the next batch.

        Args:
            step: How many updates were finished before.
        """
        self._index = self._index + 1 if step == self._step else 0
        self._step = step
        key = (self._seed * 1_000_003 + step) * 4099 + self._index * 257 + self._process
        return torch.Generator().manual_seed(key % 2**63)

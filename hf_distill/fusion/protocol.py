"""What a fusion is.

Shapes: K teachers, N prediction units, C classes.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Fusion(Protocol):
    """Anything that makes one target distribution of the teachers' logits.

    A frozen dataclass whose parameters are fields is enough; see docs/extending.md. Two attributes are asked for where
    a fusion has them: ``weights``, one share per teacher (a teacher of share 0 is not run in training), and
    ``select(generator) -> teacher indices``, asked before any forward of a training batch: only these are run.
    """

    def __call__(
        self,
        teacher_logits: Tensor,
        *,
        temperature: float = 1.0,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Fuse a batch.

        Args:
            teacher_logits: (K, N, C), any floating type; -inf where a teacher lacks the class.
            temperature: T > 0, applied to every teacher.
            labels: (N,) int64, -100 where unknown; None in evaluation. Most fusions ignore it.
            mask: (K, N, C) bool, True where the teacher has the class; None where all have all.

        Returns:
            (N, C) float32 log-probabilities; -inf for a class that no teacher has.
        """
        ...

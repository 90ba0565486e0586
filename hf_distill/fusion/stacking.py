"""A classifier on top of the teachers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigurationError, DataError
from .fitting import held_out_rows, logit_scale
from .linear_pool import pooled
from .shares import constant


def _features(logits: Tensor, mask: Tensor | None) -> Tensor:
    """(K, N, C) → (N, K·C): each teacher's logits centred over its own classes, 0 where it lacks one."""
    has = torch.ones_like(logits, dtype=torch.bool) if mask is None else mask
    z = logits.masked_fill(~has, 0.0)
    mean = z.sum(-1, keepdim=True) / has.sum(-1, keepdim=True).clamp(min=1)
    return (z - mean).masked_fill(~has, 0.0).transpose(0, 1).flatten(1)


@dataclass(frozen=True)
class Stacking:
    """Multinomial logistic regression on the concatenated logits of all teachers, each centred.

    It can learn which teacher to believe about which class, also to read a teacher whose classes are permuted, from
    K·C² numbers: it over-fits small sets. Classes without a held-out row keep the probability that the uniform linear
    pool gives them. A teacher whose coefficients are all 0 is not heard. With one teacher it recalibrates that teacher.

    Args:
        coefficients: One row of K·C numbers for each class in ``classes``.
        intercepts: One number for each class in ``classes``.
        classes: The classes that the held-out rows had.

    Raises:
        ConfigurationError: Shapes that do not fit the logits.

    Reference:
        Wolpert: Stacked Generalization, Neural Networks 5(2), 1992.

    Example:
        >>> same = Stacking(((-0.5, 0.5), (0.5, -0.5)), (0.0, 0.0), (0, 1))  # prefers the other class
        >>> same(torch.tensor([[[0.0, 2.0]]])).argmax(-1)
        tensor([0])
    """

    coefficients: tuple[tuple[float, ...], ...]
    intercepts: tuple[float, ...]
    classes: tuple[int, ...]

    def __post_init__(self) -> None:
        # Lists, as YAML gives them, become what the object is told apart by.
        object.__setattr__(self, "coefficients", tuple(tuple(map(float, row)) for row in self.coefficients))
        object.__setattr__(self, "intercepts", tuple(map(float, self.intercepts)))
        object.__setattr__(self, "classes", tuple(map(int, self.classes)))
        if not len(self.coefficients) == len(self.intercepts) == len(self.classes) >= 2:
            raise ConfigurationError(
                f"Stacking has {len(self.coefficients)} rows of coefficients, {len(self.intercepts)} intercepts and "
                f"{len(self.classes)} classes: there must be as many of each, at least two."
            )

    def __call__(
        self,
        teacher_logits: Tensor,
        *,
        temperature: float = 1.0,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        teachers, _, classes = teacher_logits.shape
        if len(self.coefficients[0]) != teachers * classes or max(self.classes) >= classes:
            raise ConfigurationError(
                f"Stacking was fitted on {len(self.coefficients[0])} logits per row, but {teachers} teachers over "
                f"{classes} classes give {teachers * classes}: fit it with the teachers of this run."
            )
        logits = teacher_logits.float()
        weight = constant(self.coefficients, logits.device)
        # A teacher whose coefficients are all 0 is not heard: NaN · 0 would be NaN.
        silent = (weight.view(-1, teachers, classes) == 0).all(-1).all(0)  # (K,)
        features = _features(logits.masked_fill(silent[:, None, None], 0.0), mask)
        log_probs = F.log_softmax(features @ weight.T + constant(self.intercepts, logits.device), -1)
        if len(self.classes) < classes:
            shares = (~silent | silent.all()).float()[:, None]
            pool = pooled(logits, shares / shares.sum(), mask=mask)
            seen = constant(self.classes, logits.device, torch.int64)
            among_seen = pool.index_select(-1, seen).logsumexp(-1, keepdim=True)
            log_probs = pool.index_copy(-1, seen, log_probs + among_seen)
        if mask is not None:
            log_probs = log_probs.masked_fill(~mask.any(0), -torch.inf)
        return F.log_softmax(log_probs / temperature, -1)

    @classmethod
    def fit(
        cls, logits: Tensor, labels: Tensor, *, mask: Tensor | None = None, strength: float = 1.0
    ) -> Stacking:
        """Fit scikit-learn's `LogisticRegression` on held-out rows.

        Args:
            logits: (K, N, C).
            labels: (N,) int64, -100 where unknown.
            mask: (K, N, C) bool, or None.
            strength: Inverse of the ridge penalty, scikit-learn's ``C``.

        Raises:
            DataError: No labelled row, only one class among them, or outputs that are not finite.
        """
        from sklearn.linear_model import LogisticRegression

        rows, labels, mask = held_out_rows(logits, labels, mask, "Stacking")
        if len(labels.unique()) < 2:
            raise DataError(
                f"Stacking cannot be fitted: all {len(labels)} held-out rows have one class. Pass rows of several."
            )
        # In units of each teacher's spread, so that the ridge weighs no scale of logits more than another.
        scale = logit_scale(rows, mask)
        scale = torch.where(scale > 0, scale, 1.0)[:, None, None]
        model = LogisticRegression(C=strength, max_iter=2000)
        model.fit(_features(rows / scale, mask).numpy(), labels.numpy())
        coefficients = model.coef_ / scale.expand(-1, 1, rows.shape[-1]).flatten().numpy()
        intercepts = model.intercept_
        if len(coefficients) == 1:  # of two classes scikit-learn keeps the difference
            coefficients = [-coefficients[0] / 2, coefficients[0] / 2]
            intercepts = [-intercepts[0] / 2, intercepts[0] / 2]
        return cls(tuple(map(tuple, coefficients)), tuple(intercepts), tuple(model.classes_))

"""The one temperature that calibrates a classifier."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .fitting import held_out_rows, logit_scale


def fit_temperature(logits: Tensor, labels: Tensor, *, mask: Tensor | None = None) -> float:
    """The T that minimises the NLL of softmax(z / T) on held-out rows: above 1 for an over-confident classifier.

    Of a teacher, or of a pool (its log-probabilities are logits too): the average of calibrated teachers is
    under-confident, so it wants a temperature of its own.

    Args:
        logits: (N, C) logits or log-probabilities.
        labels: (N,) int64, -100 where unknown.
        mask: (N, C) bool, True where the classifier has the class; None: where the logit is not -inf. Rows whose label
            it lacks do not count.

    Returns:
        T within [0.01, 100]; 1 where the logits are all equal, since every T is then the same.

    Raises:
        DataError: No labelled row.

    Reference:
        Guo et al.: On Calibration of Modern Neural Networks, 2017, arXiv:1706.04599.

    Example:
        >>> logits = torch.tensor([[0.0, 8.0], [0.0, 8.0], [0.0, 8.0], [0.0, 8.0]])
        >>> T = fit_temperature(logits, torch.tensor([1, 1, 1, 0]))  # right 3 times of 4: p should be 3/4
        >>> round((logits[0] / T).softmax(-1)[1].item(), 4)
        0.75
    """
    from scipy.optimize import minimize_scalar

    if mask is None:
        mask = logits != -torch.inf
    rows, labels, kept = held_out_rows(logits[None], labels, mask[None], "A temperature")
    if logit_scale(rows, kept).item() == 0:
        return 1.0
    z = rows[0]
    found = minimize_scalar(
        lambda log_t: F.cross_entropy(z / math.exp(log_t), labels).item(),
        bounds=(math.log(0.01), math.log(100.0)),
        method="bounded",
        options={"xatol": 1e-8},
    )
    return math.exp(found.x)

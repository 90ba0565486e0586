"""What a student minimises: pure functions, unreduced where they are sums over rows; one function reduces, once.

Shapes: N rows or prediction units, C classes, L positions, D hidden size. A loss is one function in a file of this
folder and one line in a table below.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping

from torch import Tensor

from .distributions import cross_entropy, forward_kl, jsd, reverse_kl, standardize_logits
from .geometry import linear_cka, rkd_angle, rkd_distance, similarity_preserving
from .logits import logit_mse, on_logits
from .reduction import reduce_loss
from .relations import minilm_relations
from .representations import hidden_cosine, hidden_mse, pkd
from .separate_labels import bernoulli_kl, binary_cross_entropy, gaussian_mse, huber
from .several import WeightedLosses, build_distillation_loss
from .structured import dist, dkd

__all__ = [
    "ALL_LOSSES",
    "FAMILY_LOSSES",
    "HIDDEN_LOSSES",
    "LOSSES",
    "STRUCTURED_LOSSES",
    "WeightedLosses",
    "bernoulli_kl",
    "binary_cross_entropy",
    "build_distillation_loss",
    "cross_entropy",
    "dist",
    "dkd",
    "forward_kl",
    "gaussian_mse",
    "hidden_cosine",
    "hidden_mse",
    "huber",
    "jsd",
    "linear_cka",
    "logit_mse",
    "minilm_relations",
    "on_logits",
    "pkd",
    "reduce_loss",
    "reverse_kl",
    "rkd_angle",
    "rkd_distance",
    "similarity_preserving",
    "standardize_logits",
]

LOSSES: dict[str, Callable[..., Tensor]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
    "logit_mse": on_logits(logit_mse),
}
"""Distillation losses of distributions: ``loss(student_logits, target_log_probs, *, temperature) -> (N,)``."""

STRUCTURED_LOSSES: dict[str, Callable[..., Tensor]] = {"dkd": dkd, "dist": dist}
"""Those that need labels besides, or are one number of the batch; each says so of itself."""

FAMILY_LOSSES: dict[str, Callable[..., Tensor]] = {
    "bernoulli_kl": bernoulli_kl,
    "gaussian_mse": gaussian_mse,
    "huber": huber,
}
"""Those of labels that each hold or not, and of numbers."""

ALL_LOSSES: Mapping[str, Callable[..., Tensor]] = ChainMap(LOSSES, STRUCTURED_LOSSES, FAMILY_LOSSES)
"""What a name may mean; a task refuses those of another family."""

HIDDEN_LOSSES: dict[str, Callable[..., Tensor]] = {
    "hidden_mse": hidden_mse,
    "hidden_cosine": hidden_cosine,
    "pkd": pkd,
    "rkd_distance": rkd_distance,
    "rkd_angle": rkd_angle,
    "similarity_preserving": similarity_preserving,
    "linear_cka": linear_cka,
    "minilm_relations": minilm_relations,
}
"""Losses between what lies below the logits; docs/losses.md says what each takes and which are additive."""

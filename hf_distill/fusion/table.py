"""The built-in fusions, by the names that recipes write."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping

from .families import BernoulliLinearPool, BernoulliLogPool, GaussianPool
from .gate import Gate
from .linear_pool import LinearPool
from .log_pool import LogPool
from .per_row import ConfidenceWeighted, EntropyWeighted, LikelihoodWeighted
from .pool_then_temper import PoolThenTemper
from .selection import BestTeacher, GreedySelection, MajorityVote, StochasticTeacher
from .stacking import Stacking

FUSIONS: dict[str, type] = {
    "linear_pool": LinearPool,
    "log_pool": LogPool,
    "pool_then_temper": PoolThenTemper,
    "entropy_weighted": EntropyWeighted,
    "confidence_weighted": ConfidenceWeighted,
    "likelihood_weighted": LikelihoodWeighted,
    "greedy_selection": GreedySelection,
    "stacking": Stacking,
    "gate": Gate,
    "stochastic_teacher": StochasticTeacher,
    "majority_vote": MajorityVote,
    "best_teacher": BestTeacher,
}
"""Of one class of several."""

FAMILY_FUSIONS: dict[str, type] = {
    "bernoulli_linear_pool": BernoulliLinearPool,
    "bernoulli_log_pool": BernoulliLogPool,
    "gaussian_pool": GaussianPool,
}
"""Of labels that each hold or not, and of numbers; each class says its ``family``."""

ALL_FUSIONS: Mapping[str, type] = ChainMap(FUSIONS, FAMILY_FUSIONS)
"""What a name may mean; a task refuses those of another family."""

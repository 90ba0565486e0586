"""The built-in fusions of one class of several, by the names that recipes write."""

from __future__ import annotations

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

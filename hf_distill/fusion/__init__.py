"""From K teachers to one target distribution: the only place where the temperature touches the teachers.

Shapes: K teachers, N prediction units, C classes. Teacher logits are -inf, and the mask False, where a teacher lacks
a class; such a teacher's probabilities are conditional on the classes it has. A rule is one class in a file of this
folder and one line in ``table.py``.
"""

from .disagreement import teacher_disagreement
from .families import BernoulliLinearPool, BernoulliLogPool, GaussianPool
from .gate import Gate
from .linear_pool import LinearPool
from .log_pool import LogPool
from .per_row import ConfidenceWeighted, EntropyWeighted, LikelihoodWeighted
from .pool_then_temper import PoolThenTemper
from .protocol import Fusion
from .selection import BestTeacher, GreedySelection, MajorityVote, StochasticTeacher
from .spec import (
    AutoBernoulli,
    AutoFusion,
    AutoGaussian,
    FitFusion,
    FusionChoice,
    FusionRule,
    HeldOut,
    build_fusion,
    describe,
    memorised,
    summary,
)
from .stacking import Stacking
from .table import ALL_FUSIONS, FAMILY_FUSIONS, FUSIONS
from .temperature import fit_temperature

__all__ = [
    "ALL_FUSIONS",
    "FAMILY_FUSIONS",
    "FUSIONS",
    "AutoBernoulli",
    "AutoFusion",
    "AutoGaussian",
    "BernoulliLinearPool",
    "BernoulliLogPool",
    "BestTeacher",
    "ConfidenceWeighted",
    "EntropyWeighted",
    "FitFusion",
    "Fusion",
    "FusionChoice",
    "FusionRule",
    "Gate",
    "GaussianPool",
    "GreedySelection",
    "HeldOut",
    "LikelihoodWeighted",
    "LinearPool",
    "LogPool",
    "MajorityVote",
    "PoolThenTemper",
    "Stacking",
    "StochasticTeacher",
    "build_fusion",
    "describe",
    "fit_temperature",
    "memorised",
    "summary",
    "teacher_disagreement",
]

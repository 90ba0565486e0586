"""Knowledge below the logits: which layers of the student learn from which of each teacher, in which units, by which loss.

A loss is asked for as a `HiddenLoss`; `plan.py` decides for every teacher and pair of layers what it amounts to, before
anything runs; `terms.py` turns the states of a batch into terms of the loss; `projections.py` holds the projections.
"""

from .hidden_loss import HiddenLoss, build_hidden_losses
from .plan import HiddenPlan
from .projections import StudentWithProjections, bare, student_pass, with_projections
from .terms import hidden_terms

__all__ = [
    "HiddenLoss",
    "HiddenPlan",
    "StudentWithProjections",
    "bare",
    "build_hidden_losses",
    "hidden_terms",
    "student_pass",
    "with_projections",
]

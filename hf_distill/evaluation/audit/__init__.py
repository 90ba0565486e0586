"""What teachers are worth before anything is trained: alone, in pairs, fused by every rule, and without each."""

from .auditing import audit_held_out, audit_teachers
from .numbers import Advice, Gains, LeaveOneOut, PairFigures, RuleFigures, TeacherFigures
from .report import AuditReport
from .rules import RULES

__all__ = [
    "RULES",
    "Advice",
    "AuditReport",
    "Gains",
    "LeaveOneOut",
    "PairFigures",
    "RuleFigures",
    "TeacherFigures",
    "audit_held_out",
    "audit_teachers",
]

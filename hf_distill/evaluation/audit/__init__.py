"""What teachers are worth before anything is trained: alone, in pairs, fused by every rule, and without each."""

from .auditing import audit_held_out, audit_teachers
from .numbers import Advice, Gains, LeaveOneOut, PairFigures, RuleFigures, TeacherFigures
from .of_scores import SCORE_RULES, ScoreAudit, audit_scores
from .report import AuditReport
from .rules import RULES

__all__ = [
    "RULES",
    "SCORE_RULES",
    "Advice",
    "AuditReport",
    "Gains",
    "LeaveOneOut",
    "PairFigures",
    "RuleFigures",
    "ScoreAudit",
    "TeacherFigures",
    "audit_held_out",
    "audit_scores",
    "audit_teachers",
]

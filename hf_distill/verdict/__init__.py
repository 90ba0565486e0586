"""Was distillation worth it? Student, the same student without teachers, teachers and ensemble on the same rows."""

from .answers import Answers, SavedRows
from .comparing import compare_runs
from .comparison import RunComparison
from .judging import judge
from .reading import load_report
from .report import VerdictReport
from .systems import best_teacher

__all__ = [
    "Answers",
    "RunComparison",
    "SavedRows",
    "VerdictReport",
    "best_teacher",
    "compare_runs",
    "judge",
    "load_report",
]

"""Was distillation worth it? Student, the same student without teachers, teachers and ensemble on the same rows."""

from .answers import Answers, SavedRows
from .comparing import compare_runs
from .comparison import RunComparison
from .judging import judge
from .over_sets import SetComparison, compare_sets
from .reading import load_report
from .report import VerdictReport
from .systems import best_teacher

__all__ = [
    "Answers",
    "RunComparison",
    "SavedRows",
    "SetComparison",
    "VerdictReport",
    "best_teacher",
    "compare_runs",
    "compare_sets",
    "judge",
    "load_report",
]

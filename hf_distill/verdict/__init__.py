"""Was distillation worth it? Student, the same student without teachers, teachers and ensemble on the same rows."""

from .compare import compare_runs
from .judging import judge
from .live_table import show_losses
from .reading import load_report
from .report import VerdictReport
from .rows import Answers, SavedRows
from .run_comparison import RunComparison
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
    "show_losses",
]

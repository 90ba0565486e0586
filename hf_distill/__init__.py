"""Multi-teacher knowledge distillation for Hugging Face Transformers.

Names are imported when they are first used: `import hf_distill` and `hf-distill --help` load neither torch
nor transformers. Which names there are, and where they live, is written once, in `__init__.pyi`, for type checkers and
for what follows.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
from pathlib import Path
from typing import Any

_MODULE_OF = {
    alias.name: node.module
    for node in ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module
    for alias in node.names
}

__all__ = sorted(_MODULE_OF)  # noqa: PLE0605 - of the stub

try:
    __version__ = importlib.metadata.version("hf-distill")
except importlib.metadata.PackageNotFoundError:
    # A source tree on PYTHONPATH that was never installed has no metadata;
    # the number is written in pyproject.toml only.
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

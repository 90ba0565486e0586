"""Which files of a run's folder go to the Hub: those listed here, and no other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from .errors import DataError

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_CONFIG = ("config.json", "generation_config.json")
_TOKENIZER = (
    ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt")
    + ("vocab.json", "merges.txt", "spiece.model", "spm.model", "sentencepiece.bpe.model", "tokenizer.model")
    + ("bpe.codes", "dict.txt", "chat_template.jinja", "preprocessor_config.json", "processor_config.json")
)
_OF_THE_RUN = ("README.md", "recipe.yaml", "fusion.json")
_REPORTS = ("report.json", "report.md", "report.html")

STALE = (_WHOLE, _INDEX, "model-*-of-*.safetensors", *_ADAPTER, "recipe.yaml", "fusion.json", *_REPORTS)
"""What a repository must not keep of an earlier student: it would be loaded instead of this one, or speak of that one."""


def files_to_push(folder: Path, *, adapter: bool | None = None, reports: bool = True) -> dict[str, Path]:
    """The files of a student, by the names that they get in its repository.

    Args:
        folder: Of a run, or a checkpoint.
        adapter: Whether the student is an adapter; None: what lies there decides.
        reports: Whether the reports are of this student.

    Raises:
        DataError: There is no complete student.
    """
    if adapter is None:
        adapter = (folder / _ADAPTER[0]).is_file() and not (folder / _WHOLE).is_file()
    names = [
        *_student(folder, adapter),
        *_TOKENIZER,
        *_code(folder),
        *documents_to_push(folder, reports=reports),
    ]
    return {name: folder / name for name in dict.fromkeys(names) if (folder / name).is_file()}


def documents_to_push(folder: Path, *, reports: bool = True) -> list[str]:
    """What is pushed for people: card, recipe, fusion, and the reports with the pictures that they show.

    Args:
        folder: Of a run.
        reports: Whether the reports are of its student.
    """
    names = [*_OF_THE_RUN, *((*_REPORTS, *_plots(folder)) if reports else ())]
    return [name for name in names if (folder / name).is_file()]


def _student(folder: Path, adapter: bool) -> list[str]:
    needed = list(_ADAPTER) if adapter else [_CONFIG[0], _WHOLE]
    # As `from_pretrained` looks: one file, or the index of several.
    if not adapter and not (folder / _WHOLE).is_file() and (folder / _INDEX).is_file():
        shards = sorted(set(_read(folder / _INDEX).get("weight_map", {}).values()))
        needed = [_CONFIG[0], _INDEX, *(name for name in shards if Path(name).name == name)]
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"There is no complete student in {folder.absolute()}: {', '.join(missing)} is missing. Name the folder of a "
            "trained run, its training.output_dir."
        )
    return needed if adapter else [*needed, _CONFIG[1]]


def _code(folder: Path) -> list[str]:
    """Modules that loading the student with ``trust_remote_code`` needs."""
    from transformers.dynamic_module_utils import get_relative_import_files

    found: dict[str, None] = {}
    for config in ("config.json", "tokenizer_config.json"):
        path = folder / config
        named = _read(path).get("auto_map", {}) if path.is_file() else {}
        for entry in _flat(named.values() if isinstance(named, dict) else ()):
            module = folder / (entry.rpartition(".")[0] + ".py")
            if module.parent == folder and module.is_file():
                imported = [Path(file) for file in get_relative_import_files(module)]
                found |= dict.fromkeys(file.name for file in [module, *imported] if file.parent == folder)
    return list(found)


def _plots(folder: Path) -> list[str]:
    """Pictures that the reports show."""
    named: dict[str, None] = {}
    for report in ("report.md", "report.html"):
        if (folder / report).is_file():
            text = (folder / report).read_text(encoding="utf-8", errors="replace")
            found = re.findall(r"!\[[^\]]*\]\(<?([^()<>\s]+\.png)>?\)|\bsrc=\"([^\"]+\.png)\"", text)
            named |= dict.fromkeys(unquote(name) for pair in found for name in pair if name)
    root = folder.resolve()
    return [
        path.relative_to(root).as_posix()
        for name in named
        # A report that somebody else wrote must not fetch files from elsewhere.
        if (path := (root / name).resolve()).is_relative_to(root)
        and path.is_file()
        and not any(part.startswith((".", "_", "checkpoint-")) for part in path.relative_to(root).parts)
    ]


def _flat(entries: Iterable[Any]) -> list[str]:
    found = []
    for entry in entries:
        found += _flat(entry) if isinstance(entry, list) else [entry] if isinstance(entry, str) else []
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({' '.join(str(error).split())[:200]})") from error
    return content if isinstance(content, dict) else {}

"""Which files of a run's folder go to the Hub: those listed here, and no other.

A verdict's report is rendered anew for it, without the texts of rows, which may be private.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from ..errors import DataError
from ..evaluation.report_files import HTML, JSON, MARKDOWN, PICTURE_FILES

if TYPE_CHECKING:
    from ..verdict import VerdictReport

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_CONFIG = ("config.json", "generation_config.json")
_TOKENIZER = (
    ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt")
    + ("vocab.json", "merges.txt", "spiece.model", "spm.model", "sentencepiece.bpe.model", "tokenizer.model")
    + ("bpe.codes", "dict.txt", "chat_template.jinja", "preprocessor_config.json", "processor_config.json")
)
_OF_THE_RUN = ("README.md", "recipe.yaml", "fusion.json")

# Weights, and of a checkpoint the states of optimizer, schedule and random numbers: nobody wrote anything there.
_NUMBERS = (".safetensors", ".pt", ".pth", ".bin", ".distcp")

# What `hf-distill attention` adds to a report shows a row.
_OF_ONE_ROW = re.compile(r"^## Attention and similarity\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)

STALE = (
    *(_WHOLE, _INDEX, "model-*-of-*.safetensors", *_ADAPTER, "recipe.yaml", "fusion.json"),
    *(JSON, MARKDOWN, HTML, *PICTURE_FILES),
)
"""What a repository must not keep of an earlier student: it would be loaded instead of this one, or speak of that one."""


def files_to_push(
    folder: Path, *, adapter: bool | None = None, reports: bool = True
) -> dict[str, Path | bytes]:
    """The files of a student, by the names that they get in its repository.

    Args:
        folder: Of a run, or a checkpoint.
        adapter: Whether the student is an adapter; None: what lies there decides.
        reports: Whether the reports are of this student.

    Raises:
        DataError: There is no complete student.
        CorruptStateError: The report cannot be read.
    """
    if adapter is None:
        adapter = (folder / _ADAPTER[0]).is_file() and not (folder / _WHOLE).is_file()
    names = [*_student(folder, adapter), *_TOKENIZER, *_code(folder), *_OF_THE_RUN]
    files: dict[str, Path | bytes] = {
        name: folder / name for name in dict.fromkeys(names) if (folder / name).is_file()
    }
    if reports:
        verdict = _verdict(folder)
        files |= _plain_report(folder) if verdict is None else verdict.files()
    return files


def documents_to_push(folder: Path, *, reports: bool = True) -> dict[str, str]:
    """What is pushed for people: card, recipe, fusion, and the reports with the pictures that they show.

    Args:
        folder: Of a run.
        reports: Whether the reports are of its student.

    Returns:
        Names, each with what is to be said of a picture, or an empty text.

    Raises:
        CorruptStateError: The report cannot be read.
    """
    names = {name: "" for name in _OF_THE_RUN if (folder / name).is_file()}
    if not reports:
        return names
    verdict = _verdict(folder)
    if verdict is None:
        return names | dict.fromkeys(_plain_report(folder), "")
    names |= dict.fromkeys((JSON, MARKDOWN, HTML), "")
    return names | {picture.file: picture.caption for picture in verdict.pictures()}


def holding_a_token(files: Mapping[str, Path | bytes], token: str | None = None) -> str | None:
    """The name of the first file that holds a token of the Hub; None where none does.

    Args:
        files: By the names that they get in the repository.
        token: The one in use, whatever it looks like.

    Example:
        >>> holding_a_token({"a.yaml": b"name: hf_distill", "b.yaml": b"token: hf_" + b"aB" * 17})
        'b.yaml'
    """
    for name, what in files.items():
        if not name.endswith(_NUMBERS):
            content = what if isinstance(what, bytes) else what.read_bytes()
            if (token and token.encode() in content) or re.search(rb"\bhf_[A-Za-z]{34}\b", content):
                return name
    return None


def section_of_one_row(text: str) -> str:
    """What `hf-distill attention` has added to a report.md, or an empty text.

    Example:
        >>> section_of_one_row("# Verdict\\n\\n## Attention and similarity\\n\\na row\\n\\n## Notes\\n")
        '## Attention and similarity\\n\\na row\\n\\n'
    """
    found = _OF_ONE_ROW.search(text)
    return found.group() if found else ""


def _verdict(folder: Path) -> VerdictReport | None:
    """The verdict of a run as it may be published."""
    if not (folder / JSON).is_file():
        return None
    from ..verdict.reading import load_report

    report = load_report(folder)
    return None if report is None else report.without_texts()


def _plain_report(folder: Path) -> dict[str, Path | bytes]:
    """The report of an evaluation, which has no page and no rows, with the pictures that it shows."""
    if not (folder / JSON).is_file():  # then nobody knows whose the others are
        return {}
    files: dict[str, Path | bytes] = {JSON: folder / JSON}
    if (folder / MARKDOWN).is_file():
        text = (folder / MARKDOWN).read_text(encoding="utf-8", errors="replace")
        if not text.startswith("# Verdict\n"):
            shown = _OF_ONE_ROW.sub("", text)
            files[MARKDOWN] = folder / MARKDOWN if shown == text else f"{shown.rstrip()}\n".encode()
            files |= {name: folder / name for name in _plots(folder, shown)}
    return files


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


def _plots(folder: Path, text: str) -> list[str]:
    """Pictures that a report shows."""
    found = re.findall(r"!\[[^\]]*\]\(<?([^()<>\s]+\.png)>?\)|\bsrc=\"([^\"]+\.png)\"", text)
    named = dict.fromkeys(unquote(name) for pair in found for name in pair if name)
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
    return [
        name
        for entry in entries
        for name in (_flat(entry) if isinstance(entry, list) else [entry])
        if isinstance(name, str)
    ]


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({' '.join(str(error).split())[:200]})") from error
    return content if isinstance(content, dict) else {}

"""Which files of a run's folder go to the Hub: those listed here, and no other.

Whatever is there for people lies in the folder's own `publish/` first, so that it can be looked at: reports are rendered
anew for it from the fields of report.json, without the texts of rows, which may be private.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CorruptStateError, DataError
from ..evaluation.report_files import HTML, JSON, MARKDOWN, PICTURE_FILES
from ..evaluation.results import read_evaluation
from ..files import whole

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


PUBLISH = "publish"
"""The folder in a run's that holds what is published of it for people."""


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
    return files | (_reports(folder) if reports else {})


def laid_out(folder: Path, files: Mapping[str, Path | bytes]) -> dict[str, Path]:
    """Write what is for people into the run's `publish/`, which then holds that and nothing else.

    Args:
        folder: Of the run.
        files: Of `files_to_push`.

    Returns:
        Where each file lies: what is for people in `publish/`, the student where it was trained.
    """
    own, places = folder / PUBLISH, {}
    for name, what in files.items():
        if isinstance(what, Path) and name not in _OF_THE_RUN:
            places[name] = what
            continue
        places[name] = own / name
        content = what if isinstance(what, bytes) else what.read_bytes()
        # What is the same stays, with its time.
        if not (places[name].is_file() and places[name].read_bytes() == content):
            with whole(places[name], "wb") as file:
                file.write(content)
    kept = {path.resolve() for path in places.values()}
    for path in sorted(own.rglob("*"), reverse=True) if own.is_dir() else ():
        if path.is_file() and path.resolve() not in kept:
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    return places


def _reports(folder: Path) -> dict[str, bytes]:
    """The reports of a run as they may be published, from the fields of its report.json."""
    content = _content(folder)
    if content is None:  # then nobody knows whose the others are
        return {}
    verdict = _verdict(folder)
    if verdict is not None:
        return verdict.files()
    report = read_evaluation(content, folder / JSON)
    texts = {JSON: json.dumps(report.to_dict(), indent=2), MARKDOWN: report.markdown()}
    return {name: f"{text}\n".encode() for name, text in texts.items()}


def _content(folder: Path) -> dict[str, Any] | None:
    path = folder / JSON
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"expected an object, found {type(content).__name__}")
        return content
    except (OSError, ValueError) as error:
        raise CorruptStateError(
            f"{path} cannot be read ({' '.join(str(error).split())[:200]}): evaluate again, or remove it."
        ) from error


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
    if (content := _content(folder)) is None:
        return names
    verdict = _verdict(folder)
    if verdict is None:
        read_evaluation(content, folder / JSON)
        return names | dict.fromkeys((JSON, MARKDOWN), "")
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

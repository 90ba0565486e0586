"""What `init` does: a commented recipe from files or a data set and some teachers, which validates."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, load_dataset

from ..errors import ConfigurationError, DataError, LabelNameError, in_a_line
from ..files import refuse_file, write_text
from ..fusion.alignment import is_generic
from ..recipe import yaml12
from ..recipe.sections import SPLITS
from ..recipe.tables import FORMATS, beginning, format_of
from ..tasks import family_of
from ..tasks.telling import likely_task
from ..teachers.hub_ids import missing_folder, no_checkpoint
from ..teachers.teacher import TeacherSpec, stated_labels

# How many rows are looked at, and how many values a column of labels has at most beside its rows.
_LOOKED_AT, _MOST_CLASSES = 2_000, 200
_LABELS = (
    "label",
    "labels",
    "class",
    "category",
    "intent",
    "sentiment",
    "target",
    "topic",
    "y",
    "gold",
    "score",
    "similarity_score",
)
_PAIRS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("text1", "text2"),
    ("text_a", "text_b"), ("question", "sentence"), ("query", "passage"), ("text", "text_pair"), ("title", "text"),
    ("title", "description"), ("title", "body"),
)  # fmt: skip
_SPLIT_WORDS = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "eval"),
}
_LENGTHS = (32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Found:
    """What data says of itself.

    Attributes:
        source: The section `data` without columns: files, or a data set.
        texts: One column, or two of a pair.
        label: The column of labels; None where there is none.
        labels: Some of them, as they are written.
        names: Of the classes, in the order of the ids; None where they are numbers without names.
        numbers: Whether labels are whole numbers.
        length: Tokens that nearly all rows have at most, by their words.
        others: Columns that are not used.
        splits: Which there are.
        notes: What a reader of the recipe must know.
    """

    source: dict[str, Any]
    texts: tuple[str, ...]
    label: str | None
    labels: tuple[Any, ...]
    names: tuple[str, ...] | None
    numbers: bool
    length: int
    others: tuple[str, ...]
    splits: tuple[str, ...]
    notes: tuple[str, ...] = field(default=())


def init_recipe(
    data: Sequence[str],
    teachers: Sequence[str],
    *,
    student: str | None = None,
    output: Path = Path("recipe.yaml"),
    overwrite: bool = False,
) -> Path:
    """Look at data and teachers, and write a recipe that says what was found and what to look at again.

    Args:
        data: Files of rows, a folder of them, or the id of a data set on the Hub.
        teachers: Folders or ids of fine-tuned checkpoints.
        student: Folder or id; None: layers of the first teacher, where that is a folder.
        output: The recipe.
        overwrite: Whether a file that is there may be replaced.

    Returns:
        The recipe's path.

    Raises:
        ConfigurationError: The file is there; no teacher was named.
        DataError: Nothing says which column is which, or teachers do not fit the labels.
    """
    if output.exists() and not overwrite:
        raise ConfigurationError(
            f"{output} is there already: name another file with --output, or replace it with --overwrite."
        )
    refuse_file(output.parent, "--output")
    if not teachers:
        raise ConfigurationError("No teacher is named: give one with --teacher FOLDER_OR_ID, once for each.")
    for source in [*teachers, *([student] if student else [])]:
        if sentence := missing_folder(source) or no_checkpoint(source):
            raise DataError(f"{source}: {sentence}.")
    found = look_at_data(list(data))
    specs = _named_apart(teachers)
    heads = [_config(source).get("problem_type") for source in teachers]
    task = likely_task(found.labels, heads)
    if task != likely_task(found.labels):  # the teachers' word, so what stands in the column is no class
        found = replace(found, names=None)
    names, notes = _label_names(found, specs, task)
    text = _written(found, names, specs, student, notes, task)
    write_text(output, text)
    return output


# ---- Data ----


def look_at_data(data: list[str]) -> Found:
    """Find splits, columns and labels of files, of a folder of files, or of a data set on the Hub.

    Args:
        data: As for `init_recipe`.

    Raises:
        DataError: There is nothing, or nothing says which column is which.
    """
    if not data:
        raise ConfigurationError(
            "No data is named: give files, a folder of them, or the id of a data set on the Hub."
        )
    if len(data) == 1 and Path(data[0]).is_dir():
        data = sorted(
            str(path)
            for path in Path(data[0]).iterdir()
            if path.is_file() and format_of(path.name)[0] in FORMATS and path.name != "meta.json"
        )
        if not data:
            raise DataError(
                "There is no file of rows in that folder: csv, tsv, json, jsonl (each also .gz) or parquet."
            )
    if len(data) == 1 and not Path(data[0]).exists() and format_of(data[0])[0] not in FORMATS:
        return _of_hub(data[0])
    missing = [name for name in data if not Path(name).is_file()]
    if missing:
        raise DataError(f"There is no file {Path(missing[0]).absolute()}.")
    files = _splits(data)
    sample = beginning(files["train"][0], _LOOKED_AT)
    names = dict(sample.names)
    meta = Path(files["train"][0]).parent / "meta.json"
    listed = _meta(meta)
    source = {"files": {split: own[0] if len(own) == 1 else own for split, own in files.items()}}
    return _found(source, sample.rows, names, tuple(files), listed)


def _splits(names: Sequence[str]) -> dict[str, list[str]]:
    """Files by their split, as their names say it; what says nothing is for training."""
    found: dict[str, list[str]] = {}
    for name in names:
        words = re.split(r"[^a-z]+", Path(name).name.lower())
        split = next(
            (s for s, known in _SPLIT_WORDS.items() if any(word in known for word in words)), "train"
        )
        found.setdefault(split, []).append(name)
    if "train" not in found:
        raise DataError(
            f"None of {', '.join(names)} is for training by its name: call one train.*, or name it alone."
        )
    return {split: found[split] for split in SPLITS if split in found}


def _of_hub(name: str) -> Found:
    try:
        available = load_dataset(name)
    except Exception as error:  # of the Hub, its client or the set's own files
        raise DataError(
            f"{name} is neither a file or folder here nor a data set that could be loaded: {in_a_line(error)}"
        ) from error
    if "train" not in available:
        raise DataError(
            f"{name} has no split train, only {', '.join(available)}: write data.splits yourself."
        )
    rows = available["train"]
    names = {
        column: tuple(feature.names)
        for column, feature in rows.features.items()
        if isinstance(feature, ClassLabel)
    }
    some = [rows[int(i)] for i in np.linspace(0, len(rows) - 1, min(len(rows), _LOOKED_AT))]
    splits = {
        split: next((own for own in available if own in words), None) for split, words in _SPLIT_WORDS.items()
    }
    # GLUE's test rows have no labels.
    source: dict[str, Any] = {"dataset": name}
    if any(own not in (None, split) for split, own in splits.items()):
        source["splits"] = {split: own for split, own in splits.items() if own is not None}
    return _found(source, some, names, tuple(split for split, own in splits.items() if own), None)


def _meta(path: Path) -> tuple[str, ...] | None:
    """Label names beside the files."""
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))["labels"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return tuple(map(str, labels)) if isinstance(labels, list) else None


def _found(
    source: dict[str, Any],
    rows: list[dict[str, Any]],
    names: dict[str, tuple[str, ...]],
    splits: tuple[str, ...],
    listed: tuple[str, ...] | None,
) -> Found:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    label = _label_column(rows, columns, names)
    texts, notes = _text_columns(rows, [column for column in columns if column != label])
    values = [] if label is None else [row.get(label) for row in rows]
    items = [item for value in values for item in (value if isinstance(value, list) else [value])]
    seen = sorted({str(item) for item in items if item not in (None, "", -1)}, key=_in_order)
    numbers = bool(seen) and all(re.fullmatch(r"\d+(\.0)?", value) for value in seen)
    given = names.get(label or "") or (listed if numbers else None)
    named = tuple(seen) if not all(map(_is_number, seen)) else None
    words = [sum(len(str(row.get(column) or "").split()) for column in texts) for row in rows]
    tokens = float(np.percentile(words, 98)) * 1.4 + 2 if words else 32
    return Found(
        source,
        texts,
        label,
        tuple(values),
        given or named,
        numbers,
        next((length for length in _LENGTHS if length >= tokens), _LENGTHS[-1]),
        tuple(column for column in columns if column not in (*texts, label)),
        splits,
        notes,
    )


def _is_number(value: str) -> bool:
    return re.fullmatch(r"[-+]?\d*\.?\d+(e[-+]?\d+)?", value, re.IGNORECASE) is not None


def _in_order(value: str) -> tuple[bool, float, str]:
    number = re.fullmatch(r"\d+(\.0)?", value) is not None
    return (not number, float(value) if number else 0.0, value)


def _label_column(
    rows: list[dict[str, Any]], columns: list[str], names: dict[str, tuple[str, ...]]
) -> str | None:
    for column in columns:
        if column in names:
            return column
    by_name = {column.lower(): column for column in columns}
    for known in _LABELS:
        if known in by_name and (_few(rows, by_name[known]) or _spread(rows, by_name[known])):
            return by_name[known]
    few = [column for column in columns if _few(rows, column) and _words(rows, column) <= 4]
    return few[0] if len(few) == 1 else None


def _few(rows: list[dict[str, Any]], column: str) -> bool:
    values = [str(row.get(column)) for row in rows if row.get(column) not in (None, "")]
    return 1 <= len(set(values)) <= min(_MOST_CLASSES, max(2, len(values) // 2))


def _spread(rows: list[dict[str, Any]], column: str) -> bool:
    """Whether a column holds what is as good as never said twice, and may be labels all the same: lists, or numbers."""
    values = [row.get(column) for row in rows if row.get(column) not in (None, "")]
    return bool(values) and (
        any(isinstance(value, list) for value in values) or all(_is_number(str(value)) for value in values)
    )


def _words(rows: list[dict[str, Any]], column: str) -> float:
    values = [row[column] for row in rows if isinstance(row.get(column), str)]
    return float(np.mean([len(value.split()) for value in values])) if values else 0.0


def _text_columns(rows: list[dict[str, Any]], columns: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The one or two columns of text, and what to look at again."""
    texts = [
        column
        for column in columns
        if rows and all(isinstance(row.get(column), str) for row in rows) and not _is_id(rows, column)
    ]
    if not texts:
        raise DataError(f"No column has a text in every row; there are {', '.join(columns) or 'none'}.")
    lower = {column.lower(): column for column in texts}
    for pair in _PAIRS:
        if all(name in lower for name in pair):
            return tuple(lower[name] for name in pair), ()
    longest = max(texts, key=lambda column: _words(rows, column))
    others = [column for column in texts if column != longest]
    note = (
        f"of several columns of text the longest is read; there are {', '.join(others)} too" if others else ""
    )
    return (longest,), (note,) if note else ()


def _is_id(rows: list[dict[str, Any]], column: str) -> bool:
    return (
        re.search(r"(^|_)(id|idx|guid|uid|url)\d*$", column.lower()) is not None
        and _words(rows, column) <= 1.5
    )


# ---- Teachers and labels ----


def _named_apart(teachers: Sequence[str]) -> list[TeacherSpec]:
    seen: dict[str, int] = {}
    specs = []
    for i, source in enumerate(teachers):
        name = Path(source).name
        seen[name] = seen.get(name, 0) + 1
        specs.append(
            TeacherSpec(
                source, name=None if seen[name] == 1 else f"{name}-{seen[name]}", place=f"teachers.models.{i}"
            )
        )
    return specs


def _label_names(
    found: Found, specs: Sequence[TeacherSpec], task: str
) -> tuple[tuple[str, ...] | None, list[str]]:
    """The student's label names, and what of them is only assumed."""
    own = {spec.called: stated_labels(spec) for spec in specs}
    known = {
        # A single output is the label's, whatever it is called.
        name: labels
        for name, labels in own.items()
        if labels and len(labels) > 1 and not any(map(is_generic, labels))
    }
    names, notes = found.names, []
    if names is None and known:
        teacher, names = next(iter(known.items()))
        if found.numbers and found.label is not None:
            notes.append(
                f"CHECK: the data has numbers without names; this is the order of the teacher {teacher!r}. "
                "`hf-distill audit` says whether it is right."
            )
    for spec in specs:
        if names is None or spec.called not in known:
            continue
        try:
            family_of(task).match(known[spec.called], names, spec.called)
        except LabelNameError as error:
            raise error.placed(spec.place) from None
    return names, notes


# ---- The recipe ----


def _written(
    found: Found,
    names: tuple[str, ...] | None,
    specs: Sequence[TeacherSpec],
    student: str | None,
    notes: Sequence[str],
    task: str,
) -> str:
    family = family_of(task)
    judged = "test" in found.splits or "validation" in found.splits
    lines = [
        "# Made by `hf-distill init`: what was found, and the usual for the rest. Next:",
        "#   hf-distill validate THIS_FILE       what it would take; --load also loads data and teachers",
        *(
            ["#   hf-distill audit THIS_FILE          what the teachers are worth, before any training"]
            if family.has_classes
            else []
        ),
        "#   hf-distill train THIS_FILE          the student, its baseline, and whether it was worth it",
        f"task: {task}",
        "data:",
        *_block(found.source, 2),
        f"  text_columns: {_flow(list(found.texts))}"
        + ("  # a pair" if len(found.texts) == 2 else "")
        + (f"  # not used: {', '.join(found.others)}" if found.others else ""),
        *(f"  # {note}" for note in found.notes),
    ]
    if found.label is None:
        lines.append(
            "  # no column of labels was found: the student learns from the teachers alone (losses.task_weight: 0)"
        )
    else:
        lines.append(f"  label_column: {_flow(found.label)}")
    lines += [f"  # {note}" for note in notes]
    if names is not None:
        lines.append(f"  label_names: {_flow(list(names))}  # {len(names)}")
    if not judged:
        lines.append(
            "  # No rows to judge on: hold some out and name them under files, validation: or test:."
        )
    lines += ["", "teachers:", "  models:"]
    for spec in specs:
        own = stated_labels(spec)
        entry: dict[str, Any] = {"model": spec.id_or_path} | ({"name": spec.name} if spec.name else {})
        unnamed = own is not None and any(map(is_generic, own))
        if unnamed and names is not None and own is not None and len(own) == len(names):
            entry["labels"] = dict(zip(own, names, strict=True))
            lines.append(
                f"    - {_flow(entry)}  # CHECK: it does not name its labels; this is the order of yours"
            )
        else:
            lines.append(f"    - {_flow(entry if len(entry) > 1 else spec.id_or_path)}" + _said(own, names))
    lines += [
        "  cache_dir: cache  # each teacher runs once over each row",
        "",
        *_student(found, specs, student),
    ]
    lines += [
        "",
        "fusion: auto  # fitted on labelled validation rows where there are enough, else the plain mean",
    ]
    weight = (
        "task_weight: 0.5, distill_weight: 0.5"
        if found.label is not None
        else "task_weight: 0, distill_weight: 1"
    )
    weight = f"temperature: 2, {weight}" if family.has_classes else weight
    lines += [f"losses: {{{weight}}}", "", "training:", "  num_train_epochs: 3"]
    lines += ["  per_device_train_batch_size: 32", "  learning_rate: 5e-5"]
    if "validation" in found.splits and found.label is not None:
        lines += [
            "  eval_strategy: epoch  # the validation rows choose the checkpoint",
            "  save_strategy: epoch",
            "  save_total_limit: 1",
            "  load_best_model_at_end: true",
            f"  metric_for_best_model: {family.searched}",
        ]
    lines += ["  report_to: none"]
    if found.label is None or not judged:
        lines += ["", "evaluation: {split: none}  # no labelled rows to judge on"]
    return "\n".join(lines) + "\n"


def _student(found: Found, specs: Sequence[TeacherSpec], student: str | None) -> list[str]:
    first = specs[0]
    config = _config(student or first.id_or_path)
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    length = found.length
    if isinstance(positions, int) and positions > 4:
        length = min(length, positions - 2)  # RoBERTa's positions begin at 2
    if student is not None:
        return ["student:", f"  model: {_flow(student)}", f"  max_length: {length}"]
    layers = config.get("num_hidden_layers") or config.get("n_layers")
    if isinstance(layers, int):
        kept = max(1, layers // 2)
        return [
            "student:",
            f"  from_teacher: {_flow(first.called)}  # or model: a checkpoint to start from",
            f"  layers: {kept}  # of {layers}",
            f"  max_length: {length}",
        ]
    return [
        "student:",
        "  model: distilbert/distilbert-base-uncased  # or any other checkpoint",
        f"  max_length: {length}",
    ]


def _config(source: str) -> dict[str, Any]:
    try:
        content = json.loads(Path(source, "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _said(own: Sequence[str] | None, names: Sequence[str] | None) -> str:
    if own is None:
        return "  # its labels are read when it is loaded: hf-distill validate --load"
    if names is not None and list(own) != list(names):
        return f"  # its labels: {', '.join(own[:8])}{', …' if len(own) > 8 else ''}; matched by name"
    return ""


def _block(value: dict[str, Any], indent: int) -> list[str]:
    lines = []
    for key, item in value.items():
        if isinstance(item, dict):
            lines += [f"{' ' * indent}{key}:", *_block(item, indent + 2)]
        else:
            lines.append(f"{' ' * indent}{key}: {_flow(item)}")
    return lines


def _flow(value: Any) -> str:
    """A value in one line, as YAML reads it back."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    text = str(value)
    plain = re.fullmatch(r"[\w./~][\w./ ~+@-]*", text) is not None and text == text.strip()
    read, _, wrong = yaml12.read(text) if plain else (None, [], ["quoted"])
    return text if not wrong and read == text else json.dumps(text, ensure_ascii=False)

"""The section `data`: checked, and the rows that it names as `datasets.Dataset` per split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import load_dataset
from datasets.exceptions import DatasetsError

from ..errors import DataError
from ..lookup import suggest
from ..tasks import build_task
from ..tasks.multi_label import joined_labels
from ..teachers.hub_ids import data_commit
from .loss_section import needs_labels
from .problems import Problem, found, given
from .sections import SPLITS, Data, Recipe, Splits
from .tables import FORMATS, Columns, columns_of, format_of, read_files, stream_files

# How many rows of a stream are shuffled at a time.
_BUFFER = 10_000


def check_data(data: Mapping[str, Any]) -> Iterator[Problem]:
    """Check the section beyond the types of its keys.

    Args:
        data: The section.
    """
    if len(given(data, "dataset", "files")) != 1:
        yield Problem("data", "exactly one of dataset and files says where the rows come from")
    if given(data, "files"):
        yield from (
            Problem(f"data.{key}", f"it is for a Hub dataset, not for files; found {found(data[key])}")
            for key in given(data, "config", "revision", "splits")
        )
    for where, name in named_files(data):
        suffix, compressed = format_of(name)
        if suffix not in FORMATS or (compressed and suffix == "parquet"):
            known = "csv, tsv, json, jsonl (each also .gz) and parquet"
            yield Problem(where, f"the format is known by the suffix, of {known}; found {name!r}")
    augment = data.get("augment")
    if isinstance(augment, Mapping) and not augment.get("crop") and not augment.get("flip"):
        yield Problem("data.augment", "does nothing without crop and flip: give one, or leave it out")
    columns = data.get("text_columns")
    if isinstance(columns, list) and all(isinstance(column, str) for column in columns):
        if len(set(columns)) < len(columns):
            yield Problem("data.text_columns", f"the two columns of a pair must differ, found {columns}")
        if data.get("label_column", "label") in columns:
            yield Problem("data.label_column", f"it cannot be a text column too, found {columns}")
    names = data.get("label_names")
    if (
        isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and len(set(names)) < len(names)
    ):
        twice = next(name for name in names if names.count(name) > 1)
        yield Problem("data.label_names", f"{twice!r} stands more than once")


def named_files(data: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Where each file of the section stands, and its name."""
    files = data.get("files")
    for split in SPLITS if isinstance(files, dict) else ():
        value = files.get(split)
        for name in [value] if isinstance(value, str) else value if isinstance(value, list) else []:
            if isinstance(name, str) and name:
                yield f"data.files.{split}", name


def load_data(recipe: Recipe) -> dict[str, datasets.Dataset]:
    """Load the raw rows of a recipe and check that the columns it names are there.

    Args:
        recipe: A recipe of `load_recipe`.

    Returns:
        The rows under "train", and under "validation" and "test" where the data has them.

    Raises:
        DataError: Data that cannot be read, splits or columns that are not there.

    Example:
        >>> file = getfixture("tmp_path") / "reviews.csv"
        >>> _ = file.write_text("text,label\\na fine film,good\\n")
        >>> recipe = Recipe(
        ...     data={"files": {"train": str(file)}}, teachers={"models": ["org/bert"]}, student={"model": "org/small"}
        ... )
        >>> load_data(recipe)["train"][0]
        {'text': 'a fine film', 'label': 'good'}
    """
    rows = _from_files(recipe) if recipe.data.files else _from_hub(recipe)
    if recipe.data.max_rows is not None:
        rows = {split: _at_most(part, getattr(recipe.data.max_rows, split)) for split, part in rows.items()}
    if recipe.data.streaming:
        seed = int(recipe.training.get("seed", 42))
        rows["train"] = rows["train"].shuffle(seed=seed, buffer_size=_BUFFER)
    if recipe.evaluation.split not in (None, "none", *rows):
        raise DataError(
            f"evaluation.split is {recipe.evaluation.split!r}, but the data has only {', '.join(rows)}"
            f"{'; name it in data.splits' if recipe.data.dataset else ''}"
        )
    if recipe.training.get("eval_strategy", "no") != "no" and "validation" not in rows:
        raise DataError(
            f"training.eval_strategy is {recipe.training['eval_strategy']!r}, but the data has no validation split, "
            f"only {', '.join(rows)}"
        )
    return rows


def _at_most(rows: Any, most: int | None) -> Any:
    """Some of the rows, the same every time: drawn, since files are often sorted by class; of a stream its first."""
    if most is None:
        return rows
    if isinstance(rows, datasets.IterableDataset):
        return rows.take(most)
    if len(rows) <= most:
        return rows
    return rows.select(np.sort(np.random.default_rng(0).permutation(len(rows))[:most]))


def evaluation_split(recipe: Recipe, rows: Mapping[str, Any]) -> str | None:
    """The split of the verdict; None where there is to be none.

    Args:
        recipe: The recipe; without `evaluation.split` it is the test split, or else the validation split.
        rows: What `load_data` returned.
    """
    if recipe.evaluation.split is not None:
        return None if recipe.evaluation.split == "none" else recipe.evaluation.split
    return next((split for split in ("test", "validation") if split in rows), None)


def _from_files(recipe: Recipe) -> dict[str, datasets.Dataset]:
    data = recipe.data
    assert data.files is not None
    files = {split: list(paths) for split in SPLITS if (paths := getattr(data.files, split))}
    missing = [
        str(Path(name).absolute()) for names in files.values() for name in names if not Path(name).is_file()
    ]
    if missing:
        raise DataError(f"data.files: there is no file {', '.join(missing)}")
    columns = Columns(data.text_columns, data.label_column)
    rows = {}
    for split, names in files.items():
        read = stream_files if data.streaming and split == "train" else read_files
        rows[split] = read(names, columns, split, data.label_columns or (), build_task(recipe.task).content)
        if data.label_column not in rows[split].column_names:
            found = dict.fromkeys(column for name in names for column in columns_of(name, columns))
            _check_columns(recipe, split, list(found))
    return rows


def _from_hub(recipe: Recipe) -> dict[str, datasets.Dataset]:
    data = recipe.data
    assert data.dataset is not None
    options = {"name": data.config, "revision": data.revision}
    available = _load("data.dataset", data.dataset, streaming=data.streaming, **options)
    rows = {}
    for split in SPLITS:
        name = getattr(data.splits, split)
        if name in available:
            rows[split] = available[name]
        elif name is not None and ("[" in name or "+" in name):
            rows[split] = _load(
                f"data.splits.{split}", data.dataset, split=name, streaming=data.streaming, **options
            )
        elif name is not None and (split == "train" or name != Splits.model_fields[split].default):
            raise DataError(
                f"data.splits.{split}: {data.dataset} has no split {name!r}{suggest(name, available)}; "
                f"it has: {', '.join(available)}"
            )
    if data.streaming:
        rows = {
            split: part
            if split == "train"
            else _in_memory(part, data.max_rows and getattr(data.max_rows, split))
            for split, part in rows.items()
        }
    _refuse_other_commit(data, rows["train"])
    kept = [*data.text_columns, data.label_column]
    for split, dataset in rows.items():
        if data.label_columns:
            rows[split] = dataset = joined_labels(dataset, data.label_columns, into=data.label_column)
        _check_columns(recipe, split, dataset.column_names)
        rows[split] = dataset.select_columns([column for column in kept if column in dataset.column_names])
    return rows


def _in_memory(rows: datasets.IterableDataset, most: int | None) -> datasets.Dataset:
    """The rows of a stream that are to be evaluated, which are asked for again and again."""
    kept = rows if most is None else rows.take(most)
    return datasets.Dataset.from_list(list(kept), features=kept.features)


def _refuse_other_commit(data: Data, rows: datasets.Dataset) -> None:
    """Offline, `datasets` takes what it loaded last, whichever revision is asked for."""
    loaded = data_commit(rows)
    if data.revision and loaded and loaded != data.revision and len(data.revision) == len(loaded):
        raise DataError(
            f"data.revision is {data.revision}, but the rows of {data.dataset} that are on this machine are of {loaded}: load "
            "them once with a connection, or name that revision"
        )


def _load(where: str, *arguments: Any, **options: Any) -> Any:
    try:
        return load_dataset(*arguments, **options)
    except (DatasetsError, OSError, ValueError) as error:
        # `datasets` hides what pandas or pyarrow found behind "An error occurred while generating the dataset".
        reason = " ".join(str(error.__cause__ or error).split())
        raise DataError(f"{where}: {arguments[0]} cannot be loaded: {reason[:600]}") from error


def _check_columns(recipe: Recipe, split: str, columns: list[str]) -> None:
    needed = dict.fromkeys(recipe.data.text_columns, "data.text_columns")
    if (split == "train" and needs_labels(recipe.losses)) or split == recipe.evaluation.split:
        needed[recipe.data.label_column] = "data.label_column"
    for column, key in needed.items():
        if column not in columns:
            raise DataError(
                f"{key}: the {split} rows have no column {column!r}{suggest(column, columns)}; "
                f"their columns are: {', '.join(columns)}"
            )

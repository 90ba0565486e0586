"""The rows that a recipe names, as `datasets.Dataset` per split."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from ..lookup import suggest
from .checking import FORMATS
from .loss_section import needs_labels
from .sections import SPLITS, Data, Recipe, Splits

if TYPE_CHECKING:
    import datasets


def load_data(recipe: Recipe) -> dict[str, datasets.Dataset]:
    """Loads the raw rows of a recipe and checks that the columns it names are there.

    Args:
        recipe: a recipe of `load_recipe`.

    Returns:
        The rows under "train", and under "validation" and "test" where the data has them.

    Raises:
        DataError: data that cannot be read, splits or columns that are not there.

    Example:
        >>> file = getfixture("tmp_path") / "reviews.csv"
        >>> _ = file.write_text("text,label\\na fine film,good\\n")
        >>> recipe = Recipe(
        ...     data={"files": {"train": str(file)}}, teachers={"models": ["org/bert"]}, student={"model": "org/small"}
        ... )
        >>> load_data(recipe)["train"][0]
        {'text': 'a fine film', 'label': 'good'}
    """
    rows = _from_files(recipe.data) if recipe.data.files else _from_hub(recipe.data)
    for split, dataset in rows.items():
        _check_columns(recipe, split, dataset.column_names)
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


def evaluation_split(recipe: Recipe, rows: Mapping[str, Any]) -> str | None:
    """Returns the split of the verdict, or None where there is to be none.

    Args:
        recipe: the recipe; without `evaluation.split` it is the test split, or else the validation split.
        rows: what `load_data` returned.
    """
    if recipe.evaluation.split is not None:
        return None if recipe.evaluation.split == "none" else recipe.evaluation.split
    return next((split for split in ("test", "validation") if split in rows), None)


def _from_files(data: Data) -> dict[str, datasets.Dataset]:
    assert data.files is not None
    files = {split: list(paths) for split in SPLITS if (paths := getattr(data.files, split))}
    missing = [
        str(Path(name).absolute()) for names in files.values() for name in names if not Path(name).is_file()
    ]
    if missing:
        raise DataError(f"data.files: there is no file {', '.join(missing)}")
    suffix = Path(files["train"][0]).name.lower().removesuffix(".gz").rpartition(".")[2]
    options: dict[str, Any] = {}
    if FORMATS[suffix] == "csv":
        # Left to itself, pandas reads the texts and labels "NA", "None" and "null" as missing. Only an empty label is.
        options = {
            "sep": "\t" if suffix == "tsv" else ",",
            "keep_default_na": False,
            "na_values": {data.label_column: [""]},
        }
    return dict(_load("data.files", FORMATS[suffix], data_files=files, **options))


def _from_hub(data: Data) -> dict[str, datasets.Dataset]:
    assert data.dataset is not None
    options = {"name": data.config, "revision": data.revision}
    available = _load("data.dataset", data.dataset, **options)
    rows = {}
    for split in SPLITS:
        name = getattr(data.splits, split)
        if name in available:
            rows[split] = available[name]
        elif name is not None and ("[" in name or "+" in name):
            rows[split] = _load(f"data.splits.{split}", data.dataset, split=name, **options)
        elif name is not None and (split == "train" or name != Splits.model_fields[split].default):
            raise DataError(
                f"data.splits.{split}: {data.dataset} has no split {name!r}{suggest(name, available)}; "
                f"it has: {', '.join(available)}"
            )
    _refuse_other_commit(data, rows["train"])
    return rows


def _refuse_other_commit(data: Data, rows: datasets.Dataset) -> None:
    """Offline, `datasets` takes what it loaded last, whichever revision is asked for."""
    from ..teachers.hub_ids import data_commit

    loaded = data_commit(rows)
    if data.revision and loaded and loaded != data.revision and len(data.revision) == len(loaded):
        raise DataError(
            f"data.revision is {data.revision}, but the rows of {data.dataset} that are on this machine are of {loaded}: load "
            "them once with a connection, or name that revision"
        )


def _load(where: str, *arguments: Any, **options: Any) -> Any:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        return load_dataset(*arguments, **options)
    except (DatasetsError, OSError, ValueError) as error:
        # `datasets` hides what pandas or pyarrow found behind "An error occurred while generating the dataset".
        reason = " ".join(str(error.__cause__ or error).split())
        what = (
            ", ".join(name for names in options.get("data_files", {}).values() for name in names)
            or arguments[0]
        )
        raise DataError(f"{where}: {what} cannot be loaded: {reason[:600]}") from error


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

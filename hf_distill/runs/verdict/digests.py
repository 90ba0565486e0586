"""What rows, weights and the user's own modules are known by: two trainings with the same are the same training."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
import xxhash
from transformers import PreTrainedModel

from ...recipe.sections import Recipe
from ...teachers.cache.key import add_weights


def rows_digest(rows: Mapping[str, datasets.Dataset], columns: Sequence[str]) -> str:
    """What the rows of all splits are known by.

    Args:
        rows: Raw rows by split.
        columns: Those that count, where a split has them.

    Example:
        >>> digest = rows_digest({"train": rows}, ["text", "label"])
        >>> digest == rows_digest({"train": rows.select(range(64))}, ["text", "label"])
        True
        >>> digest == rows_digest({"train": rows.select(range(63))}, ["text", "label"])
        False
    """
    digest = xxhash.xxh3_128()
    for split, dataset in rows.items():
        if isinstance(dataset, datasets.IterableDataset):  # to read it all is what it is there to avoid
            digest.update(json.dumps([split, "stream"]).encode())
            continue
        known = [column for column in columns if column in dataset.column_names]
        digest.update(json.dumps([split, known, len(dataset)]).encode())
        # As they are stored: nothing is decoded, of an image its file counts.
        for batch in dataset.select_columns(known).with_format("arrow").iter(10_000):
            stored = [batch.column(column).to_pylist() for column in known]
            digest.update(json.dumps(stored, default=str).encode())
    return digest.hexdigest()


def weights_digest(student: PreTrainedModel) -> str:
    """What weights are known by, in whichever floating type they are kept."""
    digest = xxhash.xxh3_128()
    add_weights(
        digest,
        [(name, t.float() if t.is_floating_point() else t) for name, t in student.state_dict().items()],
    )
    return digest.hexdigest()


def module_digests(recipe: Recipe) -> dict[str, str]:
    """Hashes of the user's own modules that the recipe names: edited, they make another training."""
    named = json.dumps([recipe.fusion, recipe.losses.model_dump()], default=str)
    found = {}
    for text in named.split('"'):
        module, colon, _ = text.partition(":")
        if not colon or not all(part.isidentifier() for part in module.split(".")):
            continue
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.origin and Path(spec.origin).is_file():
            found[module] = xxhash.xxh3_128_hexdigest(Path(spec.origin).read_bytes())
    return found

"""What `cache` does: every teacher run once over every row, and what a cache holds."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError, DataError
from ..markdown import markdown_table
from ..processes import say
from ..recipe.setup import Setup
from ..teachers.cache.store import cache_info


def cache_recipe(setup: Setup) -> str:
    """Compute what the teachers' cache of a recipe lacks, for the rows of every split.

    Args:
        setup: Of a recipe with `teachers.cache_dir`.

    Returns:
        The table of what the cache then holds.

    Raises:
        ConfigurationError: The recipe names no cache.
    """
    folder = setup.recipe.teachers.cache_dir
    if folder is None:
        raise ConfigurationError(
            "teachers.cache_dir is missing; name the folder of the cache, e.g. teachers.cache_dir=cache"
        )
    rows = setup.rows
    cache = setup.cache(setup.arguments.device)
    assert cache is not None
    for split, dataset in rows.items():
        computed = cache.add(dataset, setup.recipe.data.text_columns)
        say(f"{split}: {len(dataset)} rows; {computed} outputs computed, the rest was there")
    return cache_table(Path(folder))


def cache_table(folder: Path) -> str:
    """What a cache of teachers' outputs holds, as a table.

    Raises:
        DataError: There is no such folder, or no output of a teacher in it.
    """
    entries = cache_info(folder)
    if not entries:
        raise DataError(
            f"There is no cache in {folder.absolute()}: name the teachers.cache_dir of a recipe that `hf-distill cache` or "
            "`train` has filled."
        )
    rows = [
        [
            entry["key"][:12],
            _made_by(entry),
            f"{entry['rows']:,}",
            f"{entry['bytes']:,}",
            f"{entry.get('dtype', '?')}"
            + (f", {entry['precision']} autocast" if entry.get("precision") else ""),
            f"{(time.time() - entry['written']) / 3600:.1f} h",
            str(len(entry["damaged"])),
        ]
        for entry in entries
    ]
    return markdown_table(["key", "teacher", "rows", "bytes", "stored as", "age", "damaged shards"], rows)


def _made_by(entry: Mapping[str, Any]) -> str:
    """Whose outputs they are, as far as the description says so: anybody may have written it."""
    if "teacher" not in entry:
        return "? (its description cannot be read)"
    revision = entry.get("revision")
    return f"{entry['teacher']} ({entry.get('source', '?')}{f' @ {str(revision)[:8]}' if revision else ''})"

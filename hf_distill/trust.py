"""What a stored file may name: built-ins, and of somebody's own code only what was trusted by name. Imports nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .errors import UnsafeFileError


def own_path(spec: Any, table: Mapping[str, Any]) -> str | None:
    """The path ``pkg.mod:Name`` that a written spec names; None where it names something built in, or nothing that runs.

    Args:
        spec: A name, or a mapping ``{"use": name, **options}``, as it was written.
        table: The built-in names.

    Example:
        >>> own_path({"use": "subprocess:Popen", "args": ["ls"]}, {}), own_path("pool", {"pool": print})
        ('subprocess:Popen', None)
    """
    name = spec.get("use") if isinstance(spec, Mapping) else spec
    return name if isinstance(name, str) and ":" in name and name not in table else None


def refuse_untrusted(found: Iterable[tuple[str, str]], trust: Iterable[str], stored_in: object) -> None:
    """Refuse a stored file that names code which nobody trusted.

    Args:
        found: What it names, each with where in the file.
        trust: What may be named, letter by letter.
        stored_in: The file.

    Raises:
        UnsafeFileError: It names something else.

    Example:
        >>> refuse_untrusted([("fusion", "mine:Mean")], ["mine:Mean"], "fusion.json")
    """
    trusted = frozenset(trust)
    strange = [(where, name) for where, name in found if name not in trusted]
    if strange:
        where, name = strange[0]
        options = " ".join(f"--trust {name}" for name in dict.fromkeys(name for _, name in strange))
        raise UnsafeFileError(
            f"{stored_in}: {where} names {name!r}, and whoever can write a stored file could run any code by such a name: "
            f"nothing was imported. If it is yours, or you have read it, say so: {options} "
            "(in Python trust=[…])."
        )

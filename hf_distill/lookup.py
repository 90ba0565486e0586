"""From what a user writes (a name, a path, a mapping, an object) to the object itself, and what a stored file may name. Imports no torch."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from .errors import ConfigurationError, UnsafeFileError


def build(spec: Any, table: Mapping[str, Any], *, kind: str) -> Any:
    """Make the fusion, loss or task that `spec` describes.

    The one place where a string becomes an object, so that Python and YAML accept the same four spellings.

    Args:
        spec: A name in `table`; a path to the user's own object, `"pkg.mod:Name"`; a mapping
            `{"use": name_or_path, **options}`; or the object itself, which is returned as it is.
        table: The built-in names and their classes, functions or instances.
        kind: What is looked up, as a word for the error messages ("fusion").

    Returns:
        A class is instantiated with the options; a function is returned as it is, or as a
        `functools.partial` if there are options; anything else is returned as it is.

    Raises:
        ConfigurationError: Unknown name, path that cannot be imported, options that do not fit.

    Example:
        >>> from hf_distill.lookup import build
        >>> build({"use": "fraction", "denominator": 4}, {"fraction": "…"} | {"fraction": __import__("fractions").Fraction}, kind="number")
        Fraction(0, 1)
    """
    if isinstance(spec, str):
        return _make(find(spec, table, kind), {}, spec, kind)
    if isinstance(spec, Mapping):
        options = dict(spec)
        use = options.pop("use", None)
        if not isinstance(use, str):
            raise ConfigurationError(
                f"a {kind} given as a mapping names it under the key 'use' "
                f"({{use: {next(iter(table), 'name')}, …}}); found {dict(spec)!r}"
            )
        unnamed = [key for key in options if not isinstance(key, str)]
        if unnamed:
            raise ConfigurationError(f"{kind} {use!r}: options are words, found {unnamed[0]!r}")
        return _make(find(use, table, kind), options, use, kind)
    if isinstance(spec, type):
        raise ConfigurationError(
            f"{kind}: found the class {spec.__name__}, expected an instance; write {spec.__name__}()"
        )
    if spec is None or isinstance(spec, (bool, int, float, list, tuple, set)):
        raise ConfigurationError(
            f"a {kind} is a name ({', '.join(table)}), a path 'pkg.mod:Name', a mapping {{use: …}} or an object; "
            f"found {spec!r}"
        )
    return spec


def suggest(word: object, known: Iterable[str]) -> str:
    """Say `" (did you mean 'x'?)"` of the nearest of `known`, or nothing.

    Args:
        word: What was found.
        known: What would have been accepted.

    Example:
        >>> from hf_distill.lookup import suggest
        >>> suggest("temprature", ["temperature", "task_weight"])
        " (did you mean 'temperature'?)"
        >>> suggest("acc", ["accuracy", "f1"])
        " (did you mean 'accuracy'?)"
    """
    known = {name.lower(): name for name in known}
    said = str(word).lower()
    near = difflib.get_close_matches(said, known, n=1)
    # An abbreviation shares too few letters with a long word to be near it.
    near = near or [name for name in known if len(said) >= 3 and name.startswith(said)]
    return f" (did you mean {known[near[0]]!r}?)" if near else ""


def find(name: str, table: Mapping[str, Any], kind: str) -> Any:
    """Find what a name or a path stands for: a class, a function or an object, nothing called yet.

    Args:
        name: A name in `table`, or a path `"pkg.mod:Name"`.
        table: The built-in names.
        kind: What is looked up, as a word for the error messages.

    Raises:
        ConfigurationError: Unknown name, or a path that cannot be imported.
    """
    if name in table:
        return table[name]
    module_name, colon, attribute = name.partition(":")
    if not colon:
        # "pkg.mod.Name" is how Python's own import statement would put it; the colon says where the module ends.
        head, dot, tail = name.rpartition(".")
        hint = f"; a path to your own is written '{head}:{tail}'" if dot else suggest(name, table)
        raise ConfigurationError(
            f"there is no {kind} named {name!r}; known: {', '.join(sorted(table))}"
            f"{hint or '; a path to your own is written pkg.mod:Name'}"
        )
    if not all(part.isidentifier() for part in [*module_name.split("."), *attribute.split(".")]):
        raise ConfigurationError(f"the path of a {kind} is written pkg.mod:Name; found {name!r}")
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigurationError(
            f"{kind} {name!r}: the module {module_name!r} cannot be imported ({error}); "
            "it must be installed, or lie in the folder the command is run from"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = (
                [item for item in vars(found) if not item.startswith("_")]
                if hasattr(found, "__dict__")
                else []
            )
            raise ConfigurationError(
                f"{kind} {name!r}: {module_name!r} has no {attribute!r}{suggest(attribute, public)}"
            )
        found = getattr(found, part)
    return found


def named(found: Any, *tables: Mapping[str, Any]) -> str:
    """What a recipe calls a class, a function, or the class of an object; `find` finds it again.

    Args:
        found: What it is.
        tables: The built-in names.

    Returns:
        Its name in a table; ``hf_distill:Name`` for what else is ours, wherever it lies; the path of the user's own.

    Example:
        >>> from fractions import Fraction
        >>> named(Fraction(1, 2), {"fraction": Fraction}), named(Fraction, {}), named(build, {})
        ('fraction', 'fractions:Fraction', 'hf_distill:build')
    """
    own = found if inspect.isroutine(found) or isinstance(found, type) else type(found)
    known = (name for table in tables for name, item in table.items() if item is found or item is own)
    package = __name__.partition(".")[0]
    ours = own.__module__.partition(".")[0] == package
    return next(known, f"{package if ours else own.__module__}:{own.__qualname__}")


def _make(found: Any, options: dict[str, Any], name: str, kind: str) -> Any:
    is_class = isinstance(found, type)
    if not is_class and not options:
        return found
    if not is_class and not inspect.isroutine(found):
        raise ConfigurationError(
            f"{kind} {name!r} is a finished {type(found).__name__} and takes no options; found {', '.join(options)}"
        )
    try:
        signature = inspect.signature(found)
    except ValueError:  # classes written in C may have none; their own TypeError then speaks
        signature = None
    if signature is not None:
        takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
        accepted = [
            n for n, p in signature.parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        ]
        for option in options:
            if option not in accepted and not takes_any:
                raise ConfigurationError(
                    f"{kind} {name!r} has no option {option!r}{suggest(option, accepted)}; "
                    f"it takes: {', '.join(accepted) or 'none'}"
                )
    if not is_class:
        return functools.partial(found, **options)
    try:
        return found(**options)
    except ConfigurationError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{kind} {name!r} with {options or 'no options'}: {error}") from error


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

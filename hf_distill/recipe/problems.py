"""One line per problem, and the sentences for what the models of `sections.py` refuse."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from ..errors import hide_tokens
from ..lookup import suggest
from .sections import (
    Convert,
    Data,
    Evaluation,
    Files,
    HiddenEntry,
    Hub,
    Lora,
    Losses,
    MostRows,
    Recipe,
    Search,
    Splits,
    Student,
    TeacherEntry,
    Teachers,
)

# Which keys a mapping at this path may have; list positions are left out of the path.
_SECTIONS: dict[str, type[BaseModel]] = {
    "": Recipe,
    "data": Data,
    "data.files": Files,
    "data.splits": Splits,
    "data.max_rows": MostRows,
    "teachers": Teachers,
    "teachers.models": TeacherEntry,
    "teachers.models.convert": Convert,
    "student": Student,
    "student.lora": Lora,
    "losses": Losses,
    "losses.hidden": HiddenEntry,
    "evaluation": Evaluation,
    "hub": Hub,
    "search": Search,
}

_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "finite_number": "a finite number",
}


# By what pydantic calls the mistake, with what it tells beside, and `found`.
_SENTENCES = {
    "missing": "is missing, and there is no default",
    "too_short": "expected at least {min_length} of them, found {found}",
    "too_long": "expected at most {max_length} of them, found {found}",
    "less_than_equal": "expected a number of at most {le:g}, found {found}",
    "greater_than": "expected a number above {gt:g}, found {found}",
    "greater_than_equal": "expected a number of at least {ge:g}, found {found}",
    "invalid_key": "a key must be text; write it in quotes",
}


class _Short(reprlib.Repr):
    """Cuts what is long, but first of all hides tokens: a cut one is not known any more."""

    def repr_str(self, x: str, level: int) -> str:
        return super().repr_str(hide_tokens(x), level)


_short = _Short()
_short.maxstring = _short.maxother = 80
_short.maxlevel = 3


class Problem(NamedTuple):
    """One thing that is wrong with a recipe.

    Attributes:
        path: The key, as `section.key`; empty for the file as a whole.
        sentence: What was found and what is expected.
        missing_file: The recipe is right, but something it names is not on this machine.
    """

    path: str
    sentence: str
    missing_file: bool = False


def found(value: Any) -> str:
    """Write `value` as an error line shows it: YAML's own words for null and booleans, cut where long."""
    if value is None:
        return "nothing"
    return str(value).lower() if isinstance(value, bool) else _short.repr(value)


def applying(*checks: tuple[Any, str, str]) -> list[Problem]:
    """Turn those checks into problems whose condition holds.

    Args:
        checks: Whether it is a problem, the path, the sentence.

    Returns:
        The problems, in the order given.
    """
    return [Problem(path, sentence) for applies, path, sentence in checks if applies]


def given(section: Mapping[str, Any], *keys: str) -> list[str]:
    """Those of the keys that a section has a value for."""
    return [key for key in keys if section.get(key) is not None]


def unknown_key(path: Sequence[str], value: Any, known: Iterable[str], elsewhere: Iterable[str]) -> Problem:
    """The problem of a key that does not exist, with the nearest one that does.

    Args:
        path: The path of the key.
        value: What was written there.
        known: The keys of the same mapping.
        elsewhere: Paths of keys in other sections, looked at where none of `known` is near.
    """
    known = list(known)
    hint = suggest(path[-1], known)
    if not hint:
        by_last_part = {full.rpartition(".")[2]: full for full in elsewhere}
        near = suggest(path[-1], by_last_part)
        for last, full in by_last_part.items():
            if repr(last) in near:
                hint = f" (did you mean {full!r}?)"
    if not hint and len(known) <= 12:
        hint = f" (known here: {', '.join(known)})"
    return Problem(".".join(path), f"unknown key, found {found(value)}{hint}")


def known_paths() -> list[str]:
    """Every key of every section but `training`, as a path; those of `search` are keys of others."""
    return [
        f"{section}.{key}".lstrip(".")
        for section, model in _SECTIONS.items()
        for key in model.model_fields
        if section != "search"
    ]


def from_validation(error: ValidationError, training_keys: Iterable[str]) -> list[Problem]:
    """Say the problems behind a pydantic error in our words.

    Args:
        error: What validating a `Recipe` raised.
        training_keys: The names of all training arguments, for suggestions.
    """
    elsewhere = [*known_paths(), *(f"training.{key}" for key in training_keys)]
    items = error.errors(include_url=False)
    places = [tuple(item["loc"]) for item in items]
    problems = []
    for item, place in zip(items, places, strict=True):
        if item["type"] == "too_short" and any(other[: len(place)] == place != other for other in places):
            continue  # the list is too short only without the items that have a line of their own
        path = [str(part) for part in place]
        if item["type"] == "extra_forbidden":
            section = ".".join(part for part in path[:-1] if not part.isdigit())
            problems.append(unknown_key(path, item["input"], _SECTIONS[section].model_fields, elsewhere))
        else:
            problems.append(Problem(".".join(path), _sentence(item)))
    return problems


def _sentence(item: Any) -> str:
    kind, value, context = item["type"], item["input"], item.get("ctx", {})
    if kind in _SENTENCES:
        return _SENTENCES[kind].format(**context, found=found(value))
    if kind == "value_error":
        sentence = str(context["error"])
        return sentence if "found" in sentence else f"{sentence}; found {found(value)}"
    if kind == "literal_error":
        choices = [choice.strip("'") for choice in context["expected"].replace(" or ", ", ").split(", ")]
        return f"expected one of {', '.join(choices)}; found {found(value)}{suggest(value, choices)}"
    if kind not in _EXPECTED:
        return f"{item['msg']}; found {found(value)}"
    return f"expected {_EXPECTED[kind]}, found {found(value)}{_quoting_hint(kind, value)}"


def _quoting_hint(kind: str, value: Any) -> str:
    said, as_text = str(value).lower(), isinstance(value, str)
    hints = (
        (kind == "string_type" and isinstance(value, (int, float)), "; write it in quotes if it is text"),
        (kind == "bool_type" and said in ("yes", "on", "y", "1"), " (did you mean 'true'?)"),
        (kind == "bool_type" and said in ("no", "off", "n", "0"), " (did you mean 'false'?)"),
        (kind == "tuple_type" and as_text, f"; write [{value}]"),
        (
            kind in ("int_type", "float_type")
            and as_text
            and value.strip("+-").replace(".", "", 1).isdigit(),
            "; write it without quotes",
        ),
    )
    return next((hint for applies, hint in hints if applies), "")

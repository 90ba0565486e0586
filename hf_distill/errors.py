"""The errors a user can cause, each with the exit code the command line gives it.

Everything here is a `ValueError`: whoever catches `ValueError` around a call catches ours. Errors that are our
own mistake stay `AssertionError` or whatever Python raises, with their traceback. No message of ours shows a token of
the Hub: one that was written into the wrong place would otherwise be in every log.
"""

from __future__ import annotations

import importlib.metadata
import json
import re

# A token is hf_ and 34 letters, large and small. Shorter ones are cut or mistyped; but a part of a path (hf_Datasets/train.csv)
# is none, nor is a word without capitals (`hf-distill push hf_run20240101 me/small`).
_TOKEN = re.compile(
    r"hf_(?:[A-Za-z0-9]{30,}|(?<![/\\]hf_)(?=[a-z0-9]*[A-Z])[A-Za-z0-9]{8,}(?![A-Za-z0-9_/\\-]|\.\w))"
)


def hide_tokens(text: str) -> str:
    """Leave out of a text what looks like a token of the Hub.

    Args:
        text: Of a message.

    Example:
        >>> hide_tokens("found 'hf_abcDEFghijkl', no file data/hf_datasets.csv")
        "found 'hf_…', no file data/hf_datasets.csv"
    """
    return _TOKEN.sub("hf_…", text)


class HfDistillError(ValueError):
    """Root of the errors whose message tells the user what to do; the command line prints it without traceback."""

    exit_code: int = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(hide_tokens(message))


class ConfigurationError(HfDistillError):
    """A recipe, an argument or an environment that cannot work."""

    exit_code = 2


class DataError(HfDistillError):
    """Data, labels or teachers that do not fit together."""

    exit_code = 3


class LabelNameError(DataError):
    """Labels of a teacher that have to be named, and how that is written where the teacher is named.

    Args:
        message: The sentence, as Python writes it.
        parts: The same in parts: text as it is, a mapping or a list of label names, and an empty mapping for the argument's
            name alone.

    Example:
        >>> error = LabelNameError.of("Say ", {"LABEL_0": "good"}, ".")
        >>> str(error), str(error.placed("teachers.models.2"))
        ('Say labels={"LABEL_0": "good"}.', 'Say teachers.models.2.labels: {LABEL_0: good}.')
    """

    def __init__(self, message: str = "", parts: tuple[str | dict[str, str] | list[str], ...] = ()) -> None:
        super().__init__(message)
        self.parts = parts

    @classmethod
    def of(cls, *parts: str | dict[str, str] | list[str]) -> LabelNameError:
        """The error of a sentence in parts."""
        said = []
        for part in parts:
            written = json.dumps(part, ensure_ascii=False) if isinstance(part, dict) else repr(part)
            said.append(part if isinstance(part, str) else f"labels={written if part else ''}")
        return cls("".join(said), parts)

    def placed(self, place: str | None) -> LabelNameError:
        """The same of a teacher that a recipe names.

        Args:
            place: Of its entry, ``teachers.models.2``; None: it is none of a recipe.
        """
        if place is None or not self.parts:
            return self
        said = []
        for part in self.parts:
            if isinstance(part, dict):
                written = ", ".join(f"{_plain(name)}: {_plain(label)}" for name, label in part.items())
                said.append(f"{place}.labels" + (f": {{{written}}}" if part else ""))
            elif isinstance(part, list):
                said.append(f"{place}.labels: [{', '.join(map(_plain, part))}]")
            else:
                said.append(part)
        return type(self)("".join(said), self.parts)


def _plain(name: str) -> str:
    """A label's name as YAML reads it back."""
    plain = re.fullmatch(r"[A-Za-z_]\w*(?:[ -]\w+)*", name) and name.lower() not in _WORDS_OF_YAML
    return name if plain else json.dumps(name, ensure_ascii=False)


_WORDS_OF_YAML = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}


class UnsafeFileError(HfDistillError):
    """A file whose loading could run somebody else's code."""

    exit_code = 4


class CorruptStateError(HfDistillError):
    """A saved state (checkpoint, cache, report) that is damaged or incomplete."""

    exit_code = 5


class StorageError(CorruptStateError):
    """A disk that takes nothing more, or a place where nothing may be written; what was saved before is whole."""


class StoppedError(HfDistillError):
    """A training that a signal ended after a good checkpoint.

    Attributes:
        checkpoint: The folder to go on from.
        exit_code: 143 after SIGTERM, 130 after SIGINT.
    """

    def __init__(self, message: str, *, number: int, checkpoint: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + number
        self.checkpoint = checkpoint


class PushError(HfDistillError):
    """The push to the Hub failed; what was trained is complete on disk."""

    exit_code = 6


def how_to_install(package: str, *, extra: str | None = None) -> str:
    """Say how a missing package is installed; no index has hf-distill itself, so its extras come from the repository.

    Args:
        package: Its name, for what no extra brings.
        extra: The extra that brings it, where one does; which versions, this package's own metadata says.

    Example:
        >>> how_to_install("peft", extra="peft")
        "pip install 'peft>=0.21' (or, in the folder of the hf-distill repository, pip install '.[peft]')"
        >>> how_to_install("wandb", extra="wandb")
        'pip install wandb'
    """
    try:
        listed = importlib.metadata.requires("hf-distill") or []
    except importlib.metadata.PackageNotFoundError:  # used from its source
        listed = []
    needed = [line.partition(";")[0].strip() for line in listed if f'extra == "{extra}"' in line]
    if not needed:
        return f"pip install {package}"
    quoted = " ".join(f"'{requirement}'" for requirement in needed)
    return f"pip install {quoted} (or, in the folder of the hf-distill repository, pip install '.[{extra}]')"


def in_a_line(error: BaseException, most: int = 400) -> str:
    """What another library's error says, in a line of at most so many characters.

    Example:
        >>> in_a_line(OSError("no such\\n   file"))
        'no such file'
    """
    return " ".join(str(error).split())[:most]


def explained(error: BaseException) -> tuple[str, int]:
    """What the command line says of any error, in a sentence, and the exit code it ends with.

    Ours speak for themselves. Others are told in a line, with the way to more: what concerns a file or the disk ends
    with the code of storage, anything else with 1.

    Args:
        error: What was raised.

    Example:
        >>> explained(DataError("a.csv, line 3: two fields, expected three"))
        ('a.csv, line 3: two fields, expected three', 3)
        >>> explained(KeyError("weights"))
        ("KeyError: 'weights'. This was not foreseen; with --debug the same command shows where it happened.", 1)
    """
    if isinstance(error, HfDistillError):
        return str(error), error.exit_code
    said = hide_tokens(in_a_line(error)).rstrip(".")
    name = type(error).__name__
    told = f"{name}: {said}" if said else name
    where = "with --debug the same command shows where it happened."
    if isinstance(error, OSError) and error.errno is not None:
        reason = f"{error.strerror or said}".lower()
        path = f"{error.filename}: " if error.filename is not None else ""
        return hide_tokens(f"{path}{reason} ({name}); {where}"), CorruptStateError.exit_code
    if isinstance(error, MemoryError) or name == "OutOfMemoryError":
        return (
            f"The memory does not suffice ({told}): take smaller batches or fewer teachers; {where}",
            HfDistillError.exit_code,
        )
    return f"{told}. This was not foreseen; {where}", HfDistillError.exit_code

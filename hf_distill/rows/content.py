"""What rows hold for models to read: how it is checked, known by, told to people, and which view a model reads it by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Protocol

from ..errors import ConfigurationError
from .views import View


class Content(Protocol):
    """The seam between kinds of content: text, images, numbers of your own.

    A task says which one its rows hold. A class of your own inherits this one: only `read`, `example_id` and `open_view` have to
    be written, the rest has a default.

    Attributes:
        name: In a word, for messages: "text".
        keys: What pipelines and answers call the columns that a model reads of a row, as many as there may be.
        of_tokens: Whether models read it as tokens, whose states and attention can be compared.
        processor_class: The class of `transformers` that loads what stands between content and model; None: nothing does.
    """

    name: str
    keys: tuple[str, ...] = ("inputs",)
    of_tokens: bool = False
    processor_class: str | None = None

    def read(self, value: Any) -> Any:
        """The content of a column of a row as views, `example_id` and `told` take it.

        Args:
            value: What stands there, of whatever type.

        Raises:
            ValueError: It is nothing of the kind; the message says what was found and what is expected.
        """
        ...

    def example_id(self, row: Sequence[Any]) -> int:
        """Which example a row is: 63 bits of a hash of what `read` made of its columns, the same wherever the row stands."""
        ...

    def open_view(self, model: Any, processor: Any, max_length: int | None, *, what: str) -> View:
        """How a model reads the content, once model and processor are known to fit together.

        Args:
            model: A `PreTrainedModel`.
            processor: What ``processor_class`` loads.
            max_length: Longest input, where a user says one.
            what: Whose they are, for messages: "Teacher 'bert'".

        Raises:
            DataError, ConfigurationError: They do not fit.
        """
        ...

    def plain_view(self, processor: Any, max_length: int | None) -> View:
        """The view of a processor and a length that are known to fit, whatever model reads it."""
        return self.open_view(None, processor, max_length, what="The model")

    def told(self, row: Sequence[Any]) -> tuple[str, ...]:
        """A row in words, one text for each column, for reports and messages."""
        return tuple(str(value) for value in row)

    def given(self, text: str) -> Any:
        """What somebody means who writes the content as text, on a command line or in a file of text: as `read` makes it."""
        return self.read(json.loads(text))

    def as_stored(self, dataset: Any, columns: Sequence[str]) -> Any:
        """A dataset whose columns give what `read` takes, with nothing done to it that `read` would undo."""
        return dataset

    def file_feature(self) -> Any:
        """The type of the column in datasets that are read from files of rows."""
        raise ConfigurationError(
            f"Nothing says how {self.name} are read from files: pass raw rows to the trainer, or name a dataset."
        )

    def of_file(self, value: Any, folder: str) -> Any:
        """What a file of rows has there, as `file_feature` stores it.

        Args:
            value: What stands there.
            folder: Of the file, from which paths in it count.

        Raises:
            ValueError: It is nothing of the kind.
        """
        return self.read(value)

    def other_files(self, value: Any, folder: str) -> str | None:
        """The path of another file that a value names, where it does; the arguments are those of `of_file`."""
        return None

    def config_of(self, processor: Any) -> dict[str, Any]:
        """What the config of a model made from scratch takes over from its processor."""
        return {}

    def refuse_processor(self, processor: Any) -> str | None:
        """What is wrong with a processor that was loaded; None where nothing is."""
        return None


def hashed(parts: Any) -> int:
    """63 bits of a hash.

    Args:
        parts: Bytes, or what JSON can hold.

    Example:
        >>> hashed(["a"]) == hashed(["a"]) != hashed(["b"])
        True
    """
    content = parts if isinstance(parts, bytes) else json.dumps(parts).encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") >> 1

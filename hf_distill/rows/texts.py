"""Rows of text, or of pairs of texts, which every model reads through its own tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets

from .content import Content, hashed
from .token_checks import open_token_view
from .views import TokenView, View


@dataclass(frozen=True)
class Texts(Content):
    """Text in one column, or in two.

    Example:
        >>> TEXTS.read("a fine film"), TEXTS.told(["a fine film"])
        ('a fine film', ('a fine film',))
    """

    name: str = "text"
    keys: tuple[str, ...] = ("text", "text_pair")
    of_tokens: bool = True
    processor_class: str | None = "AutoTokenizer"

    def read(self, value: Any) -> str:
        """The text itself.

        Raises:
            ValueError: It is none.
        """
        if not isinstance(value, str):
            raise ValueError(f"found {value!r}, expected text")
        return value

    def example_id(self, row: Sequence[str]) -> int:
        """63 bits of a hash of the texts."""
        return hashed(list(row))

    def open_view(self, model: Any, processor: Any, max_length: int | None, *, what: str) -> View:
        """A `TokenView`, see `open_token_view`."""
        return open_token_view(model, processor, max_length, what=what)

    def plain_view(self, processor: Any, max_length: int | None) -> View:
        """A `TokenView`."""
        return TokenView(processor, max_length)

    def told(self, row: Sequence[str]) -> tuple[str, ...]:
        """The texts."""
        return tuple(row)

    def given(self, text: str) -> str:
        """The text."""
        return text

    def file_feature(self) -> Any:
        """Whatever a file has, it is text."""
        return datasets.Value("string")

    def of_file(self, value: Any, folder: str) -> str:
        """The text.

        Raises:
            ValueError: It is none.
        """
        if not isinstance(value, str):
            shown = json.dumps(value, default=str)
            raise ValueError(f"found {shown if len(shown) <= 80 else shown[:77] + '…'}, expected text")
        return value

    def config_of(self, processor: Any) -> dict[str, Any]:
        """As many tokens as the tokenizer has, and its padding."""
        return {"vocab_size": len(processor), "pad_token_id": processor.pad_token_id}

    def refuse_processor(self, processor: Any) -> str | None:
        """transformers 5 makes an empty tokenizer of the model's type where no file of one is found, without a word."""
        empty = set(processor.get_vocab().values()) <= set(processor.all_special_ids)
        return "there is no tokenizer" if empty else None


TEXTS = Texts()
"""What rows of text hold."""

"""One tokenization of a batch: which tokenizer, how long, under which columns."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import ConfigurationError, DataError
from .columns import Columns, Padding, Ragged
from .words import TokenSpans

VIEWS = "teacher_views"
"""Key of the teachers' views in a batch, and prefix of their columns in a prepared row."""

WORD_OF = "word_of"
"""Column of a view, and its key in a batch: each token's word, see `WordAlignment`. The student's stands beside its inputs."""

WORD_MASK = "word_mask"
"""Key of a batch: (N, W) bool, which words a row has that student and teachers share."""


# Where a tokenizer was loaded from, which decides no token.
_WHEREABOUTS = {"name_or_path", "tokenizer_file", "vocab_file", "merges_file", "is_local", "local_files_only"}


def view_column(view: str, key: str) -> str:
    """The column of a prepared row that holds one input of one teacher view.

    Example:
        >>> view_column("bert", "input_ids")
        'teacher_views/bert/input_ids'
    """
    return f"{VIEWS}/{view.replace('/', '%2F')}/{key}"


class View(Protocol):
    """How a row reaches a teacher: what is made of its text once, and what of a batch of rows.

    Attributes:
        key: Teachers whose views have the same key share one.
    """

    key: str

    def encode(self, texts: Sequence[Sequence[str]]) -> dict[str, list[Any]]:
        """Columns to store with B prepared rows; one list of B texts, or two for pairs, come in."""
        ...

    def collate(self, encoded: Columns, example_ids: Tensor) -> dict[str, Tensor]:
        """Tensors of a batch from the stored columns of B rows and their example ids (B,)."""
        ...


@dataclass(frozen=True, eq=False)
class TokenView:
    """A tokenizer and the length it cuts at. Teachers whose views have the same key share the tokens.

    Args:
        tokenizer: The tokenizer, used as the teacher's own pipeline uses it.
        max_length: Longest input in tokens, special tokens included; None: nothing is cut.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int | None

    @functools.cached_property
    def key(self) -> str:
        """Hash of all that decides the inputs: the same for equal tokenizers loaded from different places."""
        parts = (
            type(self.tokenizer).__name__,
            self.rules,
            {name: str(token) for name, token in self.tokenizer.special_tokens_map.items()},
            list(self.tokenizer.model_input_names),
            [self.tokenizer.padding_side, self.tokenizer.truncation_side],
            bool(self.tokenizer.split_special_tokens),
            self.max_length,
        )
        return _hash(parts)

    @functools.cached_property
    def tokens_key(self) -> str:
        """Hash of what decides the tokens and where they stand; the class and the other inputs move none of them."""
        parts = (
            self.rules,
            {name: str(token) for name, token in self.tokenizer.special_tokens_map.items()},
            [self.tokenizer.padding_side, self.tokenizer.truncation_side],
            bool(self.tokenizer.split_special_tokens),
            self.max_length,
        )
        return _hash(parts)

    @functools.cached_property
    def rules(self) -> Any:
        """What cuts a text into tokens, whatever the length."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None:
            rules = json.loads(backend.to_str())
            # The tokenizer writes its last call's settings there; they are arguments of the call, not of the tokenizer.
            rules["padding"] = rules["truncation"] = None
            return rules
        return {
            "class": type(self.tokenizer).__name__,
            "vocabulary": self.tokenizer.get_vocab(),
            "settings": repr(
                sorted((k, v) for k, v in self.tokenizer.init_kwargs.items() if k not in _WHEREABOUTS)
            ),
        }

    def encode(self, texts: Sequence[Sequence[str]]) -> dict[str, list[list[int]]]:
        """Tokenize a batch of texts, or of pairs.

        Args:
            texts: One list of B texts, or two for pairs.

        Returns:
            For each input of the model B lists of numbers, not padded.
        """
        return dict(self._encoding(texts))

    def encode_with_spans(
        self, texts: Sequence[Sequence[str]]
    ) -> tuple[dict[str, list[list[int]]], TokenSpans]:
        """As `encode`, and which characters each token stands for; only fast tokenizers say that."""
        encoding = self._encoding(texts, return_offsets_mapping=True)
        spans = TokenSpans.of(encoding)
        return {key: values for key, values in encoding.items() if key != "offset_mapping"}, spans

    def _encoding(self, texts: Sequence[Sequence[str]], **options: Any) -> Any:
        return self.tokenizer(
            *texts, truncation=self.max_length is not None, max_length=self.max_length, **options
        )

    def collate(self, encoded: Columns, example_ids: Tensor) -> dict[str, Tensor]:
        """Pad B rows as the tokenizer pads, see `Padding.collate`."""
        return Padding(self.tokenizer).collate(encoded, example_ids)


def text_batches(view: View, texts: Sequence[Sequence[str]], size: int) -> Iterator[dict[str, Tensor]]:
    """Texts as a model reads them, batch by batch.

    Args:
        view: How it reads text.
        texts: One list of texts, or two for pairs.
        size: B, rows of a batch; the last may have fewer.

    Example:
        >>> view = TokenView(bert_tokenizer, 16)
        >>> [batch["input_ids"].shape[0] for batch in text_batches(view, [["a film", "fine", "a fine film"]], 2)]
        [2, 1]
    """
    for start in range(0, len(texts[0]), size):
        encoded = view.encode([list(column[start : start + size]) for column in texts])
        columns = {name: Ragged.of(values) for name, values in encoded.items()}
        yield view.collate(columns, torch.arange(min(size, len(texts[0]) - start)))


def _hash(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def without_adapter(model: nn.Module) -> nn.Module:
    """The model inside that of an adapter; any other as it is."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def named_inputs(model: nn.Module) -> frozenset[str]:
    """What the forward names; of a PEFT model that of the model inside, since its own swallows most in **kwargs."""
    return frozenset(inspect.signature(without_adapter(model).forward).parameters)


def input_length(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: int | None, *, what: str
) -> int | None:
    """The length to cut at: what is asked for, else what `token_limit` allows.

    Args:
        model, tokenizer: As for `token_limit`.
        asked: What the user asks for, or None.
        what: Whose inputs they are, for messages: "The student".

    Raises:
        ConfigurationError: More is asked for than is allowed.
        DataError: The tokenizer cannot pad.
    """
    if tokenizer.pad_token_id is None:
        raise DataError(
            f"{what}: its tokenizer has no padding token, so rows cannot be batched: set tokenizer.pad_token and "
            "model.config.pad_token_id before passing it."
        )
    limit = token_limit(model, tokenizer)
    if asked is not None and limit is not None and asked > limit:
        raise ConfigurationError(f"{what}: max_length is {asked}, but it takes at most {limit} tokens.")
    return asked or limit


def token_limit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The longest input in tokens that tokenizer and positions allow; None where neither sets a limit.

    Position tables with a padding entry, as RoBERTa's, start counting behind it: 514 positions hold 512 tokens.

    Args:
        model: The model whose positions count.
        tokenizer: Its tokenizer; the placeholder it carries where nobody set a limit (1e30) does not count.
    """
    limits = [position_limit(model)]
    if tokenizer.model_max_length < 1_000_000:
        limits.append(tokenizer.model_max_length)
    return min((limit for limit in limits if limit is not None), default=None)


def position_limit(model: PreTrainedModel) -> int | None:
    """The longest input in tokens that the model has positions for; None where they are not counted."""
    positions = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] == "position_embeddings"
    ]
    if positions and positions[0].padding_idx is not None:
        return positions[0].num_embeddings - positions[0].padding_idx - 1
    declared = getattr(model.config, "max_position_embeddings", None)
    return declared if declared and declared > 0 else None

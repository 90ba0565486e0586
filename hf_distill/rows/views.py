"""How a model reads rows: what is made of each once, and what of a batch of them. The view of a tokenizer is here too."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import numpy as np
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


# Tokens of a row that is drawn, at most.
_DRAWN = 64
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
    """How a row reaches a model: what is made of its content once, and what of a batch of rows.

    A class of your own inherits this one: only `key`, `encode` and `collate` have to be written, the rest has a default.

    Attributes:
        key: Hash of all that decides the inputs; teachers whose views have the same key share one.
        processor: What stands between content and model, as it is saved beside a student; None: nothing does.
        max_length: Longest input, where the view cuts at one.
        open_sizes: What the leading dimensions of an input are called that have another size from batch to batch.
    """

    key: str
    processor: Any = None
    max_length: int | None = None
    open_sizes: tuple[str, ...] = ("batch",)

    def encode(self, texts: Sequence[Sequence[Any]]) -> dict[str, list[Any]]:
        """Columns of numbers to store with B prepared rows; B values of each content column come in, as `Content.read` makes
        them."""
        ...

    def collate(self, encoded: Columns, example_ids: Tensor) -> dict[str, Tensor]:
        """Tensors of a batch from the stored columns of B rows and their example ids (B,)."""
        ...

    def sizes(self, encoded: Columns, rows: int) -> np.ndarray:
        """(B,) about how many tokens' worth a model has to compute for each row of a batch, for cutting batches by it."""
        return np.ones(rows, np.int64)

    def also_for(self, other: View) -> View:
        """This view, read by the models of another one of the same key."""
        return self

    def refuse_rows(self, texts: Sequence[Sequence[Any]], encoded: Columns) -> None:
        """As `encode` refuses rows, where the same columns were made by another view of the same key."""

    def augmented(self, augment: Any) -> View:
        """This view, of rows that are changed at random before they are read.

        Args:
            augment: ``(content, example_id) -> content``.

        Raises:
            ConfigurationError: There is nothing that could be changed so.
        """
        raise ConfigurationError(
            "Rows of this task cannot be augmented, which is for images: leave augment out."
        )

    def made_up(self, rows: int) -> list[list[Any]]:
        """Columns of some rows of nothing in particular, for trying a model.

        Args:
            rows: How many.

        Raises:
            ConfigurationError: Nothing can be made up.
        """
        raise ConfigurationError("Nothing is known of rows of this task that could be made up: give some.")

    def drawn(self, rows: int, model: Any) -> dict[str, list[Any]]:
        """Columns as `encode` makes them, of rows drawn at random, the same whenever they are drawn.

        Args:
            rows: How many.
            model: That is to read them.
        """
        return self.encode(self.made_up(rows))

    def lengths(self, prepared: Any) -> np.ndarray | None:
        """(N,) how long prepared rows are, in tokens; None where rows have no length."""
        return None


class BreakingRow(DataError):
    """A row that a model cannot answer.

    Attributes:
        texts: The row's texts, by which its number is found.
    """

    def __init__(self, message: str, texts: Sequence[str]) -> None:
        super().__init__(message)
        self.texts = tuple(texts)


@dataclass(frozen=True)
class RowRule:
    """What a model needs of each row's tokens, beyond their number: at least one, and no stray end token.

    Args:
        what: Whose rule it is, for messages: "Teacher 'bart'".
        end_token: The id of the token that the model answers from, of which a row has to hold as many as any other row;
            None: it answers from elsewhere.
    """

    what: str
    end_token: int | None = None


@dataclass(frozen=True, eq=False)
class TokenView(View):
    """A tokenizer and the length it cuts at. Teachers whose views have the same key share the tokens.

    Args:
        tokenizer: The tokenizer, used as the teacher's own pipeline uses it.
        max_length: Longest input in tokens, special tokens included; None: nothing is cut.
        row_rules: What the models that read the tokens need of each row; they decide no token, so the key leaves them out.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int | None
    row_rules: tuple[RowRule, ...] = ()
    open_sizes: ClassVar[tuple[str, ...]] = ("batch", "length")

    @property
    def processor(self) -> PreTrainedTokenizerBase:
        """The tokenizer."""
        return self.tokenizer

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

        Raises:
            BreakingRow: One of the models cannot answer one of the rows.
        """
        return dict(self._encoding(texts))

    def also_for(self, other: TokenView) -> TokenView:
        """This view, with what the models of another one need of rows."""
        added = tuple(rule for rule in other.row_rules if rule not in self.row_rules)
        return replace(self, row_rules=(*self.row_rules, *added)) if added else self

    def encode_with_spans(
        self, texts: Sequence[Sequence[str]]
    ) -> tuple[dict[str, list[list[int]]], TokenSpans]:
        """As `encode`, and which characters each token stands for; only fast tokenizers say that."""
        encoding = self._encoding(texts, return_offsets_mapping=True)
        spans = TokenSpans.of(encoding)
        return {key: values for key, values in encoding.items() if key != "offset_mapping"}, spans

    def _encoding(self, texts: Sequence[Sequence[str]], **options: Any) -> Any:
        encoding = self.tokenizer(
            *texts, truncation=self.max_length is not None, max_length=self.max_length, **options
        )
        self._refuse_rows(texts, encoding["input_ids"])
        return encoding

    def _refuse_rows(self, texts: Sequence[Sequence[str]], tokens: Sequence[Sequence[int]]) -> None:
        for rule in self.row_rules:
            usual = self._end_tokens(rule.end_token, len(texts)) if rule.end_token is not None else 0
            for i, row in enumerate(tokens):
                if row and (rule.end_token is None or row.count(rule.end_token) == usual):
                    continue
                given = tuple(column[i] for column in texts)
                shown = " / ".join(repr(text if len(text) <= 60 else f"{text[:60]}…") for text in given)
                if not row:
                    why = "it gives no token at all, and a model answers from its tokens: fill it in or remove the row"
                else:
                    name = self.tokenizer.convert_ids_to_tokens(rule.end_token)
                    why = (
                        f"it holds the end token {name!r} {row.count(rule.end_token)} time(s), expected {usual} as in "
                        f"every row, since the model answers from it: take {name!r} out of the text or remove the row"
                    )
                raise BreakingRow(f"{rule.what} cannot answer the text {shown}: {why}.", given)

    def refuse_rows(self, texts: Sequence[Sequence[str]], encoded: Columns) -> None:
        """As `encode` refuses rows, where the same tokens were made by another view.

        Args:
            texts: One list of B texts, or two for pairs.
            encoded: Their columns.

        Raises:
            BreakingRow: One of the models cannot answer one of the rows.
        """
        tokens = encoded["input_ids"]
        row_of, fine = np.repeat(np.arange(len(tokens.lengths)), tokens.lengths), tokens.lengths > 0
        for rule in self.row_rules:
            if rule.end_token is not None:
                found = np.bincount(row_of[tokens.values == rule.end_token], minlength=len(fine))
                fine &= found == self._end_tokens(rule.end_token, len(texts))
        if not fine.all():
            self._refuse_rows(texts, tokens.lists())

    def _end_tokens(self, token: int, columns: int) -> int:
        """How many a row has whose texts hold none."""
        return self.tokenizer(*[["a"]] * columns)["input_ids"][0].count(token)

    def collate(self, encoded: Columns, example_ids: Tensor) -> dict[str, Tensor]:
        """Pad B rows as the tokenizer pads, see `Padding.collate`."""
        return self._padding.collate(encoded, example_ids)

    @functools.cached_property
    def _padding(self) -> Padding:
        return Padding(self.tokenizer)

    def sizes(self, encoded: Columns, rows: int) -> np.ndarray:
        """(B,) the rows' tokens."""
        return encoded["input_ids"].lengths

    def made_up(self, rows: int) -> list[list[str]]:
        """A word."""
        return [["a"] * rows]

    def drawn(self, rows: int, model: Any) -> dict[str, list[Any]]:
        """Rows of 1 to 64 tokens that are no special ones."""
        tokenizer, generator = self.tokenizer, np.random.default_rng(0)
        known = sorted(
            set(range(model.config.vocab_size))
            & set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids)
        )
        columns: dict[str, list[Any]] = {}
        for _ in range(rows):
            length = int(generator.integers(1, min(_DRAWN, self.max_length or _DRAWN) + 1))
            columns.setdefault("input_ids", []).append(generator.choice(known, length).tolist())
            for kind, filled in (("attention_mask", 1), ("token_type_ids", 0)):
                if kind in tokenizer.model_input_names:
                    columns.setdefault(kind, []).append([filled] * length)
        return columns

    def lengths(self, prepared: Any) -> np.ndarray | None:
        """(N,) the tokens of prepared rows."""
        return np.array([len(ids) for ids in prepared.with_format(None)["input_ids"][:]], dtype=np.int64)


def text_batches(view: View, texts: Sequence[Sequence[Any]], size: int) -> Iterator[dict[str, Tensor]]:
    """Content as a model reads it, batch by batch.

    Args:
        view: How it reads it.
        texts: The content, a list for each column, as `Content.read` makes it: one list of texts, or two for pairs.
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
    needed = tokenizer.num_special_tokens_to_add() + 1
    if asked is not None and not needed <= asked < 2**31:
        raise ConfigurationError(
            f"{what}: max_length is {asked}, expected a number of tokens of at least {needed}, since its tokenizer adds "
            f"{needed - 1} to every text, and below {2**31}."
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


# What models call the table of their positions.
_POSITION_TABLES = {"position_embeddings", "position_embedding", "positions_embed", "embed_positions", "wpe"}


def position_tables(model: nn.Module) -> list[nn.Module]:
    """The tables of absolute positions, whatever their class: those of I-BERT are no `nn.Embedding`.

    Example:
        >>> [table.weight.shape[0] for table in position_tables(bert)]
        [64]
    """
    return [
        module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in _POSITION_TABLES and getattr(module, "weight", None) is not None
    ]


def counts_behind_padding(table: nn.Module) -> bool:
    """Whether positions are counted from the tokens, behind the padding's own entry, as RoBERTa counts them."""
    # Tables of sines know a padding token and do not count from it.
    return getattr(table, "padding_idx", None) is not None and "Sinusoidal" not in type(table).__name__


def position_limit(model: PreTrainedModel) -> int | None:
    """The longest input in tokens that the model has positions for; None where they are not counted."""
    declared = getattr(model.config, "max_position_embeddings", None)
    limits = [declared] if isinstance(declared, int) and declared > 0 else []
    for table in position_tables(model):
        behind = table.padding_idx + 1 if counts_behind_padding(table) else getattr(table, "offset", 0)
        limits.append(table.weight.shape[0] - behind)
    return min(limits, default=None)

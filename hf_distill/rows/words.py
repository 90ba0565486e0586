"""The words that several tokenizations of the same texts have in common, and states pooled over them.

Tokens are never matched by position. A token says which characters of the text it stands for; a word is a stretch of
characters that no tokenization cuts across; a view's state of a word is the mean over its tokens inside it.

Shapes: N rows, L tokens of a view, W words (the most common words a row has), D hidden size.
"""

from __future__ import annotations

import functools
import re
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError

# Scripts written without spaces, where a run of letters is no word: ideographs and kana.
_ALONE = "\u3005-\u3007\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"


class TokenSpans(NamedTuple):
    """Which characters the tokens of one view stand for.

    Attributes:
        offsets: (N, L, 2) int64, first character and the one after the last, counted within the token's own text.
        text_of: (N, L) int64, which text of its row a token is of: 0, in pairs 0 or 1; -1: none (special, padding).
    """

    offsets: np.ndarray
    text_of: np.ndarray

    @classmethod
    def of(cls, encoding: Mapping[str, Any]) -> TokenSpans:
        """Of what a fast tokenizer returns when called with ``return_offsets_mapping=True``.

        Args:
            encoding: A `transformers.BatchEncoding` of N rows; where it is not padded, the right side is padded here.

        Example:
            >>> encoding = bert_tokenizer(["a film"], return_offsets_mapping=True)
            >>> TokenSpans.of(encoding).offsets[0].tolist()
            [[0, 0], [0, 1], [2, 6], [0, 0]]
        """
        rows = encoding["offset_mapping"]
        length = max((len(row) for row in rows), default=0)
        offsets = np.zeros((len(rows), length, 2), dtype=np.int64)
        text_of = np.full((len(rows), length), -1, dtype=np.int64)
        for i, row in enumerate(rows):
            offsets[i, : len(row)] = np.asarray(row).reshape(-1, 2)
            text_of[i, : len(row)] = [-1 if text is None else text for text in encoding.sequence_ids(i)]
        return cls(offsets, text_of)


class WordAlignment(NamedTuple):
    """Where each token of each view stands among the words that all views have.

    Attributes:
        word_of: Per view (N, L) int64, the token's word, counted from 0 in each row over all its texts; -1 where the
            token is in none: special tokens, padding, spaces, words that another view lacks.
        words: W, the most words that a row has.
        common: How many words all rows have together.
        missed: How many more there are that some view lacks, mostly because it cuts the text earlier.
    """

    word_of: tuple[Tensor, ...]
    words: int
    common: int
    missed: int


@functools.cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """A word, and the characters that only ever belong to the one before: marks and invisible controls."""
    codes = [
        code
        for code in range(sys.maxunicode + 1)
        if (kind := unicodedata.category(chr(code)))[0] == "M"
        or (kind in ("Cc", "Cf") and not chr(code).isspace())
    ]
    ranges = np.split(codes, np.flatnonzero(np.diff(codes) != 1) + 1)
    attached = "".join(f"\\U{run[0]:08x}-\\U{run[-1]:08x}" for run in ranges)
    word = rf"(?:[^\W{_ALONE}][{attached}]*)+|\S[{attached}]*"
    return re.compile(word), re.compile(f"[{attached}]+")


def find_words(text: str) -> list[tuple[int, int]]:
    """Where the words of a text begin and end, before any tokenization is asked.

    A word is a run of letters, digits and underscores; an ideograph or kana alone; any other character alone. Combining
    marks and invisible controls (joiners, soft hyphens) belong to the character before them. Spaces belong to no word.

    Example:
        >>> [text[start:end] for text in ["don't go, 北京"] for start, end in find_words(text)]
        ['don', "'", 't', 'go', ',', '北', '京']
    """
    return [match.span() for match in _patterns()[0].finditer(text)]


def align_words(texts: Sequence[Sequence[str]], views: Sequence[TokenSpans]) -> WordAlignment:
    """Find the words that all views have, and each token's word among them.

    Words start as `find_words` finds them. Where a token of any view reaches over several of them ("'t", "...", an
    unknown 北京), they become one, so that every token is inside one word. A word counts only if every view has it whole:
    each of its characters, marks and invisible controls apart (some tokenizers drop them), inside some token. So a word
    at which one tokenizer stops reading is left out for all. Tokens of nothing but spaces are in no word.

    A byte-level tokenizer that is cut inside a character says that it has read it, and is believed.

    Args:
        texts: N rows of one text, or of two for pairs, as they were given to the tokenizers.
        views: One or more tokenizations of these rows.

    Returns:
        `WordAlignment`.

    Raises:
        DataError: Offsets that reach beyond the text: they belong to another one.

    Example:
        >>> tokens = TokenSpans.of(bert_tokenizer(["film noir"], return_offsets_mapping=True))
        >>> cut = TokenSpans(np.array([[[0, 4], [4, 6], [6, 8]]]), np.array([[0, 0, 0]]))
        >>> align_words([["film noir"]], [tokens, cut]).word_of
        (tensor([[-1,  0, -1, -1, -1, -1, -1]]), tensor([[ 0, -1, -1]]))
    """
    # All texts as one string: a line break ends every word, and the arrays below then serve the whole batch at once.
    flat = [text for row in texts for text in row]
    joined = "\n".join(flat)
    texts_per_row = np.array([len(row) for row in texts], dtype=np.int64)
    text_length = np.array([len(text) for text in flat], dtype=np.int64)
    text_start = np.cumsum(text_length + 1) - text_length - 1
    row_start = np.cumsum(texts_per_row) - texts_per_row

    word_pattern, attached_pattern = _patterns()
    starts, ends = _spans(word_pattern, joined)
    required = _inside(starts, ends, len(joined)) & ~_inside(*_spans(attached_pattern, joined), len(joined))

    tokens = []
    reach = np.zeros(len(starts) + 1, dtype=np.int64)
    for view in views:
        begin, end, real = _in_joined(view, texts_per_row, text_length, text_start, row_start)
        first = np.searchsorted(ends, begin, side="right")
        last = np.searchsorted(starts, end, side="left") - 1
        real &= (begin < end) & (first <= last)
        tokens.append((begin, end, first, real))
        np.add.at(reach, first[real], 1)
        np.add.at(reach, last[real], -1)
    # A word is one with the next where more tokens have begun than ended.
    group_of = np.cumsum(np.concatenate([[0], np.cumsum(reach[:-1])[:-1] == 0])) if len(starts) else starts
    groups = int(group_of[-1]) + 1 if len(starts) else 0

    common = np.ones(groups, dtype=bool)
    for begin, end, first, real in tokens:
        has_token = np.zeros(groups, dtype=bool)
        has_token[group_of[first[real]]] = True
        unread = np.flatnonzero(required & ~_inside(begin[real], end[real], len(joined)))
        common &= has_token
        common[group_of[np.searchsorted(starts, unread, side="right") - 1]] = False

    row_of_text = np.repeat(np.arange(len(texts)), texts_per_row)
    first_words = np.flatnonzero(np.diff(group_of, prepend=-1))
    row_of_group = row_of_text[np.searchsorted(text_start, starts[first_words], side="right") - 1]
    per_row = np.bincount(row_of_group[common], minlength=len(texts))
    number = np.cumsum(common) - 1 - (np.cumsum(per_row) - per_row)[row_of_group]
    number[~common] = -1

    word_of = []
    for view, (_, _, first, real) in zip(views, tokens, strict=True):
        numbers = np.full(real.shape, -1, dtype=np.int64)
        numbers[real] = number[group_of[first[real]]]
        word_of.append(torch.from_numpy(numbers.reshape(np.shape(view.text_of))))
    return WordAlignment(
        tuple(word_of), int(per_row.max(initial=0)), int(common.sum()), groups - int(common.sum())
    )


def _spans(pattern: re.Pattern[str], text: str) -> tuple[np.ndarray, np.ndarray]:
    spans = np.array([match.span() for match in pattern.finditer(text)], dtype=np.int64).reshape(-1, 2)
    return spans[:, 0], spans[:, 1]


def _inside(starts: np.ndarray, ends: np.ndarray, length: int) -> np.ndarray:
    """(length,) bool: the characters inside some span."""
    depth = np.zeros(length + 1, dtype=np.int64)
    np.add.at(depth, starts, 1)
    np.add.at(depth, ends, -1)
    return np.cumsum(depth)[:length] > 0


def _in_joined(
    view: TokenSpans,
    texts_per_row: np.ndarray,
    text_length: np.ndarray,
    text_start: np.ndarray,
    row_start: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N·L,) first character of a token and the one after its last in the joined text, and whether it is of a text."""
    offsets, text_of = np.asarray(view.offsets).reshape(-1, 2), np.asarray(view.text_of)
    if len(text_of) != len(texts_per_row):
        raise DataError(
            f"Word alignment: there are {len(texts_per_row)} rows of texts, but a view has {len(text_of)}."
        )
    row = np.repeat(np.arange(len(texts_per_row)), text_of.shape[1])
    text_of = text_of.reshape(-1)
    real = text_of >= 0
    text = np.where(real, row_start[row] + text_of, 0)
    wrong = real & (text_of >= texts_per_row[row])
    wrong |= real & ~wrong & (offsets[:, 1] > text_length[np.where(wrong, 0, text)])
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        raise DataError(
            f"Word alignment: in row {int(row[at])} a token stands for characters {offsets[at].tolist()} of text "
            f"{int(text_of[at])}, which ends before; give the texts that were tokenized, unchanged."
        )
    start = text_start[text]
    return start + offsets[:, 0], start + offsets[:, 1], real


def pool_words(hidden: Tensor, word_of: Tensor, words: int) -> tuple[Tensor, Tensor]:
    """Mean over the tokens of each word.

    Args:
        hidden: (N, L, D), any floating type.
        word_of: (N, L) int64 of `align_words`; -1: a token that counts nowhere, whatever it holds.
        words: W, at least the maximum of ``word_of`` + 1.

    Returns:
        (N, W, D) float32, zeros where a row has no such word, and (N, W) bool, True where it has; the mask is the same
        for all views of an alignment.

    Example:
        >>> means, mask = pool_words(torch.tensor([[[9.0], [1.0], [3.0]]]), torch.tensor([[-1, 0, 0]]), 2)
        >>> means.tolist(), mask.tolist()
        ([[[2.0], [0.0]]], [[True, False]])
    """
    rows, _, size = hidden.shape
    # A place for -1 in front of each row's words, cut off at the end.
    places = (torch.arange(rows, device=hidden.device)[:, None] * (words + 1) + word_of + 1).flatten()
    sums = torch.zeros(rows * (words + 1), size, dtype=torch.float32, device=hidden.device)
    sums = sums.index_add(0, places, hidden.float().flatten(0, 1)).unflatten(0, (rows, words + 1))[:, 1:]
    counts = torch.zeros(rows * (words + 1), dtype=torch.float32, device=hidden.device)
    counts = counts.index_add(0, places, torch.ones_like(places, dtype=torch.float32))
    counts = counts.unflatten(0, (rows, words + 1))[:, 1:]
    return sums / counts.clamp(min=1)[..., None], counts > 0


def masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over the positions that count.

    Args:
        hidden: (N, L, D), any floating type.
        mask: (N, L), True or 1 where a position counts; what the others hold does not matter.

    Returns:
        (N, D) float32; zeros where none counts.

    Example:
        >>> masked_mean(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]]))
        tensor([[2.]])
    """
    mask = mask.bool()
    return hidden.float().masked_fill(~mask[..., None], 0.0).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def first_token(hidden: Tensor, mask: Tensor) -> Tensor:
    """The state of the first position that counts, wherever the padding stands: [CLS] of an encoder.

    Args and returns as `masked_mean`.

    Example:
        >>> first_token(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[0, 1, 1]]))
        tensor([[3.]])
    """
    mask = mask.bool()
    states = hidden[torch.arange(len(hidden), device=hidden.device), mask.int().argmax(1)].float()
    return states.masked_fill(~mask.any(1, keepdim=True), 0.0)

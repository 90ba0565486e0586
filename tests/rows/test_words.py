"""Three real tokenizers over the same texts: what they share is found by characters, never by position."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_distill.errors import DataError
from hf_distill.rows.words import TokenSpans, align_words, find_words, first_token, masked_mean, pool_words

TEXTS = [
    "The  film, don't be dull: the film is good-good.",
    "naïve café",  # composed
    "nai\u0308ve cafe\u0301",  # decomposed: one tokenizer drops the marks, one gives them tokens of their own
    "北京 is 東京 カナ",
    "ﬁne 👍🏽 👩\u200d💻 ok",
    "  leading and\n\ttrailing  ",
    "the the the film the",
    "wait... what?!",
    "a\u00adb z\u0000y",  # a soft hyphen and a control character
    "",
    "   ",
]


@pytest.fixture(scope="module")
def tokenizers(bert_tokenizer, roberta_tokenizer, unigram_tokenizer):
    return [bert_tokenizer, roberta_tokenizer, unigram_tokenizer]


def spans(tokenizer, *texts, **options) -> TokenSpans:
    return TokenSpans.of(tokenizer(*texts, return_offsets_mapping=True, **options))


def surfaces(texts: list[str], view: TokenSpans, word_of: torch.Tensor) -> list[str]:
    """For each word of one row the characters of its tokens, spaces apart, each once."""
    characters: dict[int, set[tuple[int, int]]] = {}
    for (start, end), text, word in zip(
        view.offsets[0].tolist(), view.text_of[0].tolist(), word_of.tolist(), strict=True
    ):
        if word >= 0:
            characters.setdefault(word, set()).update((text, at) for at in range(start, end))
    assert sorted(characters) == list(range(len(characters)))  # numbered without holes
    return [
        "".join(texts[text][at] for text, at in sorted(characters[word])).strip()
        for word in sorted(characters)
    ]


def test_words_before_any_tokenization():
    text = "don't go, naïve cafe\u0301 snake_case 3.5 北京カ x\u00ady 👩\u200d💻\n"
    assert [text[start:end] for start, end in find_words(text)] == [
        *("don", "'", "t", "go", ",", "naïve", "cafe\u0301", "snake_case", "3", ".", "5", "北", "京", "カ"),
        *("x\u00ady", "👩\u200d", "💻"),
    ]
    assert find_words(" \n\t\u3000") == []


@pytest.mark.parametrize("text", TEXTS)
def test_every_view_reads_the_same_words_in_the_same_order(text, tokenizers):
    views = [spans(tokenizer, [text]) for tokenizer in tokenizers]
    alignment = align_words([[text]], views)
    read = [
        surfaces([text], view, word_of[0]) for view, word_of in zip(views, alignment.word_of, strict=True)
    ]
    for view, word_of in zip(views, alignment.word_of, strict=True):
        assert word_of.dtype == torch.int64 and word_of.shape == view.text_of.shape
        assert (word_of[torch.from_numpy(view.text_of) < 0] == -1).all()
        assert word_of.max() + 1 == alignment.words == alignment.common
    # A tokenizer that drops marks and controls reads the rest of the word.
    bare = [
        [
            "".join(c for c in word if c.isprintable() and not "\u0300" <= c <= "\u036f" and c != "\u00ad")
            for word in words
        ]
        for words in read
    ]
    assert bare[0] == bare[1] == bare[2]
    assert alignment.missed == 0
    # Nothing is lost: the words of a text are all its characters but the spaces.
    assert "".join(read[1]) == "".join(text.split())


def test_words_by_hand(tokenizers):
    texts = ["the film, 北京 don't... ok"]
    views = [spans(tokenizer, texts) for tokenizer in tokenizers]
    bert, roberta, unigram = align_words([texts], views).word_of
    # 北京 is one unknown piece for the unigram tokenizer, and ... another: for the others several pieces of one word.
    # [CLS] the film , 北 京 d ##o ##n ' t . . . o ##k [SEP]
    assert bert[0].tolist() == [-1, 0, 1, 2, 3, 3, 4, 4, 4, 5, 6, 7, 7, 7, 8, 8, -1]
    # <s> the | space f i l m | , | space, 3 + 3 bytes | space d o n ' t . . . | space o k </s>
    assert roberta[0].tolist() == [
        *(-1, 0, -1, 1, 1, 1, 1, 2, -1, 3, 3, 3, 3, 3, 3, -1, 4, 4, 4, 5, 6, 7, 7, 7, -1, 8, 8, -1)
    ]
    # [CLS] ▁ t h e ▁film , ▁ 北京 ▁ d o n ' t ... ▁ o k [SEP]; the first ▁ says it stands for the t
    assert unigram[0].tolist() == [-1, 0, 0, 0, 0, 1, 2, -1, 3, -1, 4, 4, 4, 5, 6, 7, -1, 8, 8, -1]


def test_a_batch_is_its_rows(tokenizers):
    views = [spans(tokenizer, TEXTS) for tokenizer in tokenizers]
    alignment = align_words([[text] for text in TEXTS], views)
    common = 0
    for row, text in enumerate(TEXTS):
        alone = align_words([[text]], [TokenSpans(v.offsets[[row]], v.text_of[[row]]) for v in views])
        for whole, single in zip(alignment.word_of, alone.word_of, strict=True):
            assert torch.equal(whole[row], single[0])
        common += alone.common
    assert (alignment.common, alignment.missed) == (common, 0)
    assert alignment.words == max(int(word_of.max()) + 1 for word_of in alignment.word_of)


def test_padding_on_either_side_belongs_to_no_word(bert_tokenizer):
    texts = ["the film", "the film is dull and the plot is bad"]
    for side in ("left", "right"):
        encoding = bert_tokenizer(
            texts, return_offsets_mapping=True, padding=True, padding_side=side, return_tensors="pt"
        )
        view = TokenSpans.of(encoding)
        (word_of,) = align_words([[text] for text in texts], [view]).word_of
        assert word_of.shape == encoding["input_ids"].shape
        assert word_of[0][encoding["attention_mask"][0].bool()].tolist() == [-1, 0, 1, -1]
        assert (word_of[~encoding["attention_mask"].bool()] == -1).all()


def test_repeated_words_are_told_apart(tokenizers):
    text = "the film the film the film"
    for word_of in align_words([[text]], [spans(t, [text]) for t in tokenizers]).word_of:
        real = [word for word in word_of[0].tolist() if word >= 0]
        assert real == sorted(real) and set(real) == set(range(6))


def test_a_word_cut_by_one_view_counts_for_none(tokenizers):
    text = "the film is superlative and dull"
    bert, roberta, unigram = tokenizers
    # the film is s u p e r | …: the other two read on
    cut = spans(bert, [text], truncation=True, max_length=10)
    views = [cut, spans(roberta, [text]), spans(unigram, [text])]
    alignment = align_words([[text]], views)
    for view, word_of in zip(views, alignment.word_of, strict=True):
        assert surfaces([text], view, word_of[0]) == ["the", "film", "is"]
    assert (alignment.common, alignment.missed, alignment.words) == (3, 3, 3)
    # the last letter read is the word's last: whole, and kept
    whole = spans(bert, [text], truncation=True, max_length=16)
    assert align_words([[text]], [whole, *views[1:]]).common == 4


def test_truncation_at_the_start_keeps_what_follows(bert_tokenizer, roberta_tokenizer):
    text = "clumsy film is dull"
    encoding = spans(bert_tokenizer, [text], truncation=True, max_length=7)
    assert encoding.offsets[0, 1:-1].tolist()[0] == [0, 1]
    left = TokenSpans(encoding.offsets[:, 4:] + [[[0, 0]]], encoding.text_of[:, 4:])  # from "ms" on
    view = spans(bert_tokenizer, [text])
    late = TokenSpans(view.offsets[:, 4:], view.text_of[:, 4:])
    alignment = align_words([[text]], [late, spans(roberta_tokenizer, [text])])
    assert surfaces([text], late, alignment.word_of[0][0]) == ["film", "is", "dull"]
    assert alignment.missed == 1
    assert align_words([[text]], [left, late]).common == 0


def test_pairs_have_words_in_both_texts(tokenizers):
    pair = ("the café is good", " the film")
    views = [spans(tokenizer, [pair[0]], [pair[1]]) for tokenizer in tokenizers]
    alignment = align_words([pair], views)
    for view, word_of in zip(views, alignment.word_of, strict=True):
        assert surfaces(list(pair), view, word_of[0]) == ["the", "café", "is", "good", "the", "film"]
    # Offsets start anew in the second text: the second "the" must not be the first.
    bert = alignment.word_of[0][0].tolist()
    assert bert == [-1, 0, 1, 1, 1, 1, 2, 3, -1, 4, 5, -1]


def test_pairs_cut_from_the_longer_text(tokenizers):
    pair = ("the film is good and the plot is dull", "a film")
    views = [
        spans(tokenizer, [pair[0]], [pair[1]], truncation="longest_first", max_length=length)
        for tokenizer, length in zip(tokenizers, (10, 40, 64), strict=True)
    ]
    alignment = align_words([pair], views)
    read = [
        surfaces(list(pair), view, word_of[0]) for view, word_of in zip(views, alignment.word_of, strict=True)
    ]
    assert read[0] == read[1] == read[2] and read[0][-2:] == ["a", "film"] and 3 < len(read[0]) < 11
    assert alignment.missed == 11 - len(read[0])


def test_a_token_over_several_words_makes_them_one():
    """Also in a chain: two tokenizations that never cut at the same place have one word."""
    text = "a-b-c d"
    single = TokenSpans(np.array([[[i, i + 1] for i in range(7)]]), np.zeros((1, 7), dtype=np.int64))
    one = TokenSpans(np.array([[[0, 2], [2, 5], [5, 7]]]), np.zeros((1, 3), dtype=np.int64))
    two = TokenSpans(np.array([[[0, 1], [1, 3], [3, 5], [6, 7]]]), np.zeros((1, 4), dtype=np.int64))
    alignment = align_words([[text]], [single, one])
    # "a-", "b-c", and " d" with its space
    assert alignment.word_of[0].tolist() == [[0, 0, 1, 1, 1, -1, 2]]
    assert alignment.word_of[1].tolist() == [[0, 1, 2]]
    chained = align_words([[text]], [single, one, two])
    assert chained.word_of[0].tolist() == [[0, 0, 0, 0, 0, -1, 1]]
    assert chained.word_of[2].tolist() == [[0, 0, 0, 1]]
    across = TokenSpans(np.array([[[0, 5], [4, 7]]]), np.zeros((1, 2), dtype=np.int64))
    assert align_words([[text]], [single, across]).word_of[0].tolist() == [[0, 0, 0, 0, 0, -1, 0]]


def test_a_token_of_no_character_is_in_no_word():
    view = TokenSpans(np.array([[[0, 1], [1, 1], [1, 3]]]), np.zeros((1, 3), dtype=np.int64))
    assert align_words([["abc"]], [view]).word_of[0].tolist() == [[0, -1, 0]]


def test_a_word_that_a_tokenizer_drops_altogether_counts_for_none(tokenizers):
    """A mark that follows a space is nobody's: one tokenizer removes it, so it has no state to give."""
    text = "film \u0301 plot"
    views = [spans(tokenizer, [text]) for tokenizer in tokenizers]
    alignment = align_words([[text]], views)
    assert (alignment.common, alignment.missed) == (2, 1)
    for view, word_of in zip(views, alignment.word_of, strict=True):
        assert surfaces([text], view, word_of[0]) == ["film", "plot"]


def test_no_rows():
    nothing = TokenSpans(np.zeros((0, 0, 2), dtype=np.int64), np.zeros((0, 0), dtype=np.int64))
    alignment = align_words([], [nothing])
    assert alignment.word_of[0].shape == (0, 0)
    assert alignment[1:] == (0, 0, 0)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([["the"]], r"in row 0 a token stands for characters \[4, 8\] of text 0, which ends before"),
        ([["the film"], ["x"]], "there are 2 rows of texts, but a view has 1"),
    ],
)
def test_other_texts_are_refused(bert_tokenizer, texts, message):
    with pytest.raises(DataError, match=message):
        align_words(texts, [spans(bert_tokenizer, ["the film"])])


def test_a_pair_without_its_second_text_is_refused(bert_tokenizer):
    with pytest.raises(DataError, match="of text 1, which ends before"):
        align_words([["the"]], [spans(bert_tokenizer, ["the"], ["film"])])


# Pooling


def test_pool_words_against_loops():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 7, 4, generator=generator)
    word_of = torch.tensor([[-1, 0, 0, 1, 2, 2, -1], [-1, 0, -1, -1, -1, -1, -1], [-1] * 7])
    means, mask = pool_words(hidden, word_of, 3)
    assert means.shape == (3, 3, 4) and mask.tolist() == [[True] * 3, [True, False, False], [False] * 3]
    for row in range(3):
        for word in range(3):
            pieces = [hidden[row, i] for i in range(7) if word_of[row, i] == word]
            expected = torch.stack(pieces).mean(0) if pieces else torch.zeros(4)
            torch.testing.assert_close(means[row, word], expected)
    # More places than words: only empty ones are added.
    wider, wider_mask = pool_words(hidden, word_of, 5)
    assert torch.equal(wider[:, :3], means) and wider_mask[:, 3:].any().item() is False


def test_pooling_ignores_what_does_not_count_and_half_precision_sums_in_float32():
    hidden = torch.full((1, 300, 2), 0.1, dtype=torch.float16)
    word_of = torch.zeros(1, 300, dtype=torch.int64)
    word_of[0, 0] = -1
    hidden[0, 0] = torch.nan
    hidden.requires_grad_()
    means, _ = pool_words(hidden, word_of, 1)
    mean = masked_mean(hidden, word_of >= 0)
    first = first_token(hidden, word_of >= 0)
    for pooled in (means, mean, first):
        assert pooled.dtype == torch.float32
        torch.testing.assert_close(pooled.flatten(), torch.full((2,), 0.1), atol=1e-4, rtol=0)
        (gradient,) = torch.autograd.grad(pooled.sum(), hidden)
        assert gradient.isfinite().all() and gradient[0, 0].abs().max() == 0
        assert gradient.sum().item() == pytest.approx(2, rel=1e-2)


def test_masked_mean_and_first_token():
    hidden = torch.tensor([[[1.0], [3.0], [9.0]], [[5.0], [2.0], [4.0]], [[7.0], [7.0], [7.0]]])
    mask = torch.tensor([[1, 1, 0], [0, 1, 1], [0, 0, 0]])  # padded right, left, and altogether
    assert masked_mean(hidden, mask).tolist() == [[2.0], [3.0], [0.0]]
    assert first_token(hidden, mask).tolist() == [[1.0], [2.0], [0.0]]
    assert torch.equal(masked_mean(hidden, mask.bool()), masked_mean(hidden, mask))


def test_pooled_words_of_two_views_stand_side_by_side(tokenizers):
    """States that encode the character a token begins at: the words' means then agree where the pieces do."""
    texts = ["the film is good", "café x 北京"]
    views = [spans(tokenizer, texts) for tokenizer in tokenizers]
    alignment = align_words([[text] for text in texts], views)
    masks, last_characters = [], []
    for view, word_of in zip(views, alignment.word_of, strict=True):
        ends = torch.from_numpy(view.offsets[..., 1:]).float()
        means, mask = pool_words(ends, word_of, alignment.words)
        masks.append(mask)
        last_characters.append(means[mask])
    assert torch.equal(masks[0], masks[1]) and torch.equal(masks[0], masks[2])
    assert masks[0].sum(1).tolist() == [4, 3]
    # In order, whatever the pieces: the mean end lies inside the word for every view.
    for means in last_characters:
        bounds = [span for text in texts for span in find_words(text)]
        bounds = [*bounds[:6], (bounds[6][0], bounds[7][1])]  # 北京 is one word
        assert all(
            start < mean <= end for mean, (start, end) in zip(means.flatten().tolist(), bounds, strict=True)
        )

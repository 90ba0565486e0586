"""Small classifiers from scratch, with tokenizers of their own: for the demo, and for trials on one's own rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertTokenizer,
    DebertaV2Config,
    DebertaV2Tokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RobertaConfig,
    RobertaTokenizer,
    set_seed,
)

# Wide, flat and trained fast: on 10,000 short texts a single layer does as well as two, in half the time.
_SIZE: dict[str, Any] = {
    "hidden_size": 192,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "intermediate_size": 192,
    "hidden_dropout_prob": 0.2,
}


def small_teachers(
    texts: Sequence[str], *, vocabulary: int, max_length: int
) -> list[tuple[str, PretrainedConfig, PreTrainedTokenizerBase]]:
    """Name, config and tokenizer of three small teachers: no two share an architecture or a tokenization.

    Args:
        texts: What the tokenizers are trained on.
        vocabulary: Pieces per tokenizer, at most.
        max_length: Longest input in tokens.

    Example:
        >>> [name for name, _, _ in small_teachers(["a film", "a plot"] * 50, vocabulary=300, max_length=16)]
        ['bert', 'roberta', 'deberta']
    """
    pieces, likely = wordpiece(texts, vocabulary, max_length), unigram(texts, vocabulary, max_length)
    bpe = RobertaTokenizer(add_prefix_space=True, model_max_length=max_length).train_new_from_iterator(
        [texts], vocabulary, show_progress=False
    )
    return [
        (
            "bert",
            BertConfig(
                vocab_size=len(pieces),
                max_position_embeddings=max_length,
                **_SIZE,
            ),
            pieces,
        ),
        (
            "roberta",
            RobertaConfig(
                vocab_size=len(bpe),
                # RoBERTa counts positions from behind its padding token.
                max_position_embeddings=max_length + bpe.pad_token_id + 1,
                type_vocab_size=1,
                **_SIZE,
            ),
            bpe,
        ),
        (
            "deberta",
            DebertaV2Config(
                vocab_size=len(likely),
                max_position_embeddings=max_length,
                relative_attention=True,
                pos_att_type=["p2c", "c2p"],
                position_buckets=32,
                share_att_key=True,
                norm_rel_ebd="layer_norm",
                position_biased_input=False,
                type_vocab_size=0,
                **_SIZE,
            ),
            likely,
        ),
    ]


def wordpiece(texts: Sequence[str], vocabulary: int, max_length: int) -> BertTokenizer:
    """A WordPiece tokenizer that is the same in every run."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    # The trainer numbers the letters inside words in the order of a hash map, which differs from run to run, and breaks
    # ties of frequency by these numbers: given beforehand, they are fixed. Ids are then sorted for the same reason.
    letters = sorted({letter for text in texts for letter in text.lower() if not letter.isspace()})
    trained = BertTokenizer().train_new_from_iterator(
        [texts],
        vocabulary,
        new_special_tokens=[f"##{letter}" for letter in letters],
        show_progress=False,
    )
    pieces = [*specials, *sorted(set(trained.get_vocab()) - set(specials))]
    return BertTokenizer({piece: i for i, piece in enumerate(pieces)}, model_max_length=max_length)


def unigram(texts: Sequence[str], vocabulary: int, max_length: int) -> DebertaV2Tokenizer:
    """A Unigram tokenizer that is the same in every run."""
    trained = DebertaV2Tokenizer(do_lower_case=True).train_new_from_iterator(
        [texts], vocabulary, show_progress=False
    )
    pieces = json.loads(trained.backend_tokenizer.to_str())["model"]["vocab"]
    specials = set(trained.all_special_tokens)
    # Its threads add up in any order, so that scores differ in their last digits, and with them the order.
    rounded = [(piece, round(score, 6)) for piece, score in pieces if piece not in specials]
    return DebertaV2Tokenizer(
        [("[PAD]", 0.0), ("[UNK]", 0.0), ("[CLS]", 0.0), ("[SEP]", 0.0), ("[MASK]", 0.0)]
        + sorted(rounded, key=lambda entry: (-entry[1], entry[0])),
        do_lower_case=True,
        model_max_length=max_length,
    )


def fresh_classifier(
    config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str], seed: int
) -> PreTrainedModel:
    """A classifier from scratch, whose config agrees with the tokenizer and names the labels."""
    for role in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(config, role, getattr(tokenizer, role))
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: i for i, name in enumerate(labels)}
    set_seed(seed)
    return AutoModelForSequenceClassification.from_config(config)

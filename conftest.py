"""Real tokenizers and real small checkpoints, made once per session from fixed vocabularies."""

from __future__ import annotations

import functools
import os

os.environ.setdefault(
    "HF_HUB_OFFLINE", "1"
)  # a missing checkpoint then fails at once instead of after DNS retries
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

import datasets
import pytest
import torch
import transformers
from tokenizers import pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DebertaV2Tokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaTokenizer,
)

GOOD = ["good", "great", "fine", "superb", "moving", "clever"]
BAD = ["bad", "awful", "poor", "dull", "clumsy", "boring"]
OTHER = ["a", "the", "film", "plot", "actor", "scene", "is", "was", "very", "quite", "and", "this", "script"]


def sentences(count: int, seed: int) -> list[dict[str, object]]:
    """Rows of text and label (0 negative, 1 positive): a few words, one of which decides."""
    generator = torch.Generator().manual_seed(seed)

    def draw(words: list[str]) -> str:
        return words[int(torch.randint(len(words), (1,), generator=generator))]

    rows = []
    for i in range(count):
        label = i % 2
        words = [draw(OTHER) for _ in range(3 + int(torch.randint(6, (1,), generator=generator)))]
        words.insert(int(torch.randint(len(words), (1,), generator=generator)), draw(GOOD if label else BAD))
        rows.append({"text": " ".join(words), "label": label})
    return rows


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def rows() -> datasets.Dataset:
    """64 raw rows with a ClassLabel."""
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "positive"])}
    )
    return datasets.Dataset.from_list(sentences(64, seed=0), features=features)


@pytest.fixture(scope="session")
def held_out() -> datasets.Dataset:
    """33 other raw rows: a number no batch size divides."""
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "positive"])}
    )
    return datasets.Dataset.from_list(sentences(33, seed=1), features=features)


@pytest.fixture(scope="session")
def bert_tokenizer() -> BertTokenizer:
    """WordPiece; some words in one piece, others in several."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(c) for c in range(97, 123)]
    words = [*GOOD[:4], *BAD[:4], *OTHER]
    pieces = dict.fromkeys([*specials, *letters, *(f"##{letter}" for letter in letters), *words])
    return BertTokenizer({piece: i for i, piece in enumerate(pieces)}, model_max_length=64)


@pytest.fixture(scope="session")
def roberta_tokenizer() -> RobertaTokenizer:
    """Byte-level BPE with a few merges; the padding id is 1 as RoBERTa's."""
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    merges = [("t", "h"), ("th", "e"), ("Ġ", "a"), ("o", "o"), ("Ġ", "the")]
    pieces = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    return RobertaTokenizer({piece: i for i, piece in enumerate(pieces)}, merges, model_max_length=64)


@pytest.fixture(scope="session")
def unigram_tokenizer() -> DebertaV2Tokenizer:
    """Unigram over letters and a few words, as sentencepiece models are."""
    pieces = [(special, 0.0) for special in ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")]
    pieces += [("▁" + word, -3.0) for word in (*GOOD, *BAD[2:], "film", "plot")]
    pieces += [("▁", -4.0)] + [(chr(c), -5.0) for c in range(97, 123)]
    return DebertaV2Tokenizer(pieces, unk_id=3, model_max_length=64)


def _labels(names: list[str]) -> dict[str, object]:
    return {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


def make_bert(tokenizer, labels: list[str], seed: int = 1, **options) -> BertForSequenceClassification:
    """A random BERT; dropout on as in real ones unless options say otherwise."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        initializer_range=0.3,
        **SIZES,
        **_labels(labels),
        **options,
    )
    return BertForSequenceClassification(config)


def make_roberta(tokenizer, labels: list[str], seed: int = 2, **options) -> RobertaForSequenceClassification:
    """A random RoBERTa: 66 positions hold 64 tokens."""
    torch.manual_seed(seed)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=66,
        pad_token_id=1,
        type_vocab_size=1,
        initializer_range=0.3,
        **SIZES,
        **_labels(labels),
        **options,
    )
    return RobertaForSequenceClassification(config)


def make_deberta(
    tokenizer, labels: list[str], seed: int = 3, **options
) -> DebertaV2ForSequenceClassification:
    """A random DeBERTa-v2 with relative positions."""
    torch.manual_seed(seed)
    config = DebertaV2Config(
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        initializer_range=0.3,
        **SIZES,
        **_labels(labels),
        **options,
    )
    return DebertaV2ForSequenceClassification(config)


def make_student(
    tokenizer, labels: list[str] | None = None, seed: int = 4, **options
) -> DistilBertForSequenceClassification:
    """A random DistilBERT with placeholder labels unless some are given; dropout off unless options say otherwise."""
    torch.manual_seed(seed)
    options = {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0, **options}
    named = _labels(labels) if labels else {"num_labels": 2}
    config = DistilBertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        dim=24,
        hidden_dim=48,
        n_layers=1,
        n_heads=2,
        **named,
        **options,
    )
    return DistilBertForSequenceClassification(config)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory, bert_tokenizer, roberta_tokenizer, unigram_tokenizer) -> dict[str, str]:
    """Folders of three teachers (other architecture, tokenizer and label order each) and of a student."""
    root = tmp_path_factory.mktemp("checkpoints")
    made = {
        "bert": (make_bert(bert_tokenizer, ["negative", "positive"]), bert_tokenizer),
        "roberta": (make_roberta(roberta_tokenizer, ["POSITIVE", "NEGATIVE"]), roberta_tokenizer),
        "deberta": (make_deberta(unigram_tokenizer, ["Positive", "Negative"]), unigram_tokenizer),
        "student": (make_student(bert_tokenizer), bert_tokenizer),
    }
    for name, (model, tokenizer) in made.items():
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return {name: str(root / name) for name in made}


@pytest.fixture
def teachers(checkpoints):
    """The three teachers, freshly loaded."""
    from hf_distill import Teacher

    return [Teacher.from_pretrained(checkpoints[name]) for name in ("bert", "roberta", "deberta")]


_DRAWN: dict[tuple[str, ...], bytes] = {}


@pytest.fixture(autouse=True)
def _each_kind_of_picture_is_drawn_once(request, monkeypatch):
    """Tests that are not about pictures get the first of each kind again: one takes a quarter of a second, and a page has twelve.

    The whole of the tests, `-m ""`, draws all.
    """
    whole = "not slow" not in (request.config.option.markexpr or "")
    if whole or isinstance(request.node, pytest.DoctestItem) or request.node.get_closest_marker("pictures"):
        return
    from hf_distill.evaluation import document, plots

    def first(draw, arguments, style, **options):
        inner = draw.func if isinstance(draw, functools.partial) else draw
        narrow = draw.keywords.get("narrow") if isinstance(draw, functools.partial) else None
        kind = (inner.__module__, inner.__qualname__, str(narrow), options["format"])
        if kind not in _DRAWN:
            _DRAWN[kind] = drawn(draw, arguments, style, **options)
        return _DRAWN[kind]

    drawn = plots.drawn
    monkeypatch.setattr(plots, "drawn", first)
    monkeypatch.setattr(document, "drawn", first)


@pytest.fixture(autouse=True)
def _doctest_names(request, doctest_namespace):
    """What the examples of the docstrings take as given; loaded only for them."""
    if not isinstance(request.node, pytest.DoctestItem):
        return
    from hf_distill import (
        DistillationArguments,
        Ensemble,
        MultiTeacherDistillationTrainer,
        Teacher,
        evaluate_ensemble,
    )

    tokenizer = request.getfixturevalue("bert_tokenizer")
    folder = request.getfixturevalue("checkpoints")["bert"]
    bert = BertForSequenceClassification.from_pretrained(folder)
    doctest_namespace.update(
        bert=bert,
        bert_folder=folder,
        bert_tokenizer=tokenizer,
        teacher=Teacher(bert, tokenizer, name="bert"),
        student=make_student(tokenizer),
        rows=request.getfixturevalue("rows"),
        tmp_path=request.getfixturevalue("tmp_path"),
        args=DistillationArguments(
            output_dir=str(request.getfixturevalue("tmp_path")),
            max_steps=2,
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
        ),
        Teacher=Teacher,
        Ensemble=Ensemble,
        DistillationArguments=DistillationArguments,
        MultiTeacherDistillationTrainer=MultiTeacherDistillationTrainer,
        evaluate_ensemble=evaluate_ensemble,
    )


transformers.logging.set_verbosity_error()

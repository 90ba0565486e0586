"""Checkpoints whose parts disagree: refused with both numbers, or read so that no answer depends on the rest of a batch."""

from __future__ import annotations

import copy
import random

import datasets
import pytest
import tokenizers
import torch
import transformers

from conftest import make_bert, make_roberta
from hf_distill import Teacher, evaluate_ensemble
from hf_distill.errors import ConfigurationError, DataError, HfDistillError
from hf_distill.rows.preparing import prepare_dataset
from hf_distill.rows.views import TokenView, text_batches
from hf_distill.students.loading import load_trained, open_student
from hf_distill.tasks import TASKS
from hf_distill.teachers.cache.build import TeacherCache
from hf_distill.teachers.fitting_parts import open_view, refuse_other_view
from hf_distill.teachers.pool import TeacherPool

LABELS = ["negative", "positive"]
TASK = TASKS["text-classification"]
NAMED = {"id2label": dict(enumerate(LABELS)), "label2id": {"negative": 0, "positive": 1}}
BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
DECODER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
BART = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 24, "decoder_start_token_id": 3,
}  # fmt: skip
# The class's first part, its sizes, and how many tokens it takes: None where positions are not counted.
KINDS = {
    "Bert": ({**BERT, "max_position_embeddings": 24}, 24),
    "DistilBert": (
        {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16, "max_position_embeddings": 24},
        24,
    ),
    "Electra": ({**BERT, "max_position_embeddings": 24, "embedding_size": 16}, 24),
    "Albert": ({**BERT, "max_position_embeddings": 24, "embedding_size": 16}, 24),
    "Roberta": ({**BERT, "max_position_embeddings": 24}, 23),
    "XLMRoberta": ({**BERT, "max_position_embeddings": 24}, 23),
    "MPNet": ({**BERT, "max_position_embeddings": 24}, 22),
    "IBert": ({**BERT, "max_position_embeddings": 24}, 23),
    "ModernBert": ({**BERT, "max_position_embeddings": 24, "global_attn_every_n_layers": 1}, 24),
    "DebertaV2": ({**BERT, "max_position_embeddings": 24, "relative_attention": True}, 24),
    "Bart": (BART, 24),
    "MBart": (BART, 24),
    "T5": (
        {
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 16,
            "num_layers": 1,
            "num_heads": 2,
            "decoder_start_token_id": 0,
        },
        None,
    ),
    "GPT2": ({"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 24}, 24),
    "OPT": (
        {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "ffn_dim": 16,
            "word_embed_proj_dim": 16,
            "max_position_embeddings": 24,
        },
        24,
    ),
    "Llama": ({**DECODER, "num_key_value_heads": 2, "max_position_embeddings": 24}, 24),
}


def make(kind: str, tokenizer, **options) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    config = getattr(transformers, f"{kind}Config")(
        **{"vocab_size": len(tokenizer), **ids, **KINDS[kind][0], **NAMED, **options}
    )
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    for parameter in model.parameters():  # far apart, so that whatever is read at the wrong place shows
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


@pytest.fixture
def tokenizer(bert_tokenizer):
    """[CLS] is 2 and [SEP] is 3 in every text; no length of its own."""
    own = copy.deepcopy(bert_tokenizer)
    own.model_max_length = int(1e30)
    own.model_input_names = ["input_ids", "attention_mask"]
    assert own(["a"])["input_ids"][0][:1] == [2] and own(["a"])["input_ids"][0][-1:] == [3]
    return own


def answers(model, view: TokenView, texts: list[str], size: int) -> torch.Tensor:
    teacher = Teacher(model, view.tokenizer, name="t")
    parts = [teacher(inputs).logits for inputs in text_batches(view, [texts], size)]
    return torch.cat(parts).float()


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_answer_depends_on_the_other_rows_of_a_batch(kind, side, tokenizer):
    tokenizer.padding_side = side
    model = make(kind, tokenizer)
    try:
        view = open_view(model, tokenizer, None, what="The student")
    except DataError as error:
        assert side == "left" and 'padding_side = "right"' in str(error)
        assert kind not in ("OPT", "Llama")  # T5's decoder sees the padding
        return
    rng = random.Random(0)
    texts = [" ".join(rng.choices(["good", "bad", "film", "plot"], k=rng.randrange(1, 9))) for _ in range(12)]
    torch.testing.assert_close(
        answers(model, view, texts, 12), answers(model, view, texts, 1), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_longest_row_is_answered(kind, tokenizer):
    model, limit = make(kind, tokenizer), KINDS[kind][1]
    view = open_view(model, tokenizer, None, what="The student")
    assert view.max_length == limit
    view = open_view(model, tokenizer, limit or 40, what="The student")
    assert answers(model, view, ["good " * 90], 1).isfinite().all()
    if limit is not None:
        with pytest.raises(
            ConfigurationError, match=f"max_length is {limit + 1}, but it takes at most {limit} tokens"
        ):
            open_view(model, tokenizer, limit + 1, what="The student")


@pytest.mark.parametrize("padding", [0, 1, 3])
def test_positions_behind_the_padding_are_not_there(padding, tokenizer):
    for kind in ("Roberta", "IBert"):
        model = make(kind, tokenizer, pad_token_id=padding)
        assert open_view(model, tokenizer, None, what="t").max_length == 24 - padding - 1


def test_a_position_table_of_an_unknown_name_is_tried(tokenizer):
    model = make("Bert", tokenizer)
    embeddings = model.bert.embeddings

    class Places(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(20, 16))

        def forward(self, ids):
            return self.weight[ids]

    embeddings.places = Places()
    del embeddings.position_embeddings
    embeddings.__dict__["position_embeddings"] = embeddings.places
    with pytest.raises(
        DataError, match=r"Teacher 'b': a forward of its longest input, 24 tokens.*IndexError"
    ):
        Teacher(model, tokenizer, name="b")
    assert Teacher(model, tokenizer, name="b", max_length=20).view.max_length == 20


def by_all(model, tokenizer, message: str) -> None:
    """Teacher, student, and baseline are refused with the same sentence."""
    rows = datasets.Dataset.from_dict({"text": ["good"], "label": ["positive"]})
    fitting = make_bert(tokenizer, LABELS)
    view = open_view(fitting, fitting_tokenizer(tokenizer), 16, what="The student")
    with pytest.raises(DataError, match="Teacher 't': " + message):
        Teacher(model, tokenizer, name="t")
    with pytest.raises(DataError, match="The student: " + message):
        open_student(
            model, tokenizer, rows, task=TASK, label_column="label", label_names=LABELS, max_length=16
        )
    with pytest.raises(DataError, match="The baseline: " + message):
        baseline = load_trained(model, LABELS, TASK, "The baseline")
        refuse_other_view(baseline, TokenView(tokenizer, 16), what="The baseline")
    with pytest.raises(DataError, match="The student: " + message):
        evaluate_ensemble([], rows, student=model, processing_class=tokenizer, label_names=LABELS)
    assert view.max_length == 16


def fitting_tokenizer(tokenizer):
    own = copy.deepcopy(tokenizer)
    own.padding_side = "right"
    return own


@pytest.mark.parametrize("fewer", [1, 2, 30])
def test_tokens_without_an_embedding(fewer, tokenizer):
    rows = len(tokenizer) - fewer
    model = make("Bert", tokenizer, vocab_size=rows)
    by_all(model, tokenizer, rf".* has the id {len(tokenizer) - 1}, but the model has {rows} embeddings")
    Teacher(make("Bert", tokenizer, vocab_size=len(tokenizer) + 5), tokenizer, name="larger")


@pytest.mark.parametrize("start", [1, 2, 7])
def test_label_maps_that_do_not_count_from_0(start, tokenizer):
    model = make("Bert", tokenizer)
    model.config.id2label = {start: "negative", start + 1: "positive"}
    by_all(model, tokenizer, rf".*keys \[{start}, {start + 1}\], expected \[0, 1\]")
    with pytest.raises(DataError, match=r"labels=\['negative', 'positive'\]"):
        Teacher(model, tokenizer, name="t")
    assert Teacher(model, tokenizer, name="t", labels=LABELS).label_names == tuple(LABELS)


@pytest.mark.parametrize("outputs", [3, 5])
@pytest.mark.parametrize("kind", ["Bert", "Roberta", "GPT2", "Bart"])
def test_fewer_names_than_outputs(kind, outputs, tokenizer):
    model = make(kind, tokenizer, id2label={i: str(i) for i in range(outputs)}, label2id={})
    model.config.id2label, model.config.label2id = NAMED["id2label"], NAMED["label2id"]
    by_all(model, tokenizer, rf"its head has {outputs} outputs, but its config's id2label names 2, ")
    names = [f"class {i}" for i in range(outputs)]
    assert Teacher(model, tokenizer, name="t", labels=names).label_names == tuple(names)


@pytest.mark.parametrize("kind", ["GPT2", "Llama", "OPT"])
def test_decoders_answer_from_the_tokenizers_padding(kind, tokenizer):
    by_all(
        make(kind, tokenizer, pad_token_id=3), tokenizer, "its config's pad_token_id is 3, its tokenizer's 0"
    )
    model = make(kind, tokenizer, pad_token_id=0)
    texts = ["good film", "bad " * 9]
    expected = answers(model, open_view(model, tokenizer, None, what="t"), texts, 1)
    model.config.pad_token_id = None
    view = open_view(model, tokenizer, None, what="t")
    assert model.config.pad_token_id == 0
    torch.testing.assert_close(answers(model, view, texts, 2), expected, atol=1e-4, rtol=1e-4)


def test_left_padding_moves_positions(tokenizer):
    tokenizer.padding_side = "left"
    by_all(make("Bert", tokenizer), tokenizer, "it counts positions from the left")
    by_all(make("Roberta", tokenizer), tokenizer, "its tokenizer pads on the left, and it answers")


def test_one_token_type_is_read_as_one(bert_tokenizer):
    model = make_roberta(bert_tokenizer, LABELS)
    teacher = Teacher(model, bert_tokenizer, name="r")
    pair = [["a good film"], ["is it"]]
    inputs = dict(bert_tokenizer(*pair, return_tensors="pt"))
    assert inputs.pop("token_type_ids").max() == 1
    encoded = teacher.view.encode(pair)
    assert "token_type_ids" not in encoded and "token_type_ids" in bert_tokenizer.model_input_names
    with torch.no_grad():
        ours = teacher({key: torch.tensor(values) for key, values in encoded.items()}).logits
        torch.testing.assert_close(ours, model(**inputs).logits)
    three = make_bert(bert_tokenizer, LABELS, type_vocab_size=2)
    assert Teacher(three, bert_tokenizer, name="b").view.tokenizer is bert_tokenizer
    other = copy.deepcopy(bert_tokenizer)
    other._tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:2 [SEP]:2",
        special_tokens=[("[CLS]", other.cls_token_id), ("[SEP]", other.sep_token_id)],
    )
    with pytest.raises(DataError, match="the token type 2, but the model has the types 0 to 1"):
        Teacher(three, other, name="b")


def without_special_tokens(tokenizer):
    tokenizer._tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A", pair="$A $B", special_tokens=[]
    )
    return tokenizer


@pytest.mark.parametrize("row", [0, 5, 11])
@pytest.mark.parametrize("kind", ["Bart", "MBart", "T5"])
def test_a_row_with_an_end_token_of_its_own_is_named(kind, row, tokenizer, tmp_path):
    teacher = Teacher(make(kind, tokenizer), tokenizer, name="b", max_length=20)
    texts = [f"good film{' a' * i}" for i in range(12)]
    fine, broken = (datasets.Dataset.from_dict({"text": given}) for given in (texts, texts))
    texts[row] = "very good [SEP] film"
    broken = datasets.Dataset.from_dict({"text": texts})
    message = rf"Row {row}.*: Teacher 'b' cannot answer the text 'very good \[SEP\] film': .*2 time\(s\), expected 1"
    settings = {"text_columns": ["text"], "labels": TASK.label_reader("label", LABELS)}
    # A teacher of the same tokens comes first, and has no such need.
    pool = TeacherPool(
        [Teacher(make("Bert", tokenizer), tokenizer, name="a", max_length=20), teacher], LABELS
    )
    assert len(pool.views) == 1
    prepare_dataset(fine, **settings, student_view=None, teacher_views=pool.views)
    with pytest.raises(DataError, match=message):
        prepare_dataset(broken, **settings, student_view=None, teacher_views=pool.views)
    with pytest.raises(DataError, match=message):
        TeacherCache([teacher], tmp_path / "cache").add(broken, "text")


def test_pairs_may_have_as_many_end_tokens_as_pairs_have(tokenizer):
    view = open_view(make("Bart", tokenizer), tokenizer, None, what="The student")
    assert view.encode([["good"], ["bad"]])["input_ids"][0].count(3) == 2
    with pytest.raises(DataError, match="3 time"):
        view.encode([["good"], ["bad [SEP]"]])


def test_a_row_without_any_token_is_named(tokenizer):
    tokenizer = without_special_tokens(tokenizer)
    view = open_view(make("GPT2", tokenizer), tokenizer, None, what="Teacher 'g'")
    rows = datasets.Dataset.from_dict({"text": ["good", "  ", "bad", ""]})
    with pytest.raises(
        DataError, match=r"Row 1 of the dataset: Teacher 'g' cannot answer the text '  ': .*no token"
    ):
        prepare_dataset(
            rows,
            text_columns=["text"],
            labels=TASK.label_reader("label", LABELS),
            student_view=None,
            teacher_views={"g": view},
        )


def test_an_end_token_that_the_tokenizer_does_not_add(tokenizer):
    for eos in (1, 5, None):
        model = make("Bart", tokenizer)
        model.config.eos_token_id = eos
        with pytest.raises(
            DataError, match=f"its end token .eos_token_id {eos}., which its tokenizer does not add"
        ):
            Teacher(model, tokenizer, name="b")


@pytest.mark.parametrize("length", [-1, 0, 1, 2, 10**30])
def test_lengths_that_cannot_be(length, tokenizer):
    with pytest.raises(
        HfDistillError, match=f"max_length is {length}, expected a number of tokens of at least 3"
    ):
        open_view(make("T5", tokenizer), tokenizer, length, what="The student")


def test_the_check_leaves_no_trace(tokenizer):
    model = make("Bart", tokenizer, id2label={i: str(i) for i in range(2)}).train()
    model.model.encoder.eval()
    model.classification_head.out_proj = torch.nn.Sequential(model.classification_head.out_proj)
    modes = [module.training for module in model.modules()]
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    tokenizer.padding_side = "right"
    open_view(model, tokenizer, None, what="The student")
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_cached_teacher_is_not_opened_again(tmp_path, checkpoints, rows, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "hf_distill.teachers.teacher.open_view", lambda *a, **k: calls.append(a) or open_view(*a, **k)
    )
    for expected in (2, 2):  # once for the key, once to run
        TeacherCache([checkpoints["bert"]], tmp_path / "cache").add(rows.select(range(4)), "text")
        assert len(calls) == expected

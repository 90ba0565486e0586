"""Real checkpoints in, frozen teachers out; what is no teacher is refused with the reason."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertForTokenClassification,
    BertModel,
    ByT5Tokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    T5Config,
    T5EncoderModel,
    pipeline,
)

from conftest import make_bert, make_roberta, make_student
from hf_distill import Teacher, TeacherPool
from hf_distill.errors import ConfigurationError, DataError, UnsafeFileError
from hf_distill.rows.views import TokenView, token_limit

LABELS = ["negative", "positive"]


def test_frozen_in_eval_with_its_own_length(teachers):
    for teacher in teachers:
        assert not teacher.model.training
        assert not any(p.requires_grad for p in teacher.model.parameters())
        assert (
            teacher.view.max_length == 64
        )  # RoBERTa: 66 positions, of which two are taken by the padding id
        assert teacher.source.endswith(teacher.name)


@pytest.mark.parametrize("name", ["bert", "roberta", "deberta"])
@pytest.mark.parametrize(
    "text", ["a very good film", "a poor plot " * 40, {"text": "a good plot", "text_pair": "is it"}]
)
def test_tokens_are_those_of_the_teachers_own_pipeline(checkpoints, name, text):
    teacher = Teacher.from_pretrained(checkpoints[name])
    texts = [[text]] if isinstance(text, str) else [[text["text"]], [text["text_pair"]]]
    own = pipeline("text-classification", model=checkpoints[name])
    expected = own.preprocess(text, truncation=True)
    ours = teacher.view.encode(texts)
    assert ours["input_ids"][0] == expected["input_ids"][0].tolist()
    assert own(text, truncation=True)["label" if isinstance(text, dict) else 0]  # the pipeline itself runs


@pytest.mark.parametrize("name", ["bert", "roberta", "deberta"])
def test_logits_are_those_of_the_checkpoint(checkpoints, name):
    teacher = Teacher.from_pretrained(checkpoints[name])
    inputs = dict(teacher.view.tokenizer(["a good film", "bad"], padding=True, return_tensors="pt"))
    logits = teacher({**inputs, "unknown": torch.zeros(2), "labels": None}).logits
    with torch.no_grad():
        assert torch.equal(logits, teacher.model(**inputs).logits)
    (logits * torch.ones(2, 2, requires_grad=True)).sum().backward()  # an inference tensor would refuse


def test_inputs_the_forward_does_not_name_are_dropped(bert_tokenizer):
    """DistilBERT swallows token types in **kwargs; a teacher must not rely on that."""
    teacher = Teacher(make_student(bert_tokenizer, LABELS), bert_tokenizer, name="distil")
    seen = []
    teacher.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(set(kwargs)), with_kwargs=True
    )
    teacher(dict(bert_tokenizer(["a film"], return_tensors="pt")))
    assert seen == [{"input_ids", "attention_mask"}]


def test_labels_rename_or_list(bert_tokenizer):
    def named(labels, own=("LABEL_0", "LABEL_1")):
        return Teacher(
            make_bert(bert_tokenizer, list(own)), bert_tokenizer, name="t", labels=labels
        ).label_names

    assert named({"LABEL_0": "negative", "LABEL_1": "positive"}) == ("negative", "positive")
    assert named({"LABEL_1": "positive"}) == ("LABEL_0", "positive")
    assert named(["no", "yes"]) == ("no", "yes")
    with pytest.raises(DataError, match="labels= renames 'LABEL_2'.*did you mean"):
        named({"LABEL_2": "x"})
    with pytest.raises(DataError, match="gives 3 names, but it has 2 outputs"):
        named(["a", "b", "c"])
    with pytest.raises(DataError, match="not all different"):
        named(["a", "a"])


def test_refuses_a_headless_checkpoint(tmp_path, bert_tokenizer):
    BertModel(make_bert(bert_tokenizer, LABELS).config).save_pretrained(tmp_path)
    bert_tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["architectures"] = None
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="has no trained head for text-classification .*classifier"):
        Teacher.from_pretrained(str(tmp_path))


def test_refuses_the_head_of_another_task(tmp_path, bert_tokenizer):
    config = make_bert(bert_tokenizer, LABELS).config
    BertForTokenClassification(config).save_pretrained(tmp_path / "ner")
    bert_tokenizer.save_pretrained(tmp_path / "ner")
    with pytest.raises(
        DataError, match=r"saved as BertForTokenClassification, but text-classification needs"
    ):
        Teacher.from_pretrained(str(tmp_path / "ner"))
    for problem, labels in (("multi_label_classification", LABELS), (None, ["score"])):
        model = make_bert(bert_tokenizer, labels, problem_type=problem)
        with pytest.raises(DataError, match="its head is for another task"):
            Teacher(model, bert_tokenizer, name="t")


def test_refuses_pickled_weights(tmp_path, checkpoints):
    shutil.copytree(checkpoints["bert"], tmp_path / "bert")
    (tmp_path / "bert" / "model.safetensors").rename(tmp_path / "bert" / "kept.elsewhere")
    torch.save({}, tmp_path / "bert" / "pytorch_model.bin")
    with pytest.raises(UnsafeFileError, match="holds no model.safetensors"):
        Teacher.from_pretrained(str(tmp_path / "bert"))


def test_refuses_what_is_not_there(tmp_path, bert_tokenizer):
    with pytest.raises(DataError, match="Teacher 'nothing': .*: there is no folder /.*/nothing; in /"):
        Teacher.from_pretrained(str(tmp_path / "nothing"))
    make_bert(bert_tokenizer, LABELS).save_pretrained(tmp_path / "bare")
    with pytest.raises(DataError, match="there is no tokenizer in"):
        Teacher.from_pretrained(str(tmp_path / "bare"))


def test_refuses_a_tokenizer_without_padding(checkpoints):
    config = GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=77, num_labels=2)
    config.id2label, config.label2id = dict(enumerate(LABELS)), {n: i for i, n in enumerate(LABELS)}
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["bert"])
    tokenizer.pad_token = None
    with pytest.raises(DataError, match="no padding token"):
        Teacher(GPT2ForSequenceClassification(config), tokenizer, name="gpt2")


def test_names_and_lengths(checkpoints, bert_tokenizer):
    with pytest.raises(ConfigurationError, match="pass name="):
        Teacher(make_bert(bert_tokenizer, LABELS), bert_tokenizer)
    with pytest.raises(ConfigurationError, match="max_length is 65, but it takes at most 64"):
        Teacher.from_pretrained(checkpoints["roberta"], max_length=65)
    two = [Teacher.from_pretrained(checkpoints["bert"]) for _ in range(2)]
    with pytest.raises(DataError, match="2 teachers are called 'bert'.*name="):
        TeacherPool(two, LABELS)


def test_a_view_per_distinct_tokenizer(checkpoints, bert_tokenizer, teachers):
    twin = Teacher(make_bert(bert_tokenizer, LABELS), bert_tokenizer, name="twin")
    short = Teacher(make_bert(bert_tokenizer, LABELS), bert_tokenizer, name="short", max_length=8)
    pool = TeacherPool([*teachers, twin, short], LABELS)
    assert list(pool.views) == ["bert", "roberta", "deberta", "short"]
    key = TokenView(bert_tokenizer, 64).key
    bert_tokenizer(
        ["a b c"], padding="max_length", truncation=True, max_length=4
    )  # leaves its settings behind
    assert TokenView(bert_tokenizer, 64).key == key


def test_limits(bert_tokenizer, roberta_tokenizer, checkpoints):
    unlimited = AutoTokenizer.from_pretrained(checkpoints["roberta"], model_max_length=int(1e30))
    assert token_limit(make_roberta(roberta_tokenizer, LABELS), unlimited) == 64
    assert token_limit(make_bert(bert_tokenizer, LABELS), unlimited) == 64
    relative = T5EncoderModel(T5Config(vocab_size=77, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    free = AutoTokenizer.from_pretrained(checkpoints["bert"], model_max_length=int(1e30))
    assert token_limit(relative, free) is None
    assert len(TokenView(free, None).encode([["a " * 900]])["input_ids"][0]) == 902


def test_a_teacher_in_memory_has_the_head_of_its_class(bert_tokenizer):
    """Fine-tuned a moment ago from a language model's checkpoint: its config still names that."""
    model = make_bert(bert_tokenizer, LABELS)
    model.config.architectures = ["BertForMaskedLM"]
    assert Teacher(model, bert_tokenizer, name="mine").label_names == tuple(LABELS)


def test_decoders_need_one_padding_token_on_the_right(checkpoints):
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["bert"])
    config = GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=77, num_labels=2, pad_token_id=3)
    config.id2label, config.label2id = dict(enumerate(LABELS)), {n: i for i, n in enumerate(LABELS)}
    torch.manual_seed(0)
    model = GPT2ForSequenceClassification(config)
    with pytest.raises(DataError, match="pad_token_id is 3, its tokenizer's 0"):
        Teacher(model, tokenizer, name="gpt2")
    model.config.pad_token_id = 0
    teacher = Teacher(model, tokenizer, name="gpt2")
    texts = ["a good film", "bad"]
    together = teacher(dict(tokenizer(texts, padding=True, return_tensors="pt"))).logits
    for text, logits in zip(texts, together, strict=True):
        alone = teacher(dict(tokenizer([text], return_tensors="pt"))).logits[0]
        torch.testing.assert_close(logits, alone, atol=1e-5, rtol=1e-5)
    tokenizer.padding_side = "left"
    with pytest.raises(DataError, match="counts positions from the left"):
        Teacher(model, tokenizer, name="gpt2")


def test_an_adapter_reads_all_inputs_of_the_model_inside(bert_tokenizer):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"], r=2)
    model = peft.get_peft_model(make_bert(bert_tokenizer, LABELS), config)
    teacher = Teacher(model, bert_tokenizer, name="lora")
    inputs = dict(bert_tokenizer(["a good film"], ["is it"], return_tensors="pt"))
    with torch.no_grad():
        assert torch.equal(teacher(inputs).logits, model(**inputs).logits)


def test_python_only_tokenizers_are_known_by_content(tmp_path):
    ByT5Tokenizer(model_max_length=32).save_pretrained(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first, second = (TokenView(AutoTokenizer.from_pretrained(tmp_path / name), 32) for name in "ab")
    assert first.key == second.key

"""LoRA adapters: students that train one and lose it again, teachers that share their base and nothing else."""

from __future__ import annotations

import copy
import gc
import json
import shutil
import sys

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    BertModel,
    DebertaV2Model,
    GPT2Config,
    GPT2Model,
)

from conftest import make_bert, make_deberta, make_student
from hf_distill import TASKS, Teacher
from hf_distill.errors import ConfigurationError, DataError, UnsafeFileError
from hf_distill.students.adapters import add_adapter, merge_adapter
from hf_distill.students.building import build_student
from hf_distill.teachers import over_base as adapters
from hf_distill.teachers.cache.build import TeacherCache
from hf_distill.teachers.cache.key import teacher_key
from hf_distill.teachers.cache.settings import CacheSettings
from hf_distill.teachers.teacher import TeacherSpec

peft = pytest.importorskip("peft", reason="peft is not installed")

TASK = TASKS["text-classification"]
CLASSES = {"two": ["no", "yes"], "three": ["no", "maybe", "yes"], "five": ["a", "b", "c", "no", "yes"]}
TEXTS = ["a good film", "the plot is very boring and clumsy"]


def lora(**options):
    return peft.LoraConfig(
        **{"task_type": "SEQ_CLS", "target_modules": ["query", "value"], "r": 2, **options}
    )


def randomised(model):
    """Everything an adapter trains, as if it had been; small enough that logits stay of order one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def save_adapter(base: str, folder, classes: int, **options) -> str:
    torch.manual_seed(classes)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=classes)
    randomised(peft.get_peft_model(model, lora(**options))).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, bert_tokenizer) -> dict[str, str]:
    """A base without a head, and adapters for two, three and five classes over it."""
    root = tmp_path_factory.mktemp("adapters")
    BertModel(make_bert(bert_tokenizer, ["LABEL_0", "LABEL_1"]).config).save_pretrained(root / "base")
    bert_tokenizer.save_pretrained(root / "base")
    made = {
        name: save_adapter(str(root / "base"), root / name, len(names)) for name, names in CLASSES.items()
    }
    return {"base": str(root / "base"), **made}


def teacher(folders, name: str, **options) -> Teacher:
    return Teacher.from_pretrained(
        folders["base"], adapter=folders[name], **{"labels": CLASSES.get(name), **options}
    )


def tokens(tokenizer):
    return dict(tokenizer(TEXTS, padding=True, return_tensors="pt"))


def alone(folders, name: str, tokenizer) -> torch.Tensor:
    """What peft itself gives, over a base of its own."""
    classes = len(CLASSES[name])
    base = AutoModelForSequenceClassification.from_pretrained(folders["base"], num_labels=classes)
    with torch.no_grad():
        return peft.PeftModel.from_pretrained(base, folders[name]).eval()(**tokens(tokenizer)).logits


def storages(*models) -> int:
    """Bytes of all weights, those that several hold counted once."""
    found = {}
    for model in models:
        for tensor in (*model.parameters(), *model.buffers()):
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(found.values())


# ---- Teachers over one base ----


def test_each_gives_what_it_gives_alone_while_others_are_there(folders, bert_tokenizer):
    teachers = {name: teacher(folders, name) for name in CLASSES}
    for name in [*CLASSES, *reversed(CLASSES)]:
        given = teachers[name](tokens(bert_tokenizer)).logits
        assert given.shape == (2, len(CLASSES[name]))
        torch.testing.assert_close(given, alone(folders, name, bert_tokenizer), atol=1e-6, rtol=0)
        assert teachers[name].label_names == tuple(CLASSES[name])
        assert teachers[name].name == name and teachers[name].source == folders[name]
    assert not torch.allclose(
        teachers["two"](tokens(bert_tokenizer)).logits,
        teachers["three"](tokens(bert_tokenizer)).logits[:, :2],
    )
    for each in teachers.values():
        assert not each.model.training and not any(p.requires_grad for p in each.model.parameters())


def test_one_copy_of_the_base_however_many(folders):
    teachers = [teacher(folders, name) for name in (*CLASSES, "two", "five")]
    base = storages(BertModel.from_pretrained(folders["base"]))
    own = 0
    for each in teachers:
        model = each.model
        parts = [p for name, p in model.named_parameters() if ".lora_" in name or "classifier" in name]
        buffers = sum(buffer.nbytes for buffer in model.buffers())
        own += sum(part.nbytes for part in parts) + buffers
    together = storages(*(each.model for each in teachers))
    # At most: the base's buffers are among the teachers' too, and one unused head is shared.
    assert base < together <= base + own
    assert together < 2 * base
    weight = "base_model.model.bert.encoder.layer.0.attention.self.query.base_layer.weight"
    first, *others = [each.model.get_parameter(weight) for each in teachers]
    assert all(other is first for other in others)  # moved to a device, it moves for all


def test_a_base_is_freed_with_its_last_teacher(folders):
    gc.collect()
    before = len(adapters._bases)
    held = [teacher(folders, "two"), teacher(folders, "three")]
    assert len(adapters._bases) == before + 1
    held.pop()
    gc.collect()
    assert len(adapters._bases) == before + 1
    held.pop()
    gc.collect()
    assert len(adapters._bases) == before


def test_other_weights_are_another_base(folders, tmp_path):
    shutil.copytree(folders["base"], tmp_path / "base")
    both = {**folders, "base": str(tmp_path / "base")}
    first = teacher(both, "two")
    half = teacher(both, "two", dtype="bfloat16")
    assert half.model.dtype == torch.bfloat16 and first.model.dtype == torch.float32
    changed = BertModel.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        changed.embeddings.word_embeddings.weight.add_(1.0)
    changed.save_pretrained(tmp_path / "base")
    second = teacher(both, "two")
    name = "base_model.model.bert.embeddings.word_embeddings.weight"
    torch.testing.assert_close(second.model.get_parameter(name), first.model.get_parameter(name) + 1)


@pytest.mark.parametrize(
    "options", [{"bias": "all"}, {"init_lora_weights": "pissa"}, {"trainable_token_indices": [5, 6]}]
)
def test_an_adapter_that_changes_the_base_gets_its_own(folders, tmp_path, bert_tokenizer, options):
    first = teacher(folders, "two")
    before = {name: value.clone() for name, value in first.model.state_dict().items()}
    expected = first(tokens(bert_tokenizer)).logits
    save_adapter(folders["base"], tmp_path / "three", 3, **options)
    changing = {**folders, "three": str(tmp_path / "three")}
    other = teacher(changing, "three")
    torch.testing.assert_close(
        other(tokens(bert_tokenizer)).logits, alone(changing, "three", bert_tokenizer), atol=1e-5, rtol=0
    )
    assert torch.equal(first(tokens(bert_tokenizer)).logits, expected)
    assert all(torch.equal(value, before[name]) for name, value in first.model.state_dict().items())
    assert not any(p.requires_grad for p in other.model.parameters())


def test_merging_or_building_from_one_leaves_the_others_alone(folders, bert_tokenizer):
    first, second = teacher(folders, "three"), teacher(folders, "two")
    expected = [each(tokens(bert_tokenizer)).logits for each in (first, second)]
    merged = merge_adapter(first.model)
    student = build_student(first, layers=2, labels=["yes", "no"])
    with torch.no_grad():
        for model, columns in ((merged, [0, 1, 2]), (student, [2, 0])):
            given = model.eval()(**tokens(bert_tokenizer)).logits
            torch.testing.assert_close(given, expected[0][:, columns], atol=1e-5, rtol=1e-5)
    for each, logits in zip((first, second), expected, strict=True):
        assert torch.equal(each(tokens(bert_tokenizer)).logits, logits)


def test_names_come_from_the_user_the_adapters_folder_or_the_base(folders, tmp_path):
    with_config = shutil.copytree(folders["three"], tmp_path / "three")
    names = {"id2label": {"0": "x", "1": "y", "2": "z"}}
    (tmp_path / "three" / "config.json").write_text(json.dumps(names))
    assert teacher({**folders, "three": str(with_config)}, "three", labels=None).label_names == (
        "x",
        "y",
        "z",
    )
    assert teacher(folders, "three", labels=None).label_names == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert teacher(folders, "three", labels={"LABEL_1": "b"}).label_names == ("LABEL_0", "b", "LABEL_2")


def test_a_base_with_a_head(folders, tmp_path, bert_tokenizer):
    """Its names hold for adapters with as many classes; its head where an adapter brings none."""
    base = make_bert(bert_tokenizer, ["no", "yes"])
    base.save_pretrained(tmp_path / "base")
    bert_tokenizer.save_pretrained(tmp_path / "base")
    without = randomised(peft.get_peft_model(copy.deepcopy(base), lora(task_type=None)))
    without.save_pretrained(tmp_path / "without")
    with torch.no_grad():
        expected = without(**tokens(bert_tokenizer)).logits
    save_adapter(str(tmp_path / "base"), tmp_path / "two", 2)
    made = {
        "base": str(tmp_path / "base"),
        "without": str(tmp_path / "without"),
        "two": str(tmp_path / "two"),
    }
    both = [teacher(made, name, labels=None) for name in ("without", "two")]
    assert [each.label_names for each in both] == [("no", "yes")] * 2
    torch.testing.assert_close(both[0](tokens(bert_tokenizer)).logits, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        both[1](tokens(bert_tokenizer)).logits, alone(made, "two", bert_tokenizer), atol=1e-6, rtol=0
    )
    with pytest.raises(
        DataError, match=r"without over .*base has no trained head for text-classification .*classifier"
    ):
        teacher({**folders, "without": made["without"]}, "without", labels=None)


def test_a_decoder_takes_its_padding_from_the_adapters_tokenizer(tmp_path, bert_tokenizer):
    config = GPT2Config(vocab_size=len(bert_tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=64)
    GPT2Model(config).save_pretrained(tmp_path / "base")
    options = {"target_modules": ["c_attn"], "fan_in_fan_out": True}
    folder = save_adapter(str(tmp_path / "base"), tmp_path / "adapter", 3, **options)
    with pytest.raises(DataError, match="no tokenizer"):
        Teacher.from_pretrained(str(tmp_path / "base"), adapter=folder)
    bert_tokenizer.save_pretrained(folder)
    made = Teacher.from_pretrained(str(tmp_path / "base"), adapter=folder)
    padded = made(tokens(bert_tokenizer)).logits[0]
    single = made(dict(bert_tokenizer(TEXTS[:1], return_tensors="pt"))).logits[0]
    torch.testing.assert_close(padded, single, atol=1e-5, rtol=1e-5)


# ---- What is refused ----


def test_adapters_that_cannot_be_used(folders, tmp_path, bert_tokenizer):
    def changed(name: str, **config) -> str:
        folder = tmp_path / name
        shutil.copytree(folders["two"], folder)
        stored = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**stored, **config}))
        return str(folder)

    def load(adapter: str, base: str = folders["base"]):
        return Teacher.from_pretrained(base, adapter=adapter)

    with pytest.raises(DataError, match="org/none cannot be loaded"):
        load("org/none")
    with pytest.raises(DataError, match="is no adapter, it has no adapter_config.json"):
        load(folders["base"])
    with pytest.raises(
        ConfigurationError, match="its task_type is TOKEN_CLS, but text-classification needs SEQ_CLS"
    ):
        load(changed("other", task_type="TOKEN_CLS"))
    with pytest.raises(DataError, match="cannot be read"):
        load(changed("unknown", peft_type="NOTHING"))
    pickled = changed("pickled")
    shutil.move(f"{pickled}/adapter_model.safetensors", f"{pickled}/adapter_model.bin")
    with pytest.raises(UnsafeFileError, match="pickled holds no adapter_model.safetensors"):
        load(pickled)
    make_bert(bert_tokenizer, ["no", "yes"]).save_pretrained(tmp_path / "pickled-base")
    shutil.move(tmp_path / "pickled-base" / "model.safetensors", tmp_path / "elsewhere")
    torch.save({}, tmp_path / "pickled-base" / "pytorch_model.bin")
    with pytest.raises(UnsafeFileError, match="pickled-base holds no model.safetensors"):
        load(folders["two"], str(tmp_path / "pickled-base"))


def test_an_adapter_of_another_base_is_refused(folders, tmp_path, bert_tokenizer):
    """Also where peft would just leave out the layers that are not there."""
    config = make_bert(bert_tokenizer, ["no", "yes"]).config
    for name, changes in (("shorter", {"num_hidden_layers": 1}), ("longer", {"num_hidden_layers": 3})):
        other = copy.deepcopy(config)
        other.update(changes)
        BertModel(other).save_pretrained(tmp_path / name)
        with pytest.raises(
            DataError, match=f"does not fit the base .*{name} .*only one of the two has .*lora_"
        ):
            Teacher.from_pretrained(str(tmp_path / name), adapter=folders["two"])
    other = copy.deepcopy(config)
    other.update({"hidden_size": 16})
    BertModel(other).save_pretrained(tmp_path / "narrower")
    with pytest.raises(DataError, match="does not fit the base .*narrower: .*size mismatch"):
        Teacher.from_pretrained(str(tmp_path / "narrower"), adapter=folders["two"])


def test_an_adapter_that_forgot_a_part_of_its_head_is_refused(tmp_path, unigram_tokenizer):
    """peft leaves DeBERTa's fresh pooler out: what it was while training is lost. Ours keeps it."""
    config = make_deberta(unigram_tokenizer, ["no", "yes"]).config
    DebertaV2Model(config).save_pretrained(tmp_path / "base")
    unigram_tokenizer.save_pretrained(tmp_path / "base")
    folder = save_adapter(str(tmp_path / "base"), tmp_path / "two", 2, target_modules=["query_proj"])
    with pytest.raises(DataError, match="no trained head .*pooler.dense.weight"):
        Teacher.from_pretrained(str(tmp_path / "base"), adapter=folder)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=2)
    ours = randomised(add_adapter(model, lora(target_modules=["query_proj"]), TASK))
    ours.save_pretrained(tmp_path / "ours")
    inputs = tokens(unigram_tokenizer)
    with torch.no_grad():
        expected = ours(**inputs).logits
    loaded = Teacher.from_pretrained(str(tmp_path / "base"), adapter=str(tmp_path / "ours"))
    torch.testing.assert_close(loaded(inputs).logits, expected, atol=1e-6, rtol=0)


def test_without_peft_the_error_says_what_to_install(folders, monkeypatch, bert_tokenizer):
    config = lora()
    monkeypatch.setitem(sys.modules, "peft", None)
    for call in (
        lambda: teacher(folders, "two"),
        lambda: add_adapter(make_bert(bert_tokenizer, ["no", "yes"]), config, TASK),
        lambda: merge_adapter(None),
    ):
        with pytest.raises(ConfigurationError, match="peft, which is not installed: pip install 'peft"):
            call()


# ---- In the cache ----


def test_adapters_are_told_apart_in_the_cache_and_known_again(folders, tmp_path, monkeypatch, rows):
    keys = {name: teacher_key(teacher(folders, name), CacheSettings()) for name in CLASSES}
    gc.collect()  # the base is loaded anew, with another random head that nobody uses
    assert {name: teacher_key(teacher(folders, name), CacheSettings()) for name in CLASSES} == keys
    assert len(set(keys.values())) == 3

    names = ["no", "yes"]
    same = shutil.copytree(folders["two"], tmp_path / "same")
    specs = [
        TeacherSpec(folders["base"], adapter=folders["two"], labels=names),
        TeacherSpec(folders["base"], adapter=folders["three"], labels=CLASSES["three"], name="other"),
    ]
    cache = TeacherCache(specs, tmp_path / "cache")
    assert [t.name for t in cache.teachers] == ["two", "other"]
    assert cache.add(rows.select(range(4)), ("text",)) == 8
    loaded = []
    real = Teacher.from_pretrained
    monkeypatch.setattr(Teacher, "from_pretrained", lambda *a, **o: loaded.append(1) or real(*a, **o))
    again = TeacherCache(specs, tmp_path / "cache")
    assert not loaded
    assert [t.name for t in again.teachers] == ["two", "other"]
    assert [t.source for t in again.teachers] == [folders["two"], folders["three"]]
    assert [t.view.key for t in again.teachers] == [t.view.key for t in cache.teachers]
    copied = TeacherSpec(folders["base"], adapter=str(same), labels=names)
    assert TeacherCache([copied], tmp_path / "cache").teachers[0].view.key == cache.teachers[0].view.key
    assert not loaded
    weights = bytearray((same / "adapter_model.safetensors").read_bytes())
    weights[-1] ^= 1
    (same / "adapter_model.safetensors").write_bytes(weights)
    assert TeacherCache([copied], tmp_path / "cache").teachers[0].view.key != cache.teachers[0].view.key
    assert loaded


def test_an_adapters_folder_alone_has_one_key_too(folders, tmp_path, bert_tokenizer):
    shutil.copytree(folders["two"], tmp_path / "two")
    bert_tokenizer.save_pretrained(tmp_path / "two")
    keys = {teacher_key(Teacher.from_pretrained(str(tmp_path / "two")), CacheSettings()) for _ in range(2)}
    assert len(keys) == 1


# ---- Students ----


def test_body_frozen_adapter_and_whole_head_trained(bert_tokenizer, capsys):
    config = lora(target_modules=["q_lin"], modules_to_save=["classifier"])
    stored = copy.deepcopy(config)
    model = make_student(bert_tokenizer, ["no", "yes"])
    adapted = add_adapter(model, config, TASK)
    assert config == stored
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    heads = {name for name in trained if "modules_to_save" in name}
    assert {name.rpartition(".")[0].split(".")[2] for name in heads} == {"pre_classifier", "classifier"}
    assert trained - heads and all(".lora_" in name for name in trained - heads)
    count = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert f"Trained with the adapter: {count:,} of " in capsys.readouterr().out

    before = {name: value.clone() for name, value in adapted.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        inputs = {k: v for k, v in tokens(bert_tokenizer).items() if k != "token_type_ids"}
        loss = torch.nn.functional.cross_entropy(adapted(**inputs).logits, torch.tensor([0, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    moved = {name for name, value in adapted.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == trained


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"bias": "all"}])
def test_merged_it_is_a_plain_student_with_the_same_answers(tmp_path, bert_tokenizer, options):
    config = make_bert(bert_tokenizer, ["no", "yes"]).config
    config.initializer_range = 0.05  # with larger weights float32 itself does not keep six digits
    model = BertForSequenceClassification(config)
    adapted = randomised(add_adapter(model, lora(task_type=None, **options), TASK))
    with torch.no_grad():
        expected = adapted(**tokens(bert_tokenizer)).logits
    merged = merge_adapter(adapted)
    assert type(merged) is BertForSequenceClassification
    assert all(p.requires_grad for p in merged.parameters())
    merged.save_pretrained(tmp_path)
    assert not (tmp_path / "adapter_config.json").exists()
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config.id2label == {0: "no", 1: "yes"} and not hasattr(loaded, "peft_config")
    with torch.no_grad():
        torch.testing.assert_close(loaded(**tokens(bert_tokenizer)).logits, expected, atol=1e-6, rtol=1e-6)


def test_configs_and_models_that_do_not_fit(bert_tokenizer):
    model = make_bert(bert_tokenizer, ["no", "yes"])
    with pytest.raises(ConfigurationError, match="peft_config is a dict: give a config of peft"):
        add_adapter(model, {"r": 8}, TASK)
    with pytest.raises(
        ConfigurationError, match="its task_type is CAUSAL_LM, but text-classification needs SEQ_CLS"
    ):
        add_adapter(model, lora(task_type="CAUSAL_LM"), TASK)
    with pytest.raises(
        ConfigurationError, match="does not fit BertForSequenceClassification: .*target modules"
    ):
        add_adapter(model, lora(target_modules=["nowhere"]), TASK)
    adapted = add_adapter(make_bert(bert_tokenizer, ["no", "yes"]), lora(), TASK)
    with pytest.raises(ConfigurationError, match="has an adapter already"):
        add_adapter(adapted, lora(), TASK)
    with pytest.raises(ConfigurationError, match="A BertForSequenceClassification cannot be merged"):
        merge_adapter(model)
    prompts = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)
    with pytest.raises(ConfigurationError, match="PROMPT_TUNING adds nothing to weights"):
        merge_adapter(add_adapter(make_bert(bert_tokenizer, ["no", "yes"]), prompts, TASK))

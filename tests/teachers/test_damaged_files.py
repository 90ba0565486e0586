"""Checkpoints that are not all there, or describe what cannot be: a sentence each, before anything is loaded."""

from __future__ import annotations

import json
import random
import shutil

import pytest
from safetensors.torch import load_file, save_file

from conftest import make_bert
from hf_distill import Teacher
from hf_distill.errors import ConfigurationError, DataError, HfDistillError
from hf_distill.students.loading import load_student
from hf_distill.tasks import TASKS
from hf_distill.teachers.damaged_files import impossible_sizes

LABELS = ["negative", "positive"]
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path, checkpoints):
    return shutil.copytree(checkpoints["bert"], tmp_path / "bert")


@pytest.fixture
def shards(tmp_path, bert_tokenizer):
    make_bert(bert_tokenizer, LABELS).save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    bert_tokenizer.save_pretrained(tmp_path / "shards")
    assert Teacher.from_pretrained(str(tmp_path / "shards")).label_names == tuple(LABELS)
    return tmp_path / "shards"


def by_both(folder, message: str, error: type[HfDistillError] = DataError) -> None:
    """Refused as a teacher and as a student."""
    with pytest.raises(error, match=f"Teacher '{folder.name}': .*{message}"):
        Teacher.from_pretrained(str(folder))
    with pytest.raises(error, match=f"The student: .*{message}"):
        load_student(str(folder), LABELS, TASKS["text-classification"])


def change(folder, **values) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


@pytest.mark.parametrize("seed", range(12))
def test_weights_that_are_cut_or_too_long(folder, seed):
    whole = (folder / WEIGHTS).read_bytes()
    ends = [0, 5, 8, 9, len(whole) - 1, len(whole) + 3]
    kept = ends[seed] if seed < len(ends) else random.Random(seed).randrange(10, len(whole))
    (folder / WEIGHTS).write_bytes((whole + b"abc")[:kept])
    by_both(folder, rf"model\.safetensors .*({kept}|{kept:,}) bytes", HfDistillError)


def test_shards_that_are_missing_or_cut(shards):
    names = sorted(path.name for path in shards.glob("model-*.safetensors"))
    for name in (names[0], names[-1]):
        content = (shards / name).read_bytes()
        (shards / name).write_bytes(content[:-7])
        by_both(shards, f"{name} has {len(content) - 7} bytes, expected {len(content)}")
        (shards / name).unlink()
        by_both(shards, f"lacks 1 of the {len(names)} files that {INDEX} names, {name} first")
        (shards / name).write_bytes(content)
    for damage in ("{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 4}}'):
        (shards / INDEX).write_text(damage)
        by_both(shards, f"{INDEX} ", HfDistillError)


@pytest.mark.parametrize("part", ["embeddings.word", "layer.0.attention.self.query", "layer.1", "encoder"])
def test_a_gap_in_the_body(folder, part):
    weights = load_file(folder / WEIGHTS)
    left = {name: value for name, value in weights.items() if part not in name}
    assert len(left) < len(weights)
    save_file(left, folder / WEIGHTS, {"format": "pt"})
    by_both(folder, rf"its weights lack {len(weights) - len(left)} parameter\(s\)")


def test_a_student_may_lack_its_head(folder):
    weights = load_file(folder / WEIGHTS)
    kept = {name: v for name, v in weights.items() if "classifier" not in name and "pooler" not in name}
    save_file(kept, folder / WEIGHTS, {"format": "pt"})
    assert load_student(str(folder), LABELS, TASKS["text-classification"]).num_labels == 2
    with pytest.raises(DataError, match="has no trained head"):
        Teacher.from_pretrained(str(folder))


def test_layers_that_the_config_does_not_count(folder):
    change(folder, num_hidden_layers=1)
    by_both(folder, "its weights hold layers that config.json does not count, e.g. bert.encoder.layer.1")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(
            (key, value)
            for key in ("num_hidden_layers", "hidden_size", "num_attention_heads")
            for value in (0, -4, 10**11)
        ),
        ("vocab_size", 0),
        ("vocab_size", 10**30),
        ("intermediate_size", 0),
        ("max_position_embeddings", -1),
    ],
)
def test_sizes_that_cannot_be(folder, key, value):
    change(folder, **{key: value})
    by_both(folder, rf"{key}: expected .*, found {value}")


def test_sizes_that_do_not_divide_or_are_no_numbers(folder):
    change(folder, num_attention_heads=3)
    by_both(folder, "not a multiple of the number of attention heads")
    change(folder, num_attention_heads=2, hidden_size="32")
    by_both(folder, "hidden_size.*expected int, got str")
    assert impossible_sizes({"n_layers": 0, "seed": 0, "type_vocab_size": 0, "tie": True, "dim": None}) == [
        ("n_layers", "expected a whole number from 1, found 0")
    ]


@pytest.mark.parametrize("word", ["gelu_banana", "GELU", "", "rleu"])
def test_activations_that_nobody_has(folder, word):
    change(folder, hidden_act=word)
    by_both(folder, f"hidden_act: found '{word}'.*no activation")


@pytest.mark.parametrize(
    "values",
    [
        {"_attn_implementation": "flash_attention_2"},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
    ],
)
def test_a_library_that_is_missing(folder, values, monkeypatch):
    def missing(*args, **options):
        raise ImportError("it requires bitsandbytes: pip install bitsandbytes")

    monkeypatch.setattr("transformers.AutoModelForSequenceClassification.from_pretrained", missing)
    change(folder, **values)
    by_both(folder, "needs a library that is not there: it requires bitsandbytes", ConfigurationError)


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_head_of_another_size_than_the_names(folder, outputs):
    change(folder, id2label={i: f"class {i}" for i in range(outputs)}, label2id={})
    with pytest.raises(
        DataError, match=rf"of shape \(2,.*but of shape \({outputs},.*{outputs} outputs, named"
    ):
        Teacher.from_pretrained(str(folder))


def test_files_of_a_tokenizer_that_are_cut(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        content = (folder / name).read_text()
        (folder / name).write_text(content[: len(content) // 2])
        with pytest.raises(DataError, match="Teacher 'bert': no tokenizer can be loaded from"):
            Teacher.from_pretrained(str(folder))
        (folder / name).write_text(content)

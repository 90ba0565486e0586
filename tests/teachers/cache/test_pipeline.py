"""The build of a cache: its stages overlap, streams pass through it, and what is stored stays what it was."""

from __future__ import annotations

import functools
import threading
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from test_trainer import make_trainer

from conftest import make_bert, make_student, sentences
from hf_distill import Teacher
from hf_distill.errors import ConfigurationError, DataError
from hf_distill.rows.preparing import SeenIds, distinct_rows
from hf_distill.rows.views import TokenView
from hf_distill.teachers import precision
from hf_distill.teachers.cache import build as building
from hf_distill.teachers.cache import tokens
from hf_distill.teachers.cache.build import TeacherCache, cache_teacher_outputs
from hf_distill.teachers.cache.key import teacher_key
from hf_distill.teachers.cache.settings import CacheSettings
from hf_distill.teachers.cache.store import Store
from hf_distill.teachers.pool import TeacherPool
from hf_distill.teachers.teacher import TeacherSpec

LABELS = ["negative", "positive"]


@pytest.fixture(scope="module")
def many() -> datasets.Dataset:
    rows = sentences(150, seed=5)
    return datasets.Dataset.from_list([*rows, *rows[:20]])


@pytest.fixture
def teacher(bert_tokenizer):
    return Teacher(make_bert(bert_tokenizer, LABELS), bert_tokenizer, name="bert")


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ---- Overlap ----


def test_forward_tokenizing_and_writing_go_on_beside_each_other(tmp_path, teacher, many, monkeypatch):
    """Each stage waits for another one's next piece of work: one after the other they would wait in vain."""
    tokenized, forwarded = [threading.Event() for _ in range(3)], threading.Event()
    met, encoded, run = [], [], []
    encode, write = TokenView.encode, Store.write

    def encodes(self, texts):
        tokenized[min(len(encoded), 2)].set()
        encoded.append(threading.current_thread().name)
        return encode(self, texts)

    def runs(*_):
        run.append(threading.current_thread().name)
        if len(run) == 1:
            met.append(("second shard tokenized", tokenized[1].wait(20)))
        elif len(encoded) >= 2 and len(run) > 40 // 4:
            forwarded.set()

    def writes(self, ids, fields):
        if not met[1:]:
            met.append(("forward of the next", forwarded.wait(20)))
        assert threading.current_thread().name == "writes shards"
        write(self, ids, fields)

    monkeypatch.setattr(TokenView, "encode", encodes)
    monkeypatch.setattr(Store, "write", writes)
    teacher.model.register_forward_pre_hook(runs)
    cache_teacher_outputs([teacher], many, cache_dir=tmp_path, shard_rows=40, token_budget=40)
    assert met == [("second shard tokenized", True), ("forward of the next", True)]
    assert set(encoded) == {"tokenizes"} and set(run) == {"MainThread"}
    ours = {"tokenizes", "collates", "writes shards"}
    assert not [thread for thread in threading.enumerate() if thread.name in ours]


def test_outputs_stay_on_the_device_until_the_shard_is_whole(tmp_path, teacher, many, monkeypatch):
    copies, forwards = [], []
    real = torch.Tensor.cpu
    cache = TeacherCache(
        [teacher], tmp_path, CacheSettings(shard_rows=50, token_budget=40, hidden_states=(-1,))
    )
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: copies.append(len(self)) or real(self))
    monkeypatch.setattr(torch.Tensor, "item", lambda self: pytest.fail("nothing waits for a number"))
    teacher.model.register_forward_pre_hook(lambda *_: forwards.append(1))
    rows = cache.add(many, ("text",))
    shards = -(-rows // 50)
    assert len(forwards) > 4 * shards and len(copies) == 2 * shards and sum(copies) == 2 * rows


def test_the_key_is_made_before_the_model_moves(tmp_path, teacher, many, monkeypatch):
    events = []
    monkeypatch.setattr(Teacher, "to", lambda self, device: events.append("moved") or self)
    monkeypatch.setattr(building, "teacher_key", lambda *given: events.append("key") or teacher_key(*given))
    trainer = make_trainer(
        tmp_path, [teacher], teacher.view.tokenizer, many, label_names=LABELS, cache_dir=tmp_path / "cache"
    )
    assert events[0] == "key" and events.count("key") == 1 and "moved" in events and trainer is not None


def test_an_error_keeps_the_shards_before_it_and_names_the_row(tmp_path, many, bert_tokenizer):
    model = make_bert(bert_tokenizer, LABELS)
    teacher = Teacher(model, bert_tokenizer, name="bert")
    texts = [*dict.fromkeys(many["text"])]
    texts[60] = "\u200b"  # no token is left of it
    spoilt = datasets.Dataset.from_dict({"text": texts})
    bare = BareView(bert_tokenizer, 64, teacher.view.row_rules)
    teacher.view = bare
    for rows in (spoilt, spoilt.to_iterable_dataset()):
        folder = tmp_path / type(rows).__name__
        with pytest.raises(DataError, match="Row 60: Teacher 'bert' cannot answer"):
            cache_teacher_outputs([teacher], rows, cache_dir=folder, shard_rows=20)
        assert len(list(folder.rglob("*.logits.npy"))) == 3 and not list(folder.rglob("*.lock"))


class BareView(TokenView):
    """A tokenizer that adds no special tokens, so that a row may be left without any."""

    def _encoding(self, texts, **options):
        encoding = self.tokenizer(*texts, add_special_tokens=False)
        self._refuse_rows(texts, encoding["input_ids"])
        return encoding


# ---- Several teachers ----


@pytest.mark.parametrize("most_bytes", [4 * 10**9, 0])
def test_teachers_of_one_tokenizer_share_its_tokens(
    tmp_path, checkpoints, many, bert_tokenizer, roberta_tokenizer, monkeypatch, most_bytes
):
    monkeypatch.setattr(tokens, "_MOST_BYTES", most_bytes)
    encoded = []
    encode = TokenView.encode
    monkeypatch.setattr(TokenView, "encode", lambda self, texts: encoded.append(1) or encode(self, texts))
    given = [
        TeacherSpec(str(checkpoints["bert"]), name="first"),
        TeacherSpec(str(checkpoints["roberta"]), name="second"),
        Teacher(make_bert(bert_tokenizer, LABELS, seed=8), bert_tokenizer, name="third"),
    ]
    for i, one in enumerate(given):
        cache_teacher_outputs([one], many, cache_dir=tmp_path / "alone", shard_rows=40)
        assert len(encoded) % (i + 1) == 0
    each = len(encoded) // 3
    encoded.clear()
    cache_teacher_outputs(given, many, cache_dir=tmp_path / "together", shard_rows=40)
    assert len(encoded) == each * (2 if most_bytes else 3)
    shards = {n: d for n, d in files(tmp_path / "alone").items() if n.endswith(".npy")}
    assert {n: d for n, d in files(tmp_path / "together").items() if n.endswith(".npy")} == shards
    assert not list((tmp_path / "together").glob(".tokens-*"))


@pytest.mark.parametrize("fails", ["the place", "the first file", "a later part of it", "its end"])
def test_tokens_that_cannot_be_kept_are_made_again(tmp_path, many, bert_tokenizer, monkeypatch, fails):
    given = [
        Teacher(make_bert(bert_tokenizer, LABELS, seed=seed), bert_tokenizer, name=f"bert{seed}")
        for seed in (1, 2)
    ]
    cache_teacher_outputs(given, many, cache_dir=tmp_path / "kept", shard_rows=40)
    savez = np.savez

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    def cut(path, **columns):
        if fails == "a later part of it":
            savez(path, **dict([*columns.items()][:1]))
            full()
        savez(path, **columns)
        path.write_bytes(path.read_bytes()[:-20])

    if fails == "the place":
        monkeypatch.setattr(tokens.tempfile, "TemporaryDirectory", full)
    else:
        monkeypatch.setattr(np, "savez", full if fails == "the first file" else cut)
    cache_teacher_outputs(given, many, cache_dir=tmp_path / "not", shard_rows=40)
    assert files(tmp_path / "not") == files(tmp_path / "kept")


# ---- Large data ----


def test_a_stream_is_stored_as_its_rows_would_be_and_found_again(tmp_path, teacher, many):
    options = {"shard_rows": 32}
    cache_teacher_outputs([teacher], many, cache_dir=tmp_path / "rows", **options)
    stream = many.to_iterable_dataset(num_shards=3)
    cache = TeacherCache([teacher], tmp_path / "stream", CacheSettings(**options))
    assert cache.add(stream, ("text",)) == len(set(many["text"]))
    assert files(tmp_path / "stream") == files(tmp_path / "rows")
    assert cache.add(stream, ("text",)) == 0 == cache.add(many.shuffle(seed=1), ("text",))
    more = datasets.Dataset.from_dict({"text": ["a new film", *many["text"], "a new film", "another"]})
    assert cache.add(more.to_iterable_dataset(), ("text",)) == 2


def test_a_stream_that_becomes_too_large_keeps_what_was_computed(tmp_path, teacher, many):
    stream, rows = many.to_iterable_dataset(), len(set(many["text"]))
    settings = CacheSettings(shard_rows=32, limit_bytes=70 * 12)
    with pytest.raises(
        ConfigurationError, match="'bert' for this stream take more than limit_bytes, 840 bytes"
    ):
        TeacherCache([teacher], tmp_path, settings).add(stream, ("text",))
    assert TeacherCache([teacher], tmp_path, CacheSettings(shard_rows=32)).add(stream, ("text",)) == rows - 64


def test_training_on_a_stream_from_the_cache_is_training_on_its_rows(tmp_path, teacher, many, bert_tokenizer):
    weights = []
    for rows in (many, many.to_iterable_dataset()):
        trainer = make_trainer(
            tmp_path, [teacher], bert_tokenizer, rows, student=make_student(bert_tokenizer),
            label_names=LABELS, cache_dir=tmp_path / "cache", max_steps=4, train_sampling_strategy="sequential",
        )  # fmt: skip
        trainer.train()
        weights.append(trainer.student.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_distinct_rows_hold_numbers_and_no_texts(many):
    found = distinct_rows(many, ["text"])
    assert found.ids.nbytes + found.numbers.nbytes == 12 * len(set(many["text"]))
    assert found.texts(slice(None)) == [[*dict.fromkeys(many["text"])]]
    assert found.texts([3, 1]) == [[many["text"][3], many["text"][1]]] and found.texts([]) == [[]]
    assert [*found.by_id().values()] == [(text,) for text in dict.fromkeys(many["text"])]


def test_seen_ids_are_those_that_came_before():
    draw, seen, before = np.random.default_rng(0), SeenIds(), set()
    for _ in range(60):
        ids = draw.integers(0, 400, 9)
        new = [i for i, value in enumerate(ids) if value not in before and value not in ids[:i]]
        assert seen.new(ids).tolist() == new
        before |= set(ids.tolist())
    assert len(seen._sorted) < 10


# ---- Precision ----


def test_auto_precision_is_settled_before_the_key_and_said(tmp_path, teacher, many, monkeypatch, capsys):
    cache = functools.partial(TeacherCache, [teacher], tmp_path)
    auto = CacheSettings(precision="auto")
    own = cache(CacheSettings())
    assert cache(auto).teachers[0].view.key == own.teachers[0].view.key  # a processor has nothing faster
    cache(auto).add(many, ("text",))
    assert ", in the teachers' own precision (precision: auto)" in capsys.readouterr().err
    monkeypatch.setattr(building.CacheSettings, "on", lambda self, device: CacheSettings(precision="bf16"))
    told = cache(auto)
    monkeypatch.undo()
    assert told.teachers[0].view.key == cache(CacheSettings(precision="bf16")).teachers[0].view.key
    told.add(many.select(range(20)), ("text",))
    assert ", in bf16 (precision: auto)" in capsys.readouterr().err


def test_live_teachers_run_in_the_precision_that_is_asked_for(teacher, capsys):
    inputs = dict(teacher.view.tokenizer(["a good film"], return_tensors="pt"))
    batch = {"example_id": torch.tensor([1]), "teacher_views": {"bert": inputs}}
    device = torch.device("cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = teacher(inputs).logits.float()
    plain = teacher(inputs).logits
    assert not torch.equal(low, plain)
    for asked, expected in ((None, plain), ("bf16", low), ("auto", plain)):
        pool = TeacherPool([teacher], LABELS, precision=asked).to(device)
        assert torch.equal(pool(batch).logits[0], expected)
    assert capsys.readouterr().out == (
        "Live teachers run in the precision of the training on cpu (precision: auto).\n"
    )
    with pytest.raises(ConfigurationError, match="Teacher precision is 'int8': choose None, 'bf16'"):
        TeacherPool([teacher], LABELS, precision="int8")
    assert precision.settled("auto", device) is None


def test_a_compiled_teacher_has_its_key_and_its_answers(teacher):
    """What the docs say of `torch.compile`; with a backend that compiles nothing, so that no compiler is needed."""
    inputs = dict(teacher.view.tokenizer(["a good film"], return_tensors="pt"))
    key, plain = teacher_key(teacher, CacheSettings()), teacher(inputs).logits
    teacher.model.compile(backend="eager", dynamic=True)
    assert teacher_key(teacher, CacheSettings()) == key
    assert torch.allclose(teacher(inputs).logits, plain, atol=1e-6)

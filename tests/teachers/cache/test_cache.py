"""The teacher cache: exact, keyed by content, whole after any accident, and invisible to training."""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import datasets
import filelock
import numpy as np
import pytest
import torch
from forking import started
from test_trainer import make_trainer
from transformers import AutoTokenizer, BertTokenizer

from conftest import make_bert, sentences
from hf_distill import Teacher, evaluate_ensemble
from hf_distill.errors import ConfigurationError, CorruptStateError, DataError
from hf_distill.rows.preparing import example_id
from hf_distill.rows.views import TokenView
from hf_distill.teachers.cache.build import TeacherCache, cache_teacher_outputs
from hf_distill.teachers.cache.key import teacher_key
from hf_distill.teachers.cache.settings import CacheSettings
from hf_distill.teachers.cache.store import RowReader, Store, StoreError, cache_info, shard_name
from hf_distill.teachers.states import Wanted
from hf_distill.teachers.teacher import TeacherSpec

LABELS = ["negative", "positive"]
FLOAT32 = CacheSettings(dtype="float32")


@pytest.fixture(scope="module")
def many() -> datasets.Dataset:
    return datasets.Dataset.from_list(sentences(300, seed=5))


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a cache by its path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def ids_of(dataset) -> torch.Tensor:
    return torch.tensor([example_id([text]) for text in dataset["text"]])


def ended(child: int) -> int:
    """Its exit code once it has ended, negative after a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# ---- What is stored ----


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 2**-11)])
def test_outputs_are_the_teachers_own(tmp_path, teachers, many, dtype, tolerance):
    settings = CacheSettings(dtype=dtype, shard_rows=64, token_budget=200)
    cache = TeacherCache(teachers, tmp_path, settings)
    assert cache.add(many, ("text",)) == 3 * len(set(many["text"]))
    batch = many.select([7, 250, 3, 7, 111])  # several shards, in no order, one row twice
    for teacher, cached in zip(teachers, cache.teachers, strict=True):
        assert cached.name == teacher.name and cached.label_names == teacher.label_names
        assert cached.num_parameters == teacher.num_parameters
        inputs = cached.view.collate([{}] * 5, ids_of(batch))
        alone = torch.cat(
            [teacher(dict(teacher.view.tokenizer([t], return_tensors="pt"))).logits for t in batch["text"]]
        )
        stored = cached(inputs, ids_of(batch)).logits
        assert stored.dtype == getattr(torch, dtype)
        assert ((stored.float() - alone).abs() <= tolerance * alone.abs().clamp(min=1)).all()


def test_pooled_hidden_states_on_request(tmp_path, teachers, many):
    some = many.select(range(40))
    (cached,) = cache_teacher_outputs(
        teachers[:1], some, cache_dir=tmp_path, dtype="float32", hidden_states=(0, -1), token_budget=150
    )
    ids = ids_of(some)
    stored = cached(cached.view.collate([{}] * 40, ids), ids)
    assert list(stored.hidden_states) == [Wanted(0, "mean"), Wanted(-1, "mean")] and stored.logits.shape == (
        40,
        2,
    )
    for i in (0, 17):
        inputs = teachers[0].view.tokenizer(
            some["text"][i], return_tensors="pt"
        )  # alone, so that nothing is padded
        with torch.no_grad():
            states = teachers[0].model(**inputs, output_hidden_states=True).hidden_states
        for layer in (0, -1):
            torch.testing.assert_close(
                stored.hidden_states[Wanted(layer, "mean")][i], states[layer][0].mean(0), atol=1e-5, rtol=1e-5
            )
    assert teacher_key(teachers[0], CacheSettings(hidden_states=(1,))) != teacher_key(
        teachers[0], CacheSettings()
    )


def test_rows_are_run_in_order_of_length_within_the_token_budget(tmp_path, many, bert_tokenizer):
    teacher = Teacher(make_bert(bert_tokenizer, LABELS), bert_tokenizer, name="bert")
    shapes = []
    teacher.model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(
            (kwargs["attention_mask"].sum().item(), *kwargs["input_ids"].shape)
        ),
        with_kwargs=True,
    )
    cache_teacher_outputs([teacher], many, cache_dir=tmp_path, token_budget=400)
    assert all(rows * length <= 400 for _, rows, length in shapes)
    assert [length for *_, length in shapes] == sorted((length for *_, length in shapes), reverse=True)
    tokens = sum(tokens for tokens, *_ in shapes)
    size = max(rows for _, rows, _ in shapes)
    lengths = [len(ids) for ids in bert_tokenizer(many["text"][:])["input_ids"]]
    at_random = sum(
        max(lengths[i : i + size]) * len(lengths[i : i + size]) for i in range(0, len(lengths), size)
    )
    padding = sum(rows * length for _, rows, length in shapes) - tokens
    assert padding < 0.2 * (at_random - sum(lengths))


def test_a_changed_inserted_or_removed_row_costs_that_row_only(tmp_path, teachers, many):
    cache = TeacherCache(teachers[:1], tmp_path)
    cache.add(many, ("text",))
    texts = many["text"][:]
    changed = ["a new film", *texts[1:50], "an inserted film", *texts[51:]]
    assert cache.add(datasets.Dataset.from_dict({"text": changed}), ("text",)) == 2
    assert cache.add(many.shuffle(seed=1).select(range(100)), ("text",)) == 0


# ---- The key ----


def test_twenty_changes_that_matter_miss(checkpoints, bert_tokenizer):
    def teacher(**options):
        model = make_bert(bert_tokenizer, options.pop("labels", LABELS), **options.pop("config", {}))
        return Teacher(model, options.pop("tokenizer", bert_tokenizer), name="bert", **options)

    def changed_weight(name):
        made = teacher()
        made.model.state_dict()[name].flatten()[0] += 1e-3
        return made

    def tokenizer(**options):
        return AutoTokenizer.from_pretrained(checkpoints["bert"], **options)

    def reading(through):
        made = teacher()
        made.view = TokenView(through, made.view.max_length)  # as a teacher it would be refused
        return made

    swapped = dict(bert_tokenizer.get_vocab())
    swapped["good"], swapped["film"] = swapped["film"], swapped["good"]
    added = tokenizer()
    added.add_tokens(["gorgeous"])
    normal = CacheSettings()
    keys = {
        "nothing": teacher_key(teacher(), normal),
        "a weight of the encoder": teacher_key(changed_weight("bert.encoder.layer.0.output.dense.weight"), normal),
        "a weight of the head": teacher_key(changed_weight("classifier.weight"), normal),
        "a bias": teacher_key(changed_weight("classifier.bias"), normal),
        "an embedding": teacher_key(changed_weight("bert.embeddings.word_embeddings.weight"), normal),
        "the activation": teacher_key(teacher(config={"hidden_act": "relu"}), normal),
        "the norm's epsilon": teacher_key(teacher(config={"layer_norm_eps": 1e-6}), normal),
        "label order": teacher_key(teacher(labels=LABELS[::-1]), normal),
        "label names": teacher_key(teacher(labels=["no", "yes"]), normal),
        "labels renamed by the user": teacher_key(teacher(labels=LABELS) if False else Teacher(
            make_bert(bert_tokenizer, LABELS), bert_tokenizer, name="bert", labels=["bad", "good"]), normal),
        "weights of another type": teacher_key(Teacher(make_bert(bert_tokenizer, LABELS).bfloat16(), bert_tokenizer, name="b"), normal),
        "a token's id": teacher_key(teacher(tokenizer=BertTokenizer(swapped, model_max_length=64)), normal),
        "an added token": teacher_key(reading(added), normal),
        "lower casing": teacher_key(teacher(tokenizer=BertTokenizer(bert_tokenizer.get_vocab(), do_lower_case=False, model_max_length=64)), normal),
        "a special token": teacher_key(teacher(tokenizer=tokenizer(unk_token="[MASK]")), normal),
        "padding side": teacher_key(reading(tokenizer(padding_side="left")), normal),
        "truncation side": teacher_key(teacher(tokenizer=tokenizer(truncation_side="left")), normal),
        "inputs of the model": teacher_key(teacher(tokenizer=tokenizer(model_input_names=["input_ids", "attention_mask"])), normal),
        "max_length": teacher_key(teacher(max_length=63), normal),
        "storage type": teacher_key(teacher(), FLOAT32),
        "precision": teacher_key(teacher(), CacheSettings(precision="bf16")),
    }  # fmt: skip
    assert len(keys) == 21
    assert len(set(keys.values())) == 21, {k for k, v in keys.items() if list(keys.values()).count(v) > 1}
    for first, second in (
        (["a film"], ["a  film"]),
        (["a", "film"], ["film", "a"]),
        (["a film"], ["a", "film"]),
    ):
        assert example_id(first) != example_id(second)  # the rows' side of the key


def test_six_changes_that_do_not_matter_hit(tmp_path, checkpoints, many):
    """Path, modification times, batch size, shard size, row order, other columns; and having run before."""
    first = TeacherCache([checkpoints["bert"]], tmp_path / "cache")
    first.add(many, ("text",))
    moved = tmp_path / "elsewhere" / "renamed"
    shutil.copytree(checkpoints["bert"], moved)
    for path in moved.iterdir():
        os.utime(path, (1, 1))
    again = TeacherCache([str(moved)], tmp_path / "cache", CacheSettings(token_budget=99, shard_rows=7))
    other = many.shuffle(seed=3).add_column("more", list(range(300))).rename_column("text", "sentence")
    assert again.add(other, ("sentence",)) == 0
    used = Teacher.from_pretrained(checkpoints["bert"])
    key = teacher_key(used, CacheSettings())
    used.model(
        **used.view.tokenizer("a film", return_tensors="pt"), labels=torch.tensor([1])
    )  # sets config.problem_type
    assert teacher_key(used, CacheSettings()) == key == first.teachers[0].view.key


def test_a_folder_seen_before_is_not_loaded_again(tmp_path, monkeypatch, checkpoints, many):
    """And any change of its files, or of what is asked for, is."""
    folder = tmp_path / "bert"
    shutil.copytree(checkpoints["bert"], folder)
    key = TeacherCache([str(folder)], tmp_path / "cache").teachers[0].view.key
    loaded = []
    real = Teacher.from_pretrained
    monkeypatch.setattr(Teacher, "from_pretrained", lambda *a, **o: loaded.append(1) or real(*a, **o))

    def keys(given=str(folder), settings=CacheSettings()):  # noqa: B008
        loaded.clear()
        teacher = TeacherCache([given], tmp_path / "cache", settings).teachers[0]
        return teacher.view.key, len(loaded), teacher

    found, loads, teacher = keys()
    assert (found, loads) == (key, 0)
    assert (
        teacher.label_names == ("negative", "positive")
        and teacher.name == "bert"
        and teacher.num_parameters > 0
    )
    assert keys(TeacherSpec(str(folder), name="other"))[:2] == (key, 0)
    for given, settings in (
        (TeacherSpec(str(folder), max_length=9), CacheSettings()),
        (TeacherSpec(str(folder), labels=["no", "yes"]), CacheSettings()),
        (str(folder), FLOAT32),
    ):
        found, loads, _ = keys(given, settings)
        assert found != key and loads == 1
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert keys()[0] != key


def test_an_adapter_is_part_of_the_key(bert_tokenizer):
    peft = pytest.importorskip("peft", reason="peft is not installed")

    def key(**options):
        torch.manual_seed(0)
        config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"], **options)
        model = peft.get_peft_model(make_bert(bert_tokenizer, LABELS), config)
        return teacher_key(Teacher(model, bert_tokenizer, name="lora"), CacheSettings())

    assert len({key(r=2), key(r=2, lora_alpha=99), key(r=4)}) == 3 and key(r=2) == key(r=2)


# ---- Accidents ----


def build(folder, teacher, rows, **settings):
    cache = TeacherCache([teacher], folder, CacheSettings(**{"shard_rows": 32, **settings}))
    return cache, cache.add(rows, ("text",))


@pytest.mark.slow
def test_killed_at_any_moment_the_next_run_ends_with_the_same_bytes(tmp_path, checkpoints, many):
    build(tmp_path / "whole", checkpoints["bert"], many)
    expected = files(tmp_path / "whole")

    def killed(folder: Path, moment: int) -> None:
        left = [moment]

        def die(event, args):
            if event in ("os.rename", "open") and str(folder) in str(args[0]):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(die)
        build(folder, checkpoints["bert"], many)

    # Moments in the first shard, between its files, in the middle, and near the end: by the count of file operations.
    for moment in (3, 8, 11, 40, 90):
        folder = tmp_path / f"killed-{moment}"
        assert ended(started(functools.partial(killed, folder, moment))) == -signal.SIGKILL
        whole = {name: data for name, data in files(folder).items() if "/." not in f"/{name}"}
        finished = [name for name in whole if re.fullmatch(r"\w+/[0-9a-f]{32}\.json", name)]
        assert all(expected[name] == data for name, data in whole.items())
        _, computed = build(folder, checkpoints["bert"], many)
        assert computed == len(set(many["text"])) - 32 * len(finished)
        assert {n: d for n, d in files(folder).items() if "/." not in f"/{n}"} == expected


@pytest.mark.parametrize(
    "accident", ["bit", "truncated", "swapped", "foreign", "manifest", "missing", "renamed"]
)
def test_damage_is_found_named_and_rebuilt(tmp_path, capsys, checkpoints, many, accident):
    cache, _ = build(tmp_path / "cache", checkpoints["bert"], many)
    expected = files(tmp_path / "cache")
    folder = cache.teachers[0].view.folder
    rows_of = {p.stem: json.loads(p.read_text()).get("rows") for p in folder.glob("*.json")}
    first, second = sorted(path.stem for path in folder.glob("*.json") if path.name != "teacher.json")[:2]
    logits = folder / f"{first}.logits.npy"
    if accident == "bit":
        data = bytearray(logits.read_bytes())
        data[-5] ^= 1
        logits.write_bytes(data)
    elif accident == "truncated":
        logits.write_bytes(logits.read_bytes()[:-8])
    elif accident == "swapped":
        logits.write_bytes((folder / f"{second}.logits.npy").read_bytes())
    elif accident == "foreign":  # whole and consistent in itself, but another teacher's
        other, _ = build(tmp_path / "other", checkpoints["deberta"], many)
        for path in other.teachers[0].view.folder.glob(f"{first}.*"):
            shutil.copy(path, folder)
    elif accident == "manifest":
        (folder / f"{first}.json").write_text('{"format": 1')
    elif accident == "missing":
        logits.unlink()
    elif accident == "renamed":  # a shard under another's name
        for path in list(folder.glob(f"{second}.*")):
            path.rename(folder / path.name.replace(second, first))
    capsys.readouterr()
    cached = TeacherCache([checkpoints["bert"]], tmp_path / "cache", CacheSettings(shard_rows=32)).teachers[0]
    with pytest.raises(CorruptStateError, match="rows are not in the cache"):
        cached.view.collate([{}] * 300, ids_of(many))
    _, computed = build(tmp_path / "cache", checkpoints["bert"], many)
    assert f"shard {first} is damaged" in capsys.readouterr().err
    assert computed == rows_of[first] + (rows_of[second] if accident == "renamed" else 0)
    assert files(tmp_path / "cache") == expected


def test_two_builders_compute_each_row_once(tmp_path, checkpoints, many):
    rows = len(set(many["text"]))

    def builds(name: str) -> None:
        cache = TeacherCache(
            [checkpoints["bert"]], tmp_path / "cache", CacheSettings(shard_rows=16, token_budget=32)
        )
        (tmp_path / name).write_text(str(cache.add(many, ("text",))))

    children = [started(functools.partial(builds, name)) for name in ("first", "second")]
    assert [ended(child) for child in children] == [0, 0]
    assert sum(int((tmp_path / name).read_text()) for name in ("first", "second")) == rows
    assert not list((tmp_path / "cache").rglob("*.lock"))


def test_a_shard_another_process_is_computing_is_waited_for(tmp_path, checkpoints, many):
    cache = TeacherCache([checkpoints["bert"]], tmp_path, CacheSettings(shard_rows=1000))
    view = cache.teachers[0].view
    ids = np.array(list(dict.fromkeys(ids_of(many).tolist())), dtype="<i8")
    lock = filelock.FileLock(view.folder / f".{shard_name(ids)}.lock")
    lock.acquire()
    import threading

    results = []
    worker = threading.Thread(target=lambda: results.append(cache.add(many, ("text",))))
    worker.start()
    time.sleep(0.3)
    assert not results  # it waits
    Store(view.folder, view.key).write(ids, {"logits": np.zeros((len(ids), 2), np.float16)})
    lock.release()
    worker.join(timeout=60)
    assert results == [0]


def test_without_working_locks_it_stays_correct(tmp_path, monkeypatch, checkpoints, many):
    def no_locks(self, *args, **kwargs):
        raise OSError(errno.ENOLCK, "No locks available")

    build(tmp_path / "whole", checkpoints["bert"], many)
    monkeypatch.setattr(filelock.FileLock, "acquire", no_locks)
    build(tmp_path / "unlocked", checkpoints["bert"], many)
    assert files(tmp_path / "unlocked") == files(tmp_path / "whole")


def test_simulated_full_disk_keeps_what_was_finished(tmp_path, monkeypatch, checkpoints, many):
    calls = []
    real = np.save

    def fill_up(*args, **kwargs):
        calls.append(1)
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args, **kwargs)

    monkeypatch.setattr(np, "save", fill_up)
    with pytest.raises(StoreError, match="the disk is full: free room .* finished shards are kept"):
        build(tmp_path, checkpoints["bert"], many)
    monkeypatch.undo()
    assert not list(tmp_path.rglob(".*unfinished*"))
    _, computed = build(tmp_path, checkpoints["bert"], many)
    assert computed == len(set(many["text"])) - 64


def test_folders_that_cannot_be_used(tmp_path, checkpoints, many):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cache folder"):
        build(tmp_path / "file", checkpoints["bert"], many)
    if os.getuid() == 0:
        foreign, _ = build(tmp_path / "foreign", checkpoints["bert"], many)
        os.chown(foreign.teachers[0].view.folder, 12345, 12345)
        with pytest.raises(StoreError, match="belongs to another user"):
            build(tmp_path / "foreign", checkpoints["bert"], many)
    else:
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o500)
        with pytest.raises(StoreError, match="you may not write there"):
            build(closed, checkpoints["bert"], many)


def test_private_and_without_paths(tmp_path, checkpoints, many):
    cache, _ = build(tmp_path / "cache", checkpoints["bert"], many)
    folder = cache.teachers[0].view.folder
    assert folder.stat().st_mode & 0o777 == 0o700
    assert not any(
        str(Path(checkpoints["bert"]).parent).encode() in data for data in files(tmp_path).values()
    )


def test_outputs_that_are_not_finite_are_never_stored(tmp_path, bert_tokenizer, many):
    loud = make_bert(bert_tokenizer, LABELS)
    loud.classifier.weight.data *= 1e6
    teacher = Teacher(loud, bert_tokenizer, name="loud")
    with pytest.raises(
        DataError, match=r"Teacher 'loud' gives outputs that are not finite in float16 for .*e\.g\. '"
    ):
        cache_teacher_outputs([teacher], many, cache_dir=tmp_path)
    assert not list(tmp_path.rglob("*.npy"))
    assert len(cache_teacher_outputs([teacher], many, cache_dir=tmp_path, dtype="float32")) == 1


# ---- Training from it ----


def curve(trainer):
    trainer.train()
    return [(log["loss"], log["loss_distill"]) for log in trainer.state.log_history if "loss" in log]


def test_training_from_the_cache_equals_live_training(tmp_path, teachers, bert_tokenizer, many):
    rows = many.add_column("more", list(range(300)))
    options = {
        "label_names": LABELS, "max_steps": 40, "gradient_accumulation_steps": 2,
        "train_sampling_strategy": "group_by_length", "temperature": 2.0,
    }  # fmt: skip
    live = np.array(curve(make_trainer(tmp_path / "live", teachers, bert_tokenizer, rows, **options)))
    for dtype in ("float32", "float16"):
        settings = CacheSettings(dtype=dtype, shard_rows=64)
        cached = np.array(
            curve(
                make_trainer(
                    tmp_path / dtype,
                    teachers,
                    bert_tokenizer,
                    rows,
                    cache_dir=tmp_path / "cache",
                    cache_settings=settings,
                    **options,
                )
            )
        )
        if dtype == "float32":
            np.testing.assert_allclose(cached, live, atol=1e-5)
        else:
            # ε = max|z| / 2048 / T per logit gives at most T² ε² / 2 in KL at the same student, to first order plus
            # 2 ε √(2 KL): students then drift apart, hence the factor.
            largest = max(np.abs(np.load(path)).max() for path in (tmp_path / "cache").rglob("*.logits.npy"))
            bound = 4 * 2 * (largest / 2048) * np.sqrt(2 * live[:, 1].max())
            assert np.abs(cached - live).max() < bound < 0.02


def test_bit_equal_where_teacher_batches_are_the_same(tmp_path, teachers, bert_tokenizer, many):
    """All rows of one length, batches of the build's own size and order."""
    words = ["good", "film", "plot", "bad", "actor", "the", "was", "is"]
    texts = [f"a {a} {b}" for a in words for b in words]
    rows = datasets.Dataset.from_dict({"text": texts, "label": [i % 2 for i in range(64)]})
    teacher = teachers[0]
    length = len(teacher.view.tokenizer(texts[0])["input_ids"])
    options = {"label_names": LABELS, "max_steps": 8, "train_sampling_strategy": "sequential"}
    live = curve(make_trainer(tmp_path / "live", [teacher], bert_tokenizer, rows, **options))
    settings = CacheSettings(dtype="float32", token_budget=8 * length)
    cached = make_trainer(
        tmp_path / "cached",
        [teacher],
        bert_tokenizer,
        rows,
        cache_dir=tmp_path / "c",
        cache_settings=settings,
        **options,
    )
    assert curve(cached) == live


def test_every_dataset_of_the_trainer_is_cached_when_it_comes(
    tmp_path, checkpoints, bert_tokenizer, rows, held_out
):
    trainer = make_trainer(
        tmp_path, [checkpoints["bert"], checkpoints["deberta"]], bert_tokenizer, rows, eval_dataset=held_out,
        cache_dir=tmp_path / "cache", cache_settings=FLOAT32, dataloader_num_workers=1, max_steps=3,
    )  # fmt: skip
    trainer.train()
    assert trainer.evaluate()["eval_loss_distill"] > 0
    new = datasets.Dataset.from_list(sentences(20, seed=77), features=rows.features)
    report = trainer.evaluate_ensemble(new, metrics=["accuracy", "nll"])
    live = evaluate_ensemble([checkpoints["bert"], checkpoints["deberta"]], new, metrics=["accuracy", "nll"])
    for name, system in live.systems.items():
        assert report.systems[name].metrics == pytest.approx(system.metrics, rel=1e-5)
        assert report.systems[name].parameters == system.parameters
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 2


def test_what_cannot_be_cached(tmp_path, teachers, rows, many):
    cache = TeacherCache(teachers[:1], tmp_path)
    with pytest.raises(DataError, match="are a list"):
        cache.add(list(many), ("text",))
    with pytest.raises(DataError, match=r"text_columns=\['txt'\]"):
        cache.add(many, ("txt",))
    with pytest.raises(DataError, match="expected text"):
        cache.add(datasets.Dataset.from_dict({"text": ["a", None]}), ("text",))
    with pytest.raises(ConfigurationError, match="no model that could be run once"):
        TeacherCache(cache.teachers, tmp_path)
    for bad in ({"dtype": "int8"}, {"precision": "fp8"}, {"shard_rows": 0}, {"token_budget": 1.5}):
        with pytest.raises(ConfigurationError):
            CacheSettings(**bad)


def test_info_lists_what_is_there(tmp_path, checkpoints, many):
    build(tmp_path, checkpoints["bert"], many)
    build(tmp_path, checkpoints["deberta"], many.select(range(40)), dtype="float32")
    found = {entry["teacher"]: entry for entry in cache_info(tmp_path)}
    assert found["bert"]["rows"] == len(set(many["text"])) and found["deberta"]["rows"] == 40
    assert found["bert"]["dtype"] == "float16" and found["deberta"]["labels"] == ["Positive", "Negative"]
    assert found["deberta"]["bytes"] >= 40 * (8 + 2 * 4) and found["bert"]["damaged"] == []
    assert time.time() - found["bert"]["written"] < 600
    with pytest.raises(DataError, match="There is no folder"):
        cache_info(tmp_path / "nothing")


def test_reader_finds_rows_across_shards(tmp_path):
    store = Store(tmp_path, "key")
    first, second = np.array([5, 1, 9]), np.array([2, 7])
    store.write(first, {"logits": np.arange(6, dtype=np.float16).reshape(3, 2)})
    store.write(second, {"logits": np.arange(6, 10, dtype=np.float16).reshape(2, 2)})
    reader = RowReader(store.shards(), "it")
    assert reader.read(np.array([7, 5, 7, 9]))["logits"].tolist() == [[8, 9], [0, 1], [8, 9], [4, 5]]
    assert reader.read(np.array([9, 1]))["logits"].tolist() == [[4, 5], [2, 3]]
    assert reader.missing(np.array([1, 3, 9, 10])).tolist() == [3, 10]
    with pytest.raises(CorruptStateError, match="1 of 2 rows are not in the cache"):
        reader.read(np.array([1, 3]))
    manifest = json.loads((tmp_path / f"{shard_name(first)}.json").read_text())
    assert manifest["rows"] == 3 and set(manifest["xxh3_128"]) == {"ids", "logits"}


def test_views_are_shared_by_key_only(bert_tokenizer):
    assert TokenView(bert_tokenizer, 9).key != TokenView(bert_tokenizer, 10).key

"""What a cache says of its teachers is checked against the stores and the teachers' files, and never followed out of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hf_distill.runs.cache import cache_table
from hf_distill.teachers.cache import build, key
from hf_distill.teachers.cache.build import TeacherCache


@pytest.fixture
def cache(tmp_path, checkpoints, rows, monkeypatch):
    """Opens the cache anew and says which teachers were loaded for it."""
    loaded: list[str] = []
    load = build.load_teacher

    def counted(given, task):
        teacher = load(given, task)
        loaded.append(teacher.name)
        return teacher

    monkeypatch.setattr(build, "load_teacher", counted)
    paths = [checkpoints["bert"], checkpoints["roberta"]]

    def open_it():
        loaded.clear()
        made = TeacherCache(paths, tmp_path / "cache")
        made.add(rows.select(range(8)), ("text",))
        return [
            (t.view.key, t.label_names, t.num_parameters, t.layers, t.width) for t in made.teachers
        ], list(loaded)

    open_it()
    return open_it


def descriptions(tmp_path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("folder-*.json"))


def test_a_teacher_that_is_known_is_not_loaded(cache):
    assert cache()[1] == []


def test_a_teacher_is_loaded_once_more_for_a_check_that_it_has_not_seen(cache, monkeypatch):
    right, _ = cache()
    monkeypatch.setattr(key, "CHECKS", key.CHECKS + 1)
    assert cache() == (right, ["bert", "roberta"])  # and no row is computed again
    assert cache() == (right, [])


@pytest.mark.parametrize(
    "change",
    [
        lambda known, other: {**known, "labels": known["labels"][::-1]},
        lambda known, other: {**known, "labels": ["a", "a"]},
        lambda known, other: {**known, "labels": []},
        lambda known, other: {**known, "parameters": known["parameters"] + 1},
        lambda known, other: {**known, "layers": "two"},
        lambda known, other: {**known, "width": known["width"] * 2},
        lambda known, other: {**known, "key": "../outside"},
        lambda known, other: {**known, "key": "0" * 32},
        lambda known, other: {**known, "key": known["key"].upper()},
        lambda known, other: {**known, "key": other["key"]},
        lambda known, other: other,
        lambda known, other: {**known, "more": 1},
        lambda known, other: {},
        lambda known, other: [],
        lambda known, other: None,
        lambda known, other: "x",
    ],
)  # fmt: skip
def test_a_description_in_doubt_is_computed_again(cache, tmp_path, change):
    right, _ = cache()
    first, second = descriptions(tmp_path)
    known, other = (json.loads(path.read_text()) for path in (first, second))
    first.write_text(json.dumps(change(known, other)))
    found, loaded = cache()
    assert found == right and len(loaded) >= 1
    assert json.loads(first.read_text()) == known  # written anew
    assert cache() == (right, [])
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\x00", '{"key": 1}'])
def test_garbage_is_no_traceback(cache, tmp_path, text):
    right, _ = cache()
    first = descriptions(tmp_path)[0]
    first.write_text(text)
    assert cache()[0] == right
    for path in (tmp_path / "cache").glob("*/teacher.json"):
        path.write_text(text)
    cache_table(tmp_path / "cache")
    assert cache()[0] == right


def test_labels_that_both_descriptions_swap_are_those_of_the_teachers_files(cache, tmp_path):
    right, _ = cache()
    for first in descriptions(tmp_path):
        known = json.loads(first.read_text())
        known["labels"].reverse()
        first.write_text(json.dumps(known))
        store = tmp_path / "cache" / known["key"] / "teacher.json"
        store.write_text(json.dumps({**json.loads(store.read_text()), "labels": known["labels"]}))
    assert cache()[0] == right


@pytest.mark.parametrize("field", ["../../x", "/etc/x", "a/b"])
def test_a_shard_names_fields_and_no_paths(cache, tmp_path, field):
    right, _ = cache()
    (shard,) = [
        path for path in (tmp_path / "cache" / right[0][0]).glob("*.json") if path.name != "teacher.json"
    ]
    manifest = json.loads(shard.read_text())
    manifest["xxh3_128"][field] = "0" * 32
    shard.write_text(json.dumps(manifest))
    found, loaded = cache()
    assert found == right and len(loaded) == 1  # the shard is built anew

"""Damage that is generated: whatever was done to a checkpoint, a store or a model is found, or changed nothing."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from generators import cases
from hypothesis import given
from hypothesis import strategies as st

from hf_distill.files import write_text
from hf_distill.teachers.cache.store import Store
from hf_distill.training.commits import commit, problem

FILES = ("model.safetensors", "optimizer.pt", "trainer_state.json", "checkpoint.json")
ways = st.lists(
    st.tuples(
        st.sampled_from(["cut", "flip", "insert", "remove", "zero", "swap", "move"]),
        st.integers(0, 5), st.floats(0, 0.999), st.integers(0, 7), st.integers(1, 40),
    ),
    min_size=1, max_size=4,
)  # fmt: skip


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def damage(folder, done):
    """Each: what, to which file, where in it, which bit, how many bytes."""
    for what, number, share, bit, count in done:
        paths = sorted(path for path in folder.iterdir() if path.is_file())
        if not paths:
            return
        path = paths[number % len(paths)]
        content = bytearray(path.read_bytes())
        at = int(share * len(content))
        if what == "cut":
            content = content[:at]
        elif what == "flip" and content:
            content[at] ^= 1 << bit
        elif what == "insert":
            content[at:at] = bytes(range(count))
        elif what == "zero":
            content[at : at + count] = bytes(len(content[at : at + count]))
        if what == "remove":
            path.unlink()
        elif what == "move":
            path.rename(path.with_name(f"{path.name}.moved"))
        elif what == "swap":
            other = paths[(number + 1) % len(paths)]
            mine, theirs = path.read_bytes(), other.read_bytes()
            path.write_bytes(theirs)
            other.write_bytes(mine)
        else:
            path.write_bytes(bytes(content))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "checkpoint-3"
    folder.mkdir()
    drawn = np.random.default_rng(0)
    for name in FILES[:2]:
        (folder / name).write_bytes(drawn.bytes(300))
    write_text(folder / FILES[2], json.dumps({"global_step": 3, "log_history": [{"loss": 0.5}]}))
    commit(folder, 3)
    return folder


@cases(60)
@given(done=ways)
def test_a_damaged_checkpoint_does_not_count(checkpoint, tmp_path_factory, done):
    folder = tmp_path_factory.mktemp("damaged") / "checkpoint-3"
    shutil.copytree(checkpoint, folder)
    before = contents(folder)
    damage(folder, done)
    after = contents(folder)
    harmless = {name: after.get(name) for name in before} == before
    found = problem(folder)
    assert (found is None) == harmless, (done, found)
    assert found is None or "\n" not in found
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def rows():
    drawn = np.random.default_rng(1)
    return {i: drawn.normal(size=(4, 3)).astype("f4") for i in range(3)}


@cases(20)
@given(done=ways)
def test_a_damaged_store_gives_back_what_was_stored_or_nothing(tmp_path_factory, rows, done):
    folder = tmp_path_factory.mktemp("store")
    store = Store(folder, "k" * 32)
    meant = {}
    for number, values in rows.items():
        ids = np.arange(4) + 10 * number
        store.write(ids, {"logits": values})
        meant |= dict(zip(ids.tolist(), values, strict=True))
    damage(folder, done)
    again = Store(folder, "k" * 32)
    for shard in again.shards():
        for row, values in zip(shard.ids.tolist(), shard.fields["logits"], strict=True):
            assert np.array_equal(meant[row], values), done
    shutil.rmtree(folder)

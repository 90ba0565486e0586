"""A checkpoint whose files are not what was saved is never gone on from in silence, whatever was done to it."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from faulty import STEPS, kept, run, weights

from hf_distill.errors import ConfigurationError, CorruptStateError, UnsafeFileError
from hf_distill.training.commits import MANIFEST, checkpoints, problem, rotate
from hf_distill.training.resuming import find_checkpoint

FLIPS = 1_000


@pytest.fixture(scope="module")
def whole(tmp_path_factory, bert_tokenizer):
    """The run without any fault: its folder, with a checkpoint of every step, and its weights."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = run(folder, bert_tokenizer)
    trainer.train()
    return folder, weights(trainer)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path):
    path.write_bytes(b"")


def longer(path):
    path.write_bytes(path.read_bytes() + b"\0")


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) * 6 // 10] ^= 4
    path.write_bytes(content)


def zeroed(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3] + bytes(len(content) - len(content) // 3))


def removed(path):
    path.unlink()


def of_the_step_before(path):
    before = path.parent.parent / f"checkpoint-{STEPS - 2}" / path.name
    path.write_bytes(
        before.read_bytes()[:-1] + b"\xff"
        if before.read_bytes() == path.read_bytes()
        else before.read_bytes()
    )


def a_folder(path):
    path.unlink()
    path.mkdir()


def dangling(path):
    path.unlink()
    path.symlink_to("nowhere")


def other_manifest(path):
    shutil.copy(path.parent.parent / f"checkpoint-{STEPS - 2}" / MANIFEST, path)


def without_an_entry(path):
    content = json.loads(path.read_text())
    content["files"].pop("optimizer.pt")
    path.write_text(json.dumps(content))


def beside_it(name):
    def added(path):
        (path.parent / name).write_bytes(b"what nobody saved")

    return added


def only_config(path):
    for other in path.parent.iterdir():
        if other.name != "config.json":
            other.unlink()


def everything(path):
    for other in path.parent.iterdir():
        other.unlink()


DAMAGE = {
    "weights cut": (cut, "model.safetensors"), "weights missing": (removed, "model.safetensors"),
    "weights flipped": (flipped, "model.safetensors"), "weights zeroed": (zeroed, "model.safetensors"),
    "weights of another step": (of_the_step_before, "model.safetensors"), "weights dangling": (dangling, "model.safetensors"),
    "optimizer cut": (cut, "optimizer.pt"), "optimizer missing": (removed, "optimizer.pt"),
    "optimizer flipped": (flipped, "optimizer.pt"), "optimizer of another step": (of_the_step_before, "optimizer.pt"),
    "optimizer a folder": (a_folder, "optimizer.pt"), "schedule missing": (removed, "scheduler.pt"),
    "random state emptied": (emptied, "rng_state.pth"), "random state missing": (removed, "rng_state.pth"),
    "state of the run flipped": (flipped, "run_state.json"), "trainer's state missing": (removed, "trainer_state.json"),
    "trainer's state longer": (longer, "trainer_state.json"), "config missing": (removed, "config.json"),
    "projections missing": (removed, "_projections.safetensors"), "fusion longer": (longer, "fusion.json"),
    "arguments flipped": (flipped, "training_args.bin"), "manifest missing": (removed, MANIFEST),
    "manifest cut": (cut, MANIFEST), "manifest emptied": (emptied, MANIFEST),
    "manifest of another step": (other_manifest, MANIFEST), "manifest without a file": (without_an_entry, MANIFEST),
    "another's weights": (beside_it("pytorch_model.bin"), MANIFEST), "an adapter": (beside_it("adapter_model.safetensors"), MANIFEST),
    "interrupted early": (only_config, MANIFEST), "an empty folder": (everything, MANIFEST),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_every_kind_of_damage_is_found_and_named(whole, tmp_path, capsys, kind):
    for step in (STEPS - 2, STEPS - 1):
        shutil.copytree(whole[0] / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    last = tmp_path / f"checkpoint-{STEPS - 1}"
    damage, name = DAMAGE[kind]
    damage(last / name)
    assert problem(last) is not None
    assert find_checkpoint(True, tmp_path) == tmp_path / f"checkpoint-{STEPS - 2}"
    said = capsys.readouterr().out
    assert f"{last} is passed over: {problem(last)}." in said and f"goes on from {tmp_path}" in said
    with pytest.raises(CorruptStateError, match="is not gone on from") as refused:
        find_checkpoint(str(last), tmp_path)
    assert refused.value.exit_code == 5 and "--unverified" in str(refused.value)


def test_every_flipped_bit_is_found(whole, tmp_path):
    """Drawn over all bytes of all files, and at least eight in each file."""
    folder = tmp_path / f"checkpoint-{STEPS - 1}"
    shutil.copytree(whole[0] / folder.name, folder)
    draw = random.Random(12)
    sizes = {path: path.stat().st_size for path in sorted(folder.iterdir())}
    every = [path for path in sizes for _ in range(8)]
    picked = [*every, *draw.choices(list(sizes), list(sizes.values()), k=FLIPS - len(every))]
    assert problem(folder) is None
    for path in picked:
        at, bit = draw.randrange(sizes[path]), 1 << draw.randrange(8)
        with path.open("r+b") as file:
            file.seek(at)
            (before,) = file.read(1)
            file.seek(at)
            file.write(bytes([before ^ bit]))
            file.flush()
            assert problem(folder) is not None, (path.name, at, bit)
            file.seek(at)
            file.write(bytes([before]))
    assert problem(folder) is None


@pytest.mark.parametrize("kind", ["interrupted early", "weights flipped", "optimizer missing"])
def test_a_run_goes_on_from_the_newest_that_is_whole_to_the_bit(
    whole, tmp_path, bert_tokenizer, capsys, kind
):
    folder, meant = whole
    for step in (STEPS - 2, STEPS - 1):
        shutil.copytree(folder / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    damage, name = DAMAGE[kind]
    damage(tmp_path / f"checkpoint-{STEPS - 1}" / name)
    trainer = run(tmp_path, bert_tokenizer)
    trainer.train(resume_from_checkpoint=True)
    assert "is passed over" in capsys.readouterr().out
    assert kept(weights(trainer), meant)
    # What was damaged is written anew.
    assert [problem(path) for path in checkpoints(tmp_path)] == [None] * 3


def test_none_at_all_and_none_that_counts(whole, tmp_path):
    with pytest.raises(ConfigurationError, match="there is no checkpoint in"):
        find_checkpoint(True, tmp_path / "empty")
    with pytest.raises(ConfigurationError, match="is no checkpoint, it has no trainer_state.json"):
        find_checkpoint(str(tmp_path), tmp_path)
    with pytest.raises(ConfigurationError, match="only where it is named"):
        find_checkpoint(True, whole[0], unverified=True)
    assert find_checkpoint(None, tmp_path) is None and find_checkpoint(False, tmp_path) is None
    for step in (1, 2):
        shutil.copytree(whole[0] / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-1" / "optimizer.pt").unlink()
    (tmp_path / "checkpoint-2" / MANIFEST).unlink()
    with pytest.raises(
        CorruptStateError,
        match=r"checkpoint-2: it has no checkpoint.json.*checkpoint-1: optimizer.pt is missing",
    ):
        find_checkpoint(True, tmp_path)


def test_one_without_a_manifest_needs_its_name_and_permission(whole, tmp_path, bert_tokenizer, capsys):
    folder, meant = whole
    former = tmp_path / "checkpoint-2"
    shutil.copytree(folder / "checkpoint-2", former)
    (former / MANIFEST).unlink()
    trainer = run(tmp_path / "out", bert_tokenizer)
    with pytest.raises(
        CorruptStateError, match=r"made by transformers' own Trainer or by a version of hf_distill before"
    ):
        trainer.train(resume_from_checkpoint=str(former))
    trainer.train(resume_from_checkpoint=str(former), unverified=True)
    assert f"{former} is gone on from as it is, though it has no {MANIFEST}" in capsys.readouterr().out
    assert kept(weights(trainer), meant)


class Payload:
    """What a pickle of somebody else could hold."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_nothing_is_unpickled_beyond_tensors(whole, tmp_path, bert_tokenizer, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    hostile = tmp_path / "checkpoint-2"
    shutil.copytree(whole[0] / "checkpoint-2", hostile)
    torch.save({"state": Payload()}, hostile / name)
    torch.save(Payload(), hostile / "training_args.bin")
    with pytest.raises(UnsafeFileError, match="more than tensors and numbers") as refused:
        run(tmp_path / "out", bert_tokenizer).train(resume_from_checkpoint=str(hostile), unverified=True)
    assert refused.value.exit_code == 4 and not Path("ran").exists()


def test_arguments_are_never_unpickled(whole, tmp_path, bert_tokenizer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hostile = tmp_path / "checkpoint-2"
    shutil.copytree(whole[0] / "checkpoint-2", hostile)
    torch.save(Payload(), hostile / "training_args.bin")
    trainer = run(tmp_path / "out", bert_tokenizer)
    trainer.train(resume_from_checkpoint=str(hostile), unverified=True)
    assert kept(weights(trainer), whole[1]) and not Path("ran").exists()


def test_rotation_keeps_what_counts(whole, tmp_path):
    for step in (1, 2, 3, 4):
        shutil.copytree(whole[0] / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
        os.utime(tmp_path / f"checkpoint-{step}", (100 - step, 100 - step))  # times say nothing
    (tmp_path / "checkpoint-4" / MANIFEST).unlink()
    rotate(tmp_path, None, [])
    assert len(checkpoints(tmp_path)) == 4
    rotate(tmp_path, 3, [tmp_path / "checkpoint-3"])
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-2", "checkpoint-1"]
    rotate(tmp_path, 1, [tmp_path / "checkpoint-3", tmp_path / "checkpoint-1"])
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-1"]


def test_a_best_checkpoint_that_is_damaged_is_not_loaded(tmp_path, bert_tokenizer):
    best = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
    }
    first = run(tmp_path, bert_tokenizer, greater_is_better=True, **best)
    first.train()
    state = json.loads((tmp_path / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    found = Path(state["best_model_checkpoint"])
    assert found.name != f"checkpoint-{STEPS}"
    flipped(found / "model.safetensors")
    with pytest.raises(CorruptStateError, match="the best checkpoint until then"):
        find_checkpoint(str(tmp_path / f"checkpoint-{STEPS}"), tmp_path, best=True)
    assert find_checkpoint(str(tmp_path / f"checkpoint-{STEPS}"), tmp_path) is not None
    with pytest.raises(CorruptStateError, match="is not what was saved"):
        first._load_best_model()

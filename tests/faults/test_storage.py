"""Storage that takes no more: one sentence, exit code 5, the checkpoints before it whole, and a run that goes on later."""

from __future__ import annotations

import builtins
import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from faulty import kept, run, weights

from hf_distill.errors import StorageError
from hf_distill.files import trouble
from hf_distill.training.commits import checkpoints, problem


@pytest.fixture(scope="module")
def meant(tmp_path_factory, bert_tokenizer):
    trainer = run(tmp_path_factory.mktemp("whole"), bert_tokenizer)
    trainer.train()
    return weights(trainer)


class Full:
    """Refuses the n-th thing that is written into a folder, as a full, used-up or read-only disk does."""

    def __init__(self, monkeypatch, folder: Path, number: int, begin=lambda: True):
        self.folder, self.number, self.begin = str(folder), number, begin
        self.count, self.left = 0, None
        import transformers.modeling_utils as modeling

        for owner, name, where in ((torch, "save", 1), (modeling, "safe_save_file", 1), (builtins, "open", 0), (os, "fsync", 0),
                                   (os, "replace", 1), (os, "mkdir", 0)):  # fmt: skip
            monkeypatch.setattr(owner, name, self.guarded(name, getattr(owner, name), where))

    def guarded(self, name, real, where):
        def call(*args, **options):
            path = args[where] if len(args) > where else None
            writes = name != "open" or (len(args) > 1 and set(str(args[1])) & set("wax"))
            inside = name == "fsync" or (isinstance(path, (str, Path)) and str(path).startswith(self.folder))
            if self.left is not None and writes and inside and self.begin():
                if self.left == 0:
                    raise self.refusal(name, path)
                self.left -= 1
            self.count += bool(writes and inside and self.begin())
            return real(*args, **options)

        return call

    def refusal(self, name, path):
        text = os.strerror(self.number)
        if name == "save":  # torch's writer tells no number; what it tries next is refused like everything
            return RuntimeError(
                "[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file data/0"
            )
        if name == "safe_save_file":
            from safetensors import SafetensorError

            return SafetensorError(f"Error while serializing: I/O error: {text} (os error {self.number})")
        return OSError(self.number, text, None if isinstance(path, int) else str(path))


WHY = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your quota is used up",
    errno.EROFS: "it is read-only",
}


@pytest.fixture
def refused_at(monkeypatch, tmp_path, bert_tokenizer, meant):
    """Refuses one point of writing; checks all that is promised, and returns how many points there are."""

    def attempt(number: int, point: int | None, out: Path) -> int:
        trainer = run(out, bert_tokenizer)
        with monkeypatch.context() as patches:
            # While the third step's checkpoint is saved.
            full = Full(patches, out, number, lambda: trainer.state.global_step >= 3 and trainer._saving_now)
            save = trainer._save_checkpoint
            trainer._saving_now = False

            def saving(*args, **options):
                trainer._saving_now = True
                try:
                    return save(*args, **options)
                finally:
                    trainer._saving_now = False

            patches.setattr(trainer, "_save_checkpoint", saving)
            if point is None:
                trainer.args.max_steps = 3
                trainer.train()
                return full.count
            full.left = point
            with pytest.raises(StorageError) as refused:
                trainer.train()
        said = str(refused.value)
        assert refused.value.exit_code == 5
        assert f"{out / 'checkpoint-3'} cannot be saved, since " in said and "bytes and" in said, said
        assert WHY[number] in said or "took only a part" in said, (point, said)
        assert f"{out / 'checkpoint-2'} is whole" in said and "--resume" in said
        assert [problem(path) for path in checkpoints(out)] == [None, None]
        again = run(out, bert_tokenizer)
        again.train(resume_from_checkpoint=True)
        assert kept(weights(again), meant)
        return point

    return attempt


def test_a_checkpoint_that_finds_no_room(refused_at, tmp_path):
    total = refused_at(errno.ENOSPC, None, tmp_path / "counted")
    assert total > 20
    for number, point in zip(WHY, (0, total // 2, total - 1), strict=True):
        refused_at(number, point, tmp_path / f"out-{number}")


@pytest.mark.parametrize("strategy", ["no", "steps"])
def test_a_finished_student_that_finds_no_room(tmp_path, bert_tokenizer, monkeypatch, strategy):
    out = tmp_path / "out"
    trainer = run(out, bert_tokenizer, save_strategy=strategy, max_steps=2)
    trainer.train()
    with monkeypatch.context() as patches:
        Full(patches, out, errno.ENOSPC).left = 0
        with pytest.raises(StorageError, match="cannot be saved, since the disk is full") as refused:
            trainer.save_model()
    kept = "no checkpoint was saved before" if strategy == "no" else f"{out / 'checkpoint-2'} is whole"
    assert kept in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize("number", WHY)
def test_no_room_at_any_point_of_a_save(refused_at, tmp_path, number):
    total = refused_at(number, None, tmp_path / "counted")
    for point in range(0, total, max(1, total // 14)):
        refused_at(number, point, tmp_path / f"out-{point}")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of half a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    made = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)], capture_output=True
    )
    if not made or made.returncode:
        pytest.skip("needs the right to mount a tmpfs; the tests above refuse single writes in its place")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_disk_that_is_really_full(small_disk, bert_tokenizer, meant):
    """Everything that writes meets it: safetensors, torch, Python."""
    ballast = small_disk / "ballast"
    seen, resumed = 0, False
    for free in range(8_192, 400_000, 32_768):
        out = small_disk / "out"
        stats = os.statvfs(small_disk)
        ballast.write_bytes(bytes(max(0, stats.f_bavail * stats.f_frsize - free)))
        try:
            run(out, bert_tokenizer).train()
        except StorageError as error:
            assert "the disk is full" in str(error) or "took only a part" in str(error)
            seen += 1
        else:
            break
        finally:
            ballast.unlink()
        whole = checkpoints(out)
        assert all(problem(path) is None for path in whole)
        if whole and not resumed:
            again = run(out, bert_tokenizer)
            again.train(resume_from_checkpoint=True)
            assert kept(weights(again), meant)
            resumed = True
        shutil.rmtree(out, ignore_errors=True)
    assert seen > 2 and resumed


@pytest.mark.slow
def test_the_order_of_a_commit_as_the_system_sees_it(tmp_path):
    """Each file synced before the manifest takes its name, and the folder after that; once more with a sync that is refused."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("needs strace; the tests above watch the calls of Python in its place")
    folder = tmp_path / "checkpoint-3"
    program = (
        "import sys; from pathlib import Path; from hf_distill.training.commits import commit\n"
        "folder = Path(sys.argv[1]); folder.mkdir(exist_ok=True)\n"
        "(folder / 'model.safetensors').write_bytes(bytes(99)); (folder / 'optimizer.pt').write_bytes(bytes(9))\n"
        "commit(folder, 3)"
    )

    def traced(*options):
        log = tmp_path / "trace"
        trace = [strace, "-f", "-y", "-e", "trace=fsync,rename,renameat,renameat2", *options, "-o", str(log)]
        done = subprocess.run(
            [*trace, sys.executable, "-c", program, str(folder)],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}, capture_output=True, text=True,
        )  # fmt: skip
        if "ptrace" in done.stderr and not log.exists():
            pytest.skip("may not trace; the tests above watch the calls of Python in its place")
        return done, [line for line in log.read_text().splitlines() if str(tmp_path) in line]

    done, calls = traced()
    assert done.returncode == 0, done.stderr
    at = {name: next(i for i, line in enumerate(calls) if part in line) for name, part in (
        ("weights", "model.safetensors>"), ("optimizer", "optimizer.pt>"), ("manifest", "checkpoint.json."), ("rename", "rename"),
    )}  # fmt: skip
    assert max(at["weights"], at["optimizer"]) < at["manifest"] < at["rename"], calls
    assert "checkpoint.json" in calls[at["rename"]]
    after = [line for line in calls[at["rename"] + 1 :] if "fsync" in line]
    assert f"<{folder}>" in after[0] and f"<{tmp_path}>" in after[1], calls
    assert problem(folder) is None
    shutil.rmtree(folder)
    done, _ = traced("-e", "inject=fsync:error=ENOSPC:when=2")
    assert done.returncode != 0 and "No space left" in done.stderr and problem(folder) is not None


def test_what_says_nothing_of_storage(tmp_path):
    assert trouble(OSError(errno.ENOENT, "no"), tmp_path) is None
    assert trouble(RuntimeError("CUDA out of memory"), tmp_path) is None
    assert trouble(RuntimeError("x (os error 28)"), tmp_path) == "the disk is full"

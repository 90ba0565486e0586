"""Memory stays flat and time per row constant: a cache built and a student trained on ever more rows.

Rows lie on disk; two teachers of one tokenizer and a student, each of one layer and width 32. Every measurement is a
process of its own: the cache from the rows, a training from it, both from a stream, and both in two processes. Memory is the
peak of what is not backed by files (RssAnon): pages of mapped files are the system's to take back. Time is from the first
row to the last, without imports, as processor time of all processes and by the clock.

``--rows 10000 100000 1000000`` are the sizes; `docs/scaling.md` sets the figures beside a cost model.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SHORTEST, LONGEST, BATCH, WORDS = 6, 14, 1024, 2000
# What is done, from what, in how many processes.
CASES = (
    ("build", "rows", 1), ("train", "rows", 1), ("build", "stream", 1), ("train", "stream", 1),
    ("build", "rows", 2), ("train", "rows", 2),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--sources", nargs="+", default=["rows", "stream"])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--work", choices=["build", "train"])
    parser.add_argument("--source", choices=["rows", "stream"])
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if options.work:
        return play(options)
    found: list[dict[str, Any]] = []
    for count in options.rows:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            os.environ["HF_DATASETS_CACHE"] = str(folder / "prepared")
            make(folder, count)
            for work, source, processes in CASES:
                if source not in options.sources or processes not in options.processes:
                    continue
                if work == "build":
                    shutil.rmtree(folder / "cache", ignore_errors=True)
                figures = measured(work, source, processes, folder, options.device)
                found.append(
                    {"work": work, "source": source, "processes": processes, "rows": count, **figures}
                )
                print(json.dumps(found[-1]), flush=True)
                shutil.rmtree(folder / "prepared", ignore_errors=True)
    print(table(found))


def make(folder: Path, count: int) -> None:
    """Rows and models on disk."""
    import random

    import datasets
    from setting import LABELS, TINY, make_model, make_tokenizer

    words = [f"w{i}" for i in range(WORDS)]

    def texts() -> Iterator[dict[str, Any]]:
        draw = random.Random(0)
        for _ in range(count):
            text = " ".join(draw.choices(words, k=draw.randint(SHORTEST, LONGEST) - 2))
            yield {"text": text, "label": draw.randrange(len(LABELS))}

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(LABELS))}
    )
    made = datasets.Dataset.from_generator(texts, features=features, cache_dir=str(folder / "made"))
    made.save_to_disk(str(folder / "rows"))
    shutil.rmtree(folder / "made")
    tokenizer = make_tokenizer(texts=[" ".join(words)])
    for name, seed in (("teacher-0", 100), ("teacher-1", 101), ("student", 1)):
        model = make_model(TINY, seed)
        model.resize_token_embeddings(len(tokenizer))
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def measured(work: str, source: str, processes: int, folder: Path, device: str) -> dict[str, float]:
    """What some processes took together: seconds by the clock and of processors, and the largest one's memory."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += [__file__, "--work", work, "--source", source, "--folder", str(folder), "--device", device]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    each = [json.loads(path.read_text()) for path in sorted(folder.glob("figures-*.json"))]
    for path in folder.glob("figures-*.json"):
        path.unlink()
    return {
        "seconds": max(own["seconds"] for own in each),
        "cpu_seconds": sum(own["cpu_seconds"] for own in each),
        "anonymous_mb": max(own["anonymous_mb"] for own in each),
        "begins_with_mb": max(own["begins_with_mb"] for own in each),
    }


@contextlib.contextmanager
def watched(figures: dict[str, float]) -> Iterator[None]:
    """Time, processor time, and the peak of anonymous memory of a block."""
    peak, ended = [anonymous_mb()], threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            peak.append(max(peak.pop(), anonymous_mb()))

    begins = peak[0]
    thread = threading.Thread(target=watch)
    thread.start()
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield
    finally:
        taken = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
        ended.set()
        thread.join()
        figures |= {**taken, "anonymous_mb": peak[0], "begins_with_mb": begins}


def anonymous_mb() -> float:
    """What this process holds that no file backs."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1000
    raise SystemExit("SKIPPED: no RssAnon in /proc/self/status; this one needs Linux.")


def play(options: argparse.Namespace) -> None:
    """One process of a case."""
    import datasets
    import torch
    from accelerate import PartialState
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from hf_distill import DistillationArguments, MultiTeacherDistillationTrainer
    from hf_distill.teachers.cache.build import cache_teacher_outputs

    torch.set_num_threads(1)
    folder, figures = options.folder, {}
    rows = datasets.load_from_disk(str(folder / "rows"))
    count = len(rows)
    if options.source == "stream":
        rows = rows.to_iterable_dataset(num_shards=4)
    teachers = [str(folder / f"teacher-{k}") for k in range(2)]
    state = PartialState(cpu=options.device == "cpu")
    # Imports, loading and first use cost memory that has nothing to do with the rows.
    model = AutoModelForSequenceClassification.from_pretrained(folder / "student")
    tokenizer = AutoTokenizer.from_pretrained(folder / "student")
    with watched(figures):
        if options.work == "build":
            cache_teacher_outputs(
                teachers, rows, cache_dir=folder / "cache", shard_rows=16384, device=state.device
            )
        else:
            trainer = MultiTeacherDistillationTrainer(
                model=model,
                args=DistillationArguments(
                    output_dir=str(folder / "run"),
                    max_steps=-(-count // (BATCH * state.num_processes)),
                    per_device_train_batch_size=BATCH,
                    save_strategy="no",
                    report_to="none",
                    disable_tqdm=True,
                    use_cpu=options.device == "cpu",
                    dataloader_pin_memory=options.device == "cuda",
                ),
                train_dataset=rows,
                processing_class=tokenizer,
                teachers=teachers,
                cache_dir=folder / "cache",
            )
            trainer.train()
    (folder / f"figures-{state.process_index}.json").write_text(json.dumps(figures))


def table(found: list[dict[str, Any]]) -> str:
    """The figures, and each against the size before it."""
    from hf_distill.markdown import markdown_table

    lines = []
    for case in found:
        before = [
            other
            for other in found
            if other["rows"] < case["rows"]
            and all(other[key] == case[key] for key in ("work", "source", "processes"))
        ]
        ratios = ["–", "–"]
        if before:
            last = before[-1]
            ratios = [
                f"{case['cpu_seconds'] / case['rows'] / (last['cpu_seconds'] / last['rows']):.2f}",
                f"{case['anonymous_mb'] / last['anonymous_mb']:.2f}",
            ]
        lines.append(
            [
                f"{case['work']} from {case['source']}",
                str(case["processes"]),
                f"{case['rows']:,}",
                f"{case['seconds']:.1f}",
                f"{1e6 * case['cpu_seconds'] / case['rows']:.0f}",
                ratios[0],
                f"{case['anonymous_mb']:.0f}",
                ratios[1],
            ]
        )
    header = [
        "what",
        "processes",
        "rows",
        "s",
        "µs of CPU per row",
        "÷ size before",
        "anonymous MB",
        "÷ size before",
    ]
    return "\n" + markdown_table(header, lines)


if __name__ == "__main__":
    main()

"""With a cache, distilling needs the memory of fine-tuning.

Peak memory of a process that trains with three cached teachers, given as folders and never loaded before, against one
that fine-tunes the same student with `transformers.Trainer`: resident size on the CPU, `max_memory_allocated` on CUDA.
Every measurement is a process of its own; another one builds the cache.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROLES = ("cached", "plain")


def main() -> None:
    if os.environ.get("BENCHMARK_ROLE"):
        return play(os.environ["BENCHMARK_ROLE"], Path(os.environ["BENCHMARK_FOLDER"]))
    from measure import Claim, arguments, show

    options = arguments(__doc__)
    amounts: dict[str, list[float]] = {}
    claims = []
    for size in ("small", "base"):
        with tempfile.TemporaryDirectory() as folder:
            in_process(f"build {size}", folder)
            peaks: dict[str, list[float]] = {f"{role}, {size} teachers": [] for role in ROLES}
            for _ in range(options.rounds):
                for role in ROLES:
                    peaks[f"{role}, {size} teachers"].append(float(in_process(f"{role} {size}", folder)))
        amounts |= peaks
        ratios = [cached / plain for cached, plain in zip(*peaks.values(), strict=True)]
        claims.append(Claim(" ÷ ".join(peaks), ratios, 1.05))
    show(
        "Peak memory of cached training against plain fine-tuning",
        claims,
        options,
        amounts=amounts,
        unit="MB",
    )


def in_process(role: str, folder: str) -> str:
    """What a fresh process with a role prints last."""
    environment = os.environ | {"BENCHMARK_ROLE": role, "BENCHMARK_FOLDER": folder}
    command = [sys.executable, *sys.argv]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip().rpartition("\n")[2]


def play(role: str, folder: Path) -> None:
    """Build the teachers and their cache, or train and print the peak in MB."""
    from measure import arguments
    from setting import (
        BASE,
        SMALL,
        make_rows,
        make_teachers,
        make_tokenizer,
        our_trainer,
        plain_trainer,
        shapes,
    )

    options = arguments(__doc__)
    role, size = role.split()
    rows = make_rows(64 if options.quick else 192, shapes(options.device))
    tokenizer = make_tokenizer()
    teachers = [str(folder / f"teacher-{k}") for k in range(3)]
    if role == "build":
        from hf_distill.teachers.cache.build import cache_teacher_outputs

        for teacher in make_teachers(3, {"small": SMALL, "base": BASE}[size], [tokenizer]):
            teacher.model.save_pretrained(folder / teacher.name)
            tokenizer.save_pretrained(folder / teacher.name)
        cache_teacher_outputs(teachers, rows, cache_dir=folder / "cache")
        return
    if role == "plain":
        trainer = plain_trainer(options, folder, rows, tokenizer)
    else:
        trainer = our_trainer(options, folder, rows, tokenizer, teachers, cache_dir=folder / "cache")
    trainer.train()
    print(peak_bytes(options) / 1e6)


def peak_bytes(options: argparse.Namespace) -> int:
    """Of this process: allocated on the GPU, or resident."""
    if options.device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    # Not getrusage: under Linux a child begins with its parent's peak there.
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("SKIPPED: no VmHWM in /proc/self/status; this one needs Linux.")


if __name__ == "__main__":
    main()

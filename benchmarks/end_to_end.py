"""Three epochs with three teachers, from raw text to a saved student, the building of the cache included.

Ours from a cache and live, a plain PyTorch loop with the teachers in it, and TextBrewer's MultiTeacherDistiller online
and with its own cache of logits, which keeps finished batches in memory and never mixes their rows again. Beside them
the floor: three epochs of the student's steps plus one pass of each teacher in order of length, both on ready batches; and
three epochs of `transformers.Trainer` without teachers.
Everyone gets the same models, rows, batch size, optimizer, schedule and one tokenizer, and saves the student once.
"""

from __future__ import annotations

import importlib.util
import itertools
import random
import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
from measure import Claim, arguments, idle, interleaved, show
from setting import (
    budgeted,
    make_model,
    make_rows,
    make_teachers,
    make_tokenizer,
    our_trainer,
    plain_trainer,
    ready_batches,
    run_teacher,
    shapes,
    student_steps,
    teacher_batches,
)
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import (
    BertForSequenceClassification,
    BertTokenizer,
    DataCollatorWithPadding,
    get_linear_schedule_with_warmup,
)

from hf_distill import Teacher

EPOCHS = 3
T = 2.0


class Contest:
    """The same task for everyone: each method does all of it, in a folder of its own."""

    def __init__(self, options: Namespace, folder: Path) -> None:
        shape = shapes(options.device)
        self.options = options
        self.rows: datasets.Dataset = make_rows(96 if options.quick else 320, shape)
        self.tokenizer: BertTokenizer = make_tokenizer()
        self.teachers: list[Teacher] = make_teachers(3, shape.teacher, [self.tokenizer])
        for teacher in self.teachers:
            teacher.to(torch.device(options.device))
        texts, device = self.rows["text"][:], options.device
        self._ready = {
            teacher: teacher_batches(teacher, texts, budgeted(teacher, texts, device), device)
            for teacher in self.teachers
        }
        self._ready_for_student = ready_batches(self.tokenizer, self.rows, shape.batch, device)
        self._folders = (folder / str(i) for i in itertools.count())

    def folder(self) -> Path:
        folder = next(self._folders)
        folder.mkdir()
        return folder

    def ours(self, *, cached: bool) -> None:
        folder = self.folder()
        trainer = our_trainer(
            self.options, folder, self.rows, self.tokenizer, self.teachers,
            cache_dir=folder / "cache" if cached else None, epochs=EPOCHS,
        )  # fmt: skip
        trainer.train()
        trainer.save_model(folder)

    def fine_tuning(self) -> None:
        folder = self.folder()
        trainer = plain_trainer(self.options, folder, self.rows, self.tokenizer, epochs=EPOCHS)
        trainer.train()
        trainer.save_model(folder)

    def teacher_pass(self) -> None:
        for teacher, batches in self._ready.items():
            run_teacher(teacher, batches, self.options.device)

    def student_alone(self) -> None:
        student_steps(
            shapes(self.options.device).student, self._ready_for_student, self.options.device, EPOCHS
        )

    def hand_loop(self) -> None:
        student, loader, optimizer, schedule = self._by_hand()
        for _ in range(EPOCHS):
            for batch in loader:
                batch = {key: value.to(self.options.device) for key, value in batch.items()}
                labels = batch.pop("labels")
                with self._autocast():
                    with torch.inference_mode():
                        heard = [teacher.model(**batch).logits.float() for teacher in self.teachers]
                    logits = student(**batch).logits
                target = torch.stack([F.softmax(each.clone() / T, dim=-1) for each in heard]).mean(0)
                told = F.kl_div(F.log_softmax(logits.float() / T, dim=-1), target, reduction="batchmean")
                loss = 0.5 * T**2 * told + 0.5 * F.cross_entropy(logits.float(), labels)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
        student.save_pretrained(self.folder())

    def textbrewer(self, *, cached: bool) -> None:
        from textbrewer import DistillationConfig, MultiTeacherDistiller, TrainingConfig

        student, loader, optimizer, schedule = self._by_hand()
        distiller = MultiTeacherDistiller(
            # ckpt_epoch_frequency: it saves the student with the last epoch alone
            TrainingConfig(
                output_dir=str(self.folder()), device=self.options.device, ckpt_epoch_frequency=EPOCHS
            ),
            DistillationConfig(
                temperature=T, kd_loss_weight=0.5, hard_label_weight=0.5, is_caching_logits=cached
            ),
            [teacher.model for teacher in self.teachers],
            student,
            adaptor_T=lambda batch, outputs: {"logits": outputs.logits},
            adaptor_S=lambda batch, outputs: {"logits": outputs.logits, "losses": outputs.loss},
        )
        with distiller, self._autocast():
            distiller.train(optimizer, loader, EPOCHS, scheduler=schedule, max_grad_norm=1.0)

    def _by_hand(self) -> tuple[BertForSequenceClassification, DataLoader, torch.optim.Optimizer, Any]:
        """What one writes without a trainer: rows tokenized once, padded per batch."""
        tokens = self.tokenizer(list(self.rows["text"]), truncation=True)
        rows = [
            {**{key: values[i] for key, values in tokens.items()}, "labels": label}
            for i, label in enumerate(self.rows["label"])
        ]
        pad = DataCollatorWithPadding(self.tokenizer)
        loader = DataLoader(
            rows, batch_size=shapes(self.options.device).batch, collate_fn=lambda batch: dict(pad(batch))
        )
        student = make_model(shapes(self.options.device).student, seed=1).to(self.options.device)
        optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
        schedule = get_linear_schedule_with_warmup(optimizer, 0, EPOCHS * len(loader))
        return student.train(), loader, optimizer, schedule

    def _autocast(self) -> torch.autocast:
        device = self.options.device
        return torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda")


def main() -> None:
    options = arguments(__doc__)
    random.seed(0)  # TextBrewer shuffles its batches with it
    with tempfile.TemporaryDirectory() as name:
        contest = Contest(options, Path(name))
        actions: dict[str, Callable[[], None]] = {
            "ours, cached": lambda: contest.ours(cached=True),
            "ours, live": lambda: contest.ours(cached=False),
            "plain loop": contest.hand_loop,
            "fine-tuning": contest.fine_tuning,
            "student steps": contest.student_alone,
            "teacher pass": contest.teacher_pass,
        }
        if importlib.util.find_spec("textbrewer"):
            actions["TextBrewer"] = lambda: contest.textbrewer(cached=False)
            actions["TextBrewer, cached"] = lambda: contest.textbrewer(cached=True)
        else:
            print(
                "SKIPPED: TextBrewer is not installed (make bench does, or pip install 'hf-distill[bench]')."
            )
        times = interleaved(actions, options)
        idling = idle(actions, options)
    bounds = {"TextBrewer": 0.386, "TextBrewer, cached": 0.836, "plain loop": None, "ours, live": None}
    claims = [Claim.of(times, "ours, cached", name, bound) for name, bound in bounds.items() if name in times]
    claims.append(Claim.of(times, "ours, cached", ["student steps", "teacher pass"], 1.05))
    claims.append(Claim.of(times, "ours, cached", ["fine-tuning", "teacher pass"]))
    claims += idling
    show("Three epochs with three teachers, cache included", claims, options, times=times)


if __name__ == "__main__":
    main()

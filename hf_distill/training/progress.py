"""What a training says while it runs: a table of the losses over a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from typing import Any

from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ..evaluation.formats import duration

# Said once at the end of a training, or no loss.
_LEFT_OUT = {"total_flos", "epoch", "step"}
_HEADER_EVERY = 25
_SHORT = {
    "learning_rate": "lr",
    "teacher_disagreement": "disagreement",
    "loss_task": "task",
    "loss_distill": "distill",
}


def show_losses(trainer: Trainer, name: str = "") -> None:
    """Let a trainer show its losses as a table with a bar, or as plain lines where there is no terminal.

    Only the first process says anything.

    Args:
        trainer: Before it trains.
        name: What is trained, for the bar.
    """
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    terminal = sys.stdout.isatty() and sys.stderr.isatty() and not trainer.args.disable_tqdm
    trainer.add_callback(LossTable(name) if terminal else LossLines(name))


class LossTable(ProgressCallback):
    """A bar with the time left, and above it a line of the table for every log.

    Args:
        name: What is trained.

    Example:
        >>> table = LossTable("student")
        >>> for line in table.lines(50, {"loss": 2.7483, "grad_norm": 0.52, "loss_task": 1.7668, "epoch": 0.3}):
        ...     print(line)
         step  epoch    loss  grad_norm    task
           50   0.30  2.7483     0.5200  1.7668
        >>> print(*table.lines(100, {"eval_loss": 1.1, "eval_accuracy": 0.6, "epoch": 0.6}))
          100   0.60  validation: loss 1.1000, accuracy 0.6000
    """

    def __init__(self, name: str = "") -> None:
        super().__init__()
        self.name = name
        self._columns: tuple[str, ...] = ()
        self._since = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar."""
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None and self.name:
            self.training_bar.set_description(self.name)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the lines of a log above the bar."""
        if state.is_world_process_zero and self.training_bar is not None:
            for line in self.lines(state.global_step, logs or {}):
                self.training_bar.write(line)

    def lines(self, step: int, logs: Mapping[str, Any]) -> list[str]:
        """A log as lines of the table: with a header where the columns are new, or have not been named for long.

        Args:
            step: Finished steps.
            logs: What the trainer logs.
        """
        if "train_runtime" in logs:
            return []
        begin = f"{step:>5}  {logs.get('epoch', math.nan):>5.2f}"
        if any(key.startswith("eval_") for key in logs):
            return [f"{begin}  validation: {_evaluation(logs)}"]
        columns = tuple(key for key, value in logs.items() if key not in _LEFT_OUT and _is_number(value))
        names = [_SHORT.get(key, key.removeprefix("loss_")) for key in columns]
        widths = [max(6, len(name)) for name in names]
        made = []
        if columns != self._columns or self._since >= _HEADER_EVERY:
            self._columns, self._since = columns, 0
            made = ["  ".join([" step", "epoch", *(n.rjust(w) for n, w in zip(names, widths, strict=True))])]
        self._since += 1
        cells = [_cell(logs[key]).rjust(width) for key, width in zip(columns, widths, strict=True)]
        return [*made, "  ".join([begin, *cells])]


class LossLines(TrainerCallback):
    """One plain line per log, with the time left: what a file or another program can read.

    Args:
        name: What is trained.
    """

    def __init__(self, name: str = "") -> None:
        self.name = name
        self._began = (0.0, 0)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remember the time."""
        self._began = (time.monotonic(), state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Print the line of a log."""
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        began, first = self._began
        done = state.global_step - first
        left = (time.monotonic() - began) / done * (state.max_steps - state.global_step) if done else None
        words = [self.name] if self.name else []
        words += [f"step {state.global_step} of {state.max_steps}"]
        if any(key.startswith("eval_") for key in logs):
            words += ["validation", _evaluation(logs)]
        else:
            shown = {key: value for key, value in logs.items() if key not in _LEFT_OUT and _is_number(value)}
            words += [", ".join(f"{key} {_cell(value)}" for key, value in shown.items())]
            words += [] if left is None else [f"{duration(left)} left"]
        print("; ".join(words), flush=True)


def _evaluation(logs: Mapping[str, Any]) -> str:
    speed = ("_runtime", "_per_second")
    shown = {
        k: v for k, v in logs.items() if k.startswith("eval_") and _is_number(v) and not k.endswith(speed)
    }
    return ", ".join(f"{key.removeprefix('eval_')} {_cell(value)}" for key, value in shown.items())


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _cell(value: float) -> str:
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.1e}"

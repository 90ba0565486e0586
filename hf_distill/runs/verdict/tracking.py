"""What a training is watched for: how far it is, and when its validation rows liked it best."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ...files import write_text


class StepFile(TrainerCallback):
    """Write how many steps are done into a file, at most twice a second, so that another process can show it.

    Args:
        path: The file.
        clock: Seconds.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._clock = clock
        self._last = -math.inf

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write, if it is time to."""
        if state.is_world_process_zero and self._clock() - self._last > 0.5:
            self._last = self._clock()
            write_text(self.path, f"{state.global_step}\n")


class BestWeights(TrainerCallback):
    """Keep the weights of the evaluation that was best, in memory; the earliest of equals.

    Args:
        metric: Its name without ``eval_``; the evaluation loss counts where there is no such metric.
        greater_is_better: Which way the metric counts.

    Attributes:
        weights: A state dict on the CPU; None before any evaluation that has one of both.
        step: After which optimizer step.
        seen: After which step it was evaluated last.
    """

    def __init__(self, metric: str, greater_is_better: bool) -> None:
        self.metric, self.sign = metric, 1.0 if greater_is_better else -1.0
        self.weights: dict[str, Tensor] | None = None
        self.step: int | None = None
        self.seen: int | None = None
        self._best = -math.inf

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float],
        model: Any,
        **kwargs: Any,
    ) -> None:
        """Compare an evaluation with the best so far."""
        self.seen = state.global_step
        value, sign = metrics.get(f"eval_{self.metric}"), self.sign
        if value is None:
            value, sign = metrics.get("eval_loss"), -1.0
        if value is None:  # no row has a label
            return
        value *= sign
        if value > self._best or self.weights is None:
            self._best, self.step = value, state.global_step
            self.weights = {name: part.detach().cpu().clone() for name, part in model.state_dict().items()}

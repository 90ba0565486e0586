"""How far a search is: one bar over the steps of all its trials."""

from __future__ import annotations

from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class TrialBar(TrainerCallback):
    """A bar over the steps of all trials that are left, with the time they will take; every trial has as many.

    Args:
        done: How many trials there are already.
        trials: How many there are to be.

    Attributes:
        bar: None before the first trial begins.
    """

    def __init__(self, done: int, trials: int) -> None:
        self.bar: Any = None
        self._done, self._trials, self._finished = done, trials, 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar, or name the next trial."""
        named = f"Trial {self._done + self._finished + 1} of {self._trials}"
        if self.bar is None:
            self.bar = tqdm(
                total=(self._trials - self._done) * state.max_steps,
                desc=named,
                unit="step",
                dynamic_ncols=True,
            )
        self.bar.set_description(named)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count a step."""
        self.bar.update(self._finished * state.max_steps + state.global_step - self.bar.n)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count all steps of a trial, also where it was stopped early."""
        self._finished += 1
        self.bar.update(self._finished * state.max_steps - self.bar.n)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.close()

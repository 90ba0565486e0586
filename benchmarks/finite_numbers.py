"""Watching for numbers that are not finite costs next to nothing.

With cached teachers, where a step is cheapest: the epoch ÷ the epoch less what it spends on watching, with every
micro-batch an update, and with four to an update; and an epoch against one of the same trainer that does not watch.
"""

from __future__ import annotations

import functools
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import Claim, arguments, interleaved, show
from setting import TINY, make_rows, make_teachers, make_tokenizer, our_trainer, shapes


class Unwatched:
    """In the place of `FiniteUpdates`: looks at nothing."""

    def watch(self, loss: Any, *args: Any) -> Any:
        return loss

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **options: None


class Timed:
    """`FiniteUpdates` that adds up the processor time it takes, that of what it asks of a CPU included."""

    def __init__(self, numbers: Any) -> None:
        self.numbers, self.seconds = numbers, 0.0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.numbers, name)

        def timed(*args: Any, **options: Any) -> Any:
            before = time.thread_time()
            try:
                return method(*args, **options)
            finally:
                self.seconds += time.thread_time() - before

        return timed


def train(trainer: Any, numbers: Any, accumulation: int) -> None:
    trainer.numbers, trainer.args.gradient_accumulation_steps = numbers, accumulation
    trainer.train()


def share(trainer: Any, numbers: Any, accumulation: int, rounds: int) -> list[float]:
    """The epoch ÷ the epoch without what watching took, per round."""
    ratios = []
    for _ in range(rounds):
        timed, before = Timed(numbers), time.thread_time()
        train(trainer, timed, accumulation)
        total = time.thread_time() - before
        ratios.append(total / (total - timed.seconds))
    return ratios


def main() -> None:
    options = arguments(__doc__)
    rows = make_rows(64 if options.quick else 640, shapes(options.device))
    tokenizer = make_tokenizer()
    with tempfile.TemporaryDirectory() as name:
        teachers = make_teachers(3, TINY, [tokenizer])
        trainer = our_trainer(options, Path(name), rows, tokenizer, teachers, cache_dir=Path(name, "cache"))
        watched = trainer.numbers
        actions = {
            what: functools.partial(train, trainer, numbers, 1)
            for what, numbers in (("watched", watched), ("unwatched", Unwatched()))
        }
        times = interleaved(actions, options)
        claims = [Claim.of(times, "watched", "unwatched")]
        if options.device == "cpu":
            claims += [
                Claim(
                    f"epoch ÷ epoch less watching, accumulation {steps}",
                    share(trainer, watched, steps, options.rounds),
                    1.01,
                )
                for steps in (1, 4)
            ]
    show("Watching for numbers that are not finite", claims, options, times=times)


if __name__ == "__main__":
    main()

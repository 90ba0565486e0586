"""Watching for numbers that are not finite costs next to nothing.

An epoch of our trainer against one of the same trainer that does not watch: with cached teachers, where a step is
cheapest, with every micro-batch an update, and with four to an update.
"""

from __future__ import annotations

import functools
import tempfile
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


def train(trainer: Any, numbers: Any, accumulation: int) -> None:
    trainer.numbers, trainer.args.gradient_accumulation_steps = numbers, accumulation
    trainer.train()


def main() -> None:
    options = arguments(__doc__)
    rows = make_rows(320 if options.quick else 960, shapes(options.device))
    tokenizer = make_tokenizer()
    with tempfile.TemporaryDirectory() as name:
        teachers = make_teachers(3, TINY, [tokenizer])
        trainer = our_trainer(options, Path(name), rows, tokenizer, teachers, cache_dir=Path(name, "cache"))
        watched = trainer.numbers
        actions = {
            f"{what}, accumulation {steps}": functools.partial(train, trainer, numbers, steps)
            for steps in (1, 4)
            for what, numbers in (("watched", watched), ("unwatched", Unwatched()))
        }
        times = interleaved(actions, options)
    claims = [
        Claim.of(times, f"watched, accumulation {steps}", f"unwatched, accumulation {steps}", 1.01)
        for steps in (1, 4)
    ]
    show("Watching for numbers that are not finite", claims, options, times=times)


if __name__ == "__main__":
    main()

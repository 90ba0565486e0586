"""Sixteen cached teachers cost what one costs: an epoch of the same student with either."""

from __future__ import annotations

import tempfile
from pathlib import Path

from measure import Claim, arguments, idle, interleaved, show
from setting import TINY, make_rows, make_teachers, make_tokenizer, our_trainer, shapes


def main() -> None:
    options = arguments(__doc__)
    rows = make_rows(320 if options.quick else 960, shapes(options.device))
    tokenizer = make_tokenizer()
    # Stored logits have the same shape whatever the size of the model they came from.
    teachers = make_teachers(16, TINY, [tokenizer])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trainers = {
            f"cached, K = {count}": our_trainer(
                options, folder, rows, tokenizer, teachers[:count], cache_dir=folder / "cache"
            )
            for count in (16, 1)
        }
        times = interleaved({name: trainer.train for name, trainer in trainers.items()}, options)
        idling = idle({name: trainer.train for name, trainer in trainers.items()}, options)
    show(
        "An epoch with 16 cached teachers against one with 1",
        [Claim.of(times, *trainers, 1.10), *idling],
        options,
        times=times,
    )


if __name__ == "__main__":
    main()

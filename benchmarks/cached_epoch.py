"""Distilling from a cache costs what fine-tuning costs.

An epoch of our trainer with three cached teachers against an epoch of `transformers.Trainer` with the same student on
the same rows. Also, on CUDA, the share of time in which the GPU idles.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from measure import Claim, arguments, idle_share, interleaved, show
from setting import TINY, make_rows, make_teachers, make_tokenizer, our_trainer, plain_trainer, shapes


def main() -> None:
    options = arguments(__doc__)
    rows = make_rows(320 if options.quick else 960, shapes(options.device))
    tokenizer = make_tokenizer()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Stored logits have the same shape whatever the size of the model they came from.
        teachers = make_teachers(3, TINY, [tokenizer])
        plain = plain_trainer(options, folder, rows, tokenizer)
        cached = our_trainer(options, folder, rows, tokenizer, teachers, cache_dir=folder / "cache")
        times = interleaved({"cached epoch": cached.train, "plain epoch": plain.train}, options)
        claims = [Claim.of(times, "cached epoch", "plain epoch", 1.03)]
        if options.device == "cuda":
            claims += [
                Claim(f"GPU idle, {what}", [idle_share(trainer.train)])
                for what, trainer in {"cached": cached, "plain": plain}.items()
            ]
        show("A cached epoch against a plain fine-tuning epoch", claims, options, times=times)


if __name__ == "__main__":
    main()

"""A model run once over a few rows, to see whether it takes what its view makes of them.

Shapes: B rows, C outputs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import DataError, in_a_line
from .views import View, named_inputs, text_batches


def try_model(
    model: PreTrainedModel, view: View, columns: Sequence[Sequence[Any]], about: str
) -> Tensor | None:
    """What a model says of some rows.

    A failed look-up on an accelerator would end the process, so the model is run on the CPU.

    Args:
        model: The model.
        view: How it reads them.
        columns: Of B rows.
        about: What is tried, for messages: "Teacher 'bert': a forward of one word".

    Returns:
        (B, C); None where the model cannot be moved to a CPU.

    Raises:
        DataError: It cannot be run.
    """
    if hasattr(model, "hf_device_map") or getattr(model, "quantization_method", None) is not None:
        return None
    (inputs,) = text_batches(view, columns, len(columns[0]))
    known = named_inputs(model)
    with _at_rest(model):
        try:
            return model(**{key: value for key, value in inputs.items() if key in known}).logits
        except Exception as error:  # the model's own code, which may raise anything
            raise DataError(f"{about} fails: {type(error).__name__}: {in_a_line(error)}.") from error


@contextlib.contextmanager
def _at_rest(model: PreTrainedModel) -> Iterator[None]:
    """The model on the CPU and in evaluation mode, and afterwards as it was; no random number is drawn for it."""
    training, home = model.training, next(model.parameters()).device
    modes: list[Any] = [module for module in model.modules() if module.training]
    model.eval()
    if home.type != "cpu":
        model.to("cpu")
    try:
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        if home.type != "cpu":
            model.to(home)
        model.training = training
        for module in modes:
            module.training = True

"""ONNX files: written from a model, quantised, and run. The packages they need are imported where they are used.

Shapes: B rows of a batch, L tokens, C classes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..errors import ConfigurationError, how_to_install
from ..evaluation.cost import weight_bytes

# Weights beyond this go into a file beside the graph: a protobuf message holds 2 GiB at most.
_IN_ONE_FILE = 1_900_000_000


def refuse_missing(packages: Sequence[str]) -> None:
    """Say how to install packages that are not.

    Raises:
        ConfigurationError: One of them is missing.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"Exported students need {' and '.join(missing)}, not installed here: {how_to_install('onnx', extra='onnx')}."
        )


class _Logits(nn.Module):
    """Positional inputs by name, and the logits alone."""

    def __init__(self, model: nn.Module, inputs: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.inputs = tuple(inputs)

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.model(**dict(zip(self.inputs, tensors, strict=True))).logits


def write_onnx(
    model: nn.Module,
    example: Mapping[str, Tensor],
    path: Path,
    *,
    open_sizes: Sequence[str] = ("batch", "length"),
) -> Path:
    """Write a model whose inputs may have any number of rows, and of tokens where they are tokens.

    Args:
        model: In evaluation mode.
        example: Its inputs by name, each (B, …).
        path: Of the file.
        open_sizes: What the leading dimensions of each input are called that may be of any size.

    Returns:
        The path.

    Raises:
        ConfigurationError: The exporter refuses the model.
    """
    # One row or one token would be taken for a constant of the graph.
    inputs = {name: _at_least_two(value, len(open_sizes)) for name, value in example.items()}
    sizes = {number: torch.export.Dim(name) for number, name in enumerate(open_sizes)}
    try:
        with _quietly(), _waiting("Writing the graph"):
            torch.onnx.export(
                _Logits(model, list(inputs)).eval(),
                tuple(inputs.values()),
                path,
                input_names=list(inputs),
                output_names=["logits"],
                dynamic_shapes=(tuple(sizes for _ in inputs),),
                external_data=weight_bytes(model) > _IN_ONE_FILE,
                dynamo=True,
                verbose=False,
            )
    except (
        Exception
    ) as error:  # the exporter passes on whatever went wrong in tracing, translating or writing
        raise ConfigurationError(
            f"{type(model).__name__} cannot be exported to ONNX with torch {torch.__version__}: "
            f"{' '.join(str(error).split())[:400]}"
        ) from error
    return path


def _at_least_two(value: Tensor, dimensions: int) -> Tensor:
    """Two rows of an input, and two at least along the other open dimensions."""
    doubled = value.repeat(*(2 if number < dimensions else 1 for number in range(value.dim())))
    for number in range(dimensions):
        doubled = doubled.narrow(number, 0, 2 if number == 0 else max(2, value.shape[number]))
    return doubled


def quantize(path: Path, to: Path) -> Path:
    """Quantise a file to int8, dynamically, and remove it.

    Args:
        path: Of the float32 file.
        to: Where the other is written.

    Returns:
        Its path.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(path)
    # The quantiser turns the weights of Gemm round and keeps the shape that torch noted for them, which then contradicts.
    weights = {weight.name for weight in model.graph.initializer}
    kept = [value for value in model.graph.value_info if value.name not in weights]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    beside = path.with_name(f"{path.name}.data")
    external = beside.is_file()
    with _quietly(), _waiting("Quantising"):
        quantize_dynamic(
            model,
            to,
            per_channel=True,
            # 8 bits may overflow in the instructions of processors without VNNI; the file is to be right on all.
            reduce_range=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=external,
        )
    path.unlink()
    beside.unlink(missing_ok=True)
    return to


def open_session(path: Path, threads: int | None = None) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU.

    Args:
        path: Of the file.
        threads: How many; None: as many as PyTorch has.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_session(session: Any, batch: Mapping[str, Tensor], inputs: Sequence[str]) -> np.ndarray:
    """Logits (B, C) float32 of a batch whose inputs are (B, L)."""
    # An input that the model names and never reads is not in the graph.
    known = {value.name for value in session.get_inputs()}
    return session.run(["logits"], {name: batch[name].numpy() for name in inputs if name in known})[0]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporter's and the quantiser's advice, which is for their own developers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _waiting(what: str) -> Iterator[None]:
    """A line with the time that has passed, on a terminal, for what does not say how far it is."""
    done = threading.Event()
    with tqdm(desc=what, bar_format="{desc}: {elapsed}", leave=False, disable=None) as line:

        def tick() -> None:
            while not done.wait(0.5):
                line.refresh()

        thread = threading.Thread(target=tick, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

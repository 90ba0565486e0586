"""A pruned student learns on: which heads the loss hangs on, zeros that stay zero, and what it gains, honestly told."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

from ..evaluation.cost import device_name, forwards_in_turns, made_inputs, weight_bytes
from ..evaluation.results import EvaluationReport
from ..markdown import markdown_table
from ..students.pruning import Masks, attention_blocks

if TYPE_CHECKING:
    from .trainer import MultiTeacherDistillationTrainer

_BATCHES = 16
_ROUNDS, _LENGTH = 100, 64


def head_importance(trainer: MultiTeacherDistillationTrainer, batches: int = _BATCHES) -> dict[str, Tensor]:
    """How much the loss hangs on each head: the mean over batches of |∂loss/∂ξ|, ξ = 1 being a factor of the head's output.

    With W the columns of the output projection that read the head, ∂loss/∂ξ = ⟨W, ∂loss/∂W⟩, so gradients of weights tell,
    whatever the attention implementation. Importances are divided by their norm in each layer, as the paper does.

    Args:
        trainer: Of the student; its loss on its training rows is taken, without dropout.
        batches: How many.

    Returns:
        (H,) by the name of the block's output projection.

    Raises:
        ConfigurationError: Its attention blocks are not found.

    Reference:
        Michel et al.: Are Sixteen Heads Really Better than One?, NeurIPS 2019, arXiv:1905.10650, with gradients per row; here
        they are per batch.
    """
    student = trainer.student
    blocks = attention_blocks(student)
    training, sums = trainer.model.training, dict.fromkeys(blocks, 0.0)
    trainer.model.eval()
    try:
        for inputs in itertools.islice(trainer.get_train_dataloader(), batches):
            trainer.model.zero_grad()
            trainer.compute_loss(trainer.model, trainer._prepare_inputs(inputs)).backward()
            for name, (together, _) in blocks.items():
                products = (together.weight * together.weight.grad).detach()  # (D, H d)
                sums[name] = (
                    sums[name]
                    + products.sum(0).view(student.config.num_attention_heads, -1).sum(-1).abs().cpu()
                )
    finally:
        trainer.model.zero_grad()
        trainer.model.train(training)
    return {name: values / (values.norm() + 1e-20) for name, values in sums.items()}


class KeepPruned(TrainerCallback):
    """Sets the masked weights of a student to zero, now and after every optimizer step.

    Args:
        student: The student that is trained, by one process or by several that each hold it whole.
        masks: Of `magnitude_masks` or `head_masks`.

    Example:
        >>> import copy
        >>> from hf_distill.students.pruning import magnitude_masks
        >>> pruned = copy.deepcopy(bert)
        >>> _ = KeepPruned(pruned, magnitude_masks(pruned, 0.5))
        >>> count_nonzero(pruned) < count_nonzero(bert)
        True
    """

    def __init__(self, student: nn.Module, masks: Masks) -> None:
        parameters = dict(student.named_parameters())
        self._pairs = [(parameters[name], mask) for name, mask in masks.items()]
        self._apply()

    @torch.no_grad()
    def _apply(self) -> None:
        for i, (parameter, mask) in enumerate(self._pairs):
            if mask.device != parameter.device:
                mask = mask.to(parameter.device)
                self._pairs[i] = (parameter, mask)
            parameter.mul_(mask)

    def on_optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Momentum has moved them."""
        self._apply()


def count_nonzero(student: nn.Module) -> int:
    """How many parameters are not zero."""
    return sum(int(parameter.count_nonzero()) for parameter in student.parameters())


class Stage(NamedTuple):
    """A student at one point of the recipe.

    Attributes:
        model: A copy of it.
        report: Of its evaluation, where it is called ``student``.
    """

    model: PreTrainedModel
    report: EvaluationReport


def pruning_report(stages: Mapping[str, Stage], notes: Iterable[str] = ()) -> str:
    """Quality, size and time of a student before and after, in one table with its teachers.

    Args:
        stages: By the name the table gives them; the last one's report tells of teachers and ensemble.
        notes: Sentences to add.

    Returns:
        Markdown.
    """
    last = list(stages.values())[-1].report
    times = forwards_in_turns(
        {name: stage.model for name, stage in stages.items()}, 1, _LENGTH, rounds=_ROUNDS
    )
    rows = {name: stage.report.systems["student"] for name, stage in stages.items()}
    rows |= {
        name: system for name, system in last.systems.items() if name not in ("student", "student+teachers")
    }
    metrics = list(dict.fromkeys(metric for row in rows.values() for metric in row.metrics))
    cells = [
        [
            name,
            *(f"{row.metrics[metric]:.4f}" if metric in row.metrics else "–" for metric in metrics),
            "–" if row.parameters is None else f"{row.parameters:,}",
            *(_cost(stages[name].model, times[name]) if name in stages else ["–"] * 3),
        ]
        for name, row in rows.items()
    ]
    table = markdown_table(["system", *metrics, "parameters", "not zero", "bytes", "p50 of 1 row"], cells)
    model = next(iter(stages.values())).model
    where, shape = device_name(model.device), made_inputs(model, 1, _LENGTH)["input_ids"].shape
    lines = [
        f"# Pruning\n\n{last.task} on {last.dataset}: {last.rows} rows\n\n{table}",
        "Zeros are stored and multiplied as any other number, so bytes and time stay what they were: what is gained is what "
        "a sparse format or kernel, or a compressed file, makes of them.",
        f"Forward of 1 row of {shape[1]} tokens on {where}, medians of {len(times[next(iter(stages))])} rounds in turns.",
        *(f"Note: {note}" for note in dict.fromkeys([*notes, *last.notes])),
    ]
    return "\n\n".join(lines) + "\n"


def _cost(model: PreTrainedModel, seconds: list[float]) -> list[str]:
    return [
        f"{count_nonzero(model):,}",
        f"{weight_bytes(model):,}",
        f"{1000 * float(np.median(seconds)):.2f} ms",
    ]

"""Weights or heads of a finished student set to zero and kept there while it learns on; and what that gains, honestly told.

A masked student is a student as any other: the same configuration, loadable by anyone. That is why heads are set to zero and
not cut out: transformers 5 cuts none (`prune_heads` is gone), and a configuration names one number of heads for all layers,
of hidden size over their number in width, so `from_pretrained` could not build what a cut would leave.

Shapes: D hidden size, H heads, d width of a head.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from transformers import PreTrainedModel, TrainerCallback

from ..errors import ConfigurationError
from ..evaluation.evaluating import EvaluationReport
from ..evaluation.timing import take_turns
from ..markdown import markdown_table
from ..rows.views import named_inputs, position_limit

if TYPE_CHECKING:
    from ..training.trainer import MultiTeacherDistillationTrainer

Masks = dict[str, Tensor]
"""By parameter name, of its shape: 1 where it is kept, 0 where it is to be zero."""

# Where the heads of an attention block come together, and what it reads the tokens with, by their usual names.
_TOGETHER = (
    "attention.out_lin",
    "attention.output.dense",
    "attention.dense",
    "attn.Wo",
    "self_attn.o_proj",
)
_READERS = {"query", "key", "value", "q_lin", "k_lin", "v_lin", "query_proj", "key_proj", "value_proj"}
_READERS |= {"q_proj", "k_proj", "v_proj", "Wqkv"}

_BATCHES = 16
_ROUNDS, _LENGTH = 100, 64


def magnitude_masks(student: PreTrainedModel, sparsity: float) -> Masks:
    """Masks of the smallest weights of all linear layers together, the head and the embeddings left out.

    Args:
        student: Its weights stay as they are.
        sparsity: Share of these weights to set to zero, in (0, 1).

    Raises:
        ConfigurationError: sparsity out of range, or no linear layers.

    Reference:
        Han et al.: Learning both Weights and Connections for Efficient Neural Networks, NeurIPS 2015, arXiv:1506.02626.

    Example:
        >>> masks = magnitude_masks(bert, 0.25)
        >>> kept = sum(mask.sum().item() for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
        >>> round(kept, 3)
        0.75
    """
    _refuse_share(sparsity, "sparsity")
    body = {
        f"{student.base_model_prefix}.{name}": module
        for name, module in student.base_model.named_modules()
        if isinstance(module, nn.Linear)
    }
    if not body:
        raise ConfigurationError(f"{type(student).__name__} has no linear layers to prune.")
    weights = {f"{name}.weight": module.weight.detach() for name, module in body.items()}
    flat = torch.cat([weight.flatten() for weight in weights.values()])
    mask = prune.L1Unstructured(sparsity).compute_mask(flat, torch.ones_like(flat))
    parts = mask.split([weight.numel() for weight in weights.values()])
    return {name: part.view_as(weight) for (name, weight), part in zip(weights.items(), parts, strict=True)}


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
    blocks = _blocks(student)
    training, sums = trainer.model.training, dict.fromkeys(blocks, 0.0)
    trainer.model.eval()
    try:
        for inputs in itertools.islice(trainer.get_train_dataloader(), batches):
            trainer.model.zero_grad()
            trainer.compute_loss(trainer.model, trainer._prepare_inputs(inputs)).backward()
            for name, (together, _) in blocks.items():
                products = (together.weight * together.weight.grad).detach()  # (D, H d)
                heads = products.sum(0).view(student.config.num_attention_heads, -1)
                sums[name] = sums[name] + heads.sum(-1).abs().cpu()
    finally:
        trainer.model.zero_grad()
        trainer.model.train(training)
    return {name: values / (values.norm() + 1e-20) for name, values in sums.items()}


def head_masks(student: PreTrainedModel, share: float, importance: Mapping[str, Tensor]) -> Masks:
    """Masks of the least important heads of all layers together; each layer keeps one.

    Args:
        student: Its weights stay as they are.
        share: Share of the heads to set to zero, in (0, 1).
        importance: Of `head_importance`.

    Raises:
        ConfigurationError: share out of range; so few heads that none could go.

    Example:
        >>> importance = {name: torch.tensor([1.0, float(i)]) for i, name in enumerate(attention_outputs(bert))}
        >>> masks = head_masks(bert, 0.25, importance)
        >>> masks["bert.encoder.layer.0.attention.output.dense.weight"][0].tolist() == [1.0] * 16 + [0.0] * 16
        True
    """
    _refuse_share(share, "heads")
    heads = [
        (float(value), name, head) for name, values in importance.items() for head, value in enumerate(values)
    ]
    best = {(name, int(values.argmax())) for name, values in importance.items()}
    wanted = round(share * len(heads))
    gone = [(name, head) for _, name, head in sorted(heads) if (name, head) not in best][:wanted]
    if not gone:
        raise ConfigurationError(
            f"heads={share:g} of {len(heads)} heads in {len(importance)} layers leaves none to set to zero, since each layer "
            "keeps one: name a larger share, or prune weights by sparsity."
        )
    masks: Masks = {}
    for name, (together, readers) in _blocks(student).items():
        width = together.in_features // student.config.num_attention_heads
        kept = torch.ones(together.in_features)
        for _, head in (pair for pair in gone if pair[0] == name):
            kept[head * width : (head + 1) * width] = 0
        masks[f"{name}.weight"] = kept.expand_as(together.weight).cpu()
        for reader, module in readers.items():
            if module.out_features % len(kept) == 0:  # grouped queries share keys and values among heads
                rows = kept.repeat(module.out_features // len(kept))
                masks[f"{reader}.weight"] = rows[:, None].expand_as(module.weight).cpu()
                if module.bias is not None:
                    masks[f"{reader}.bias"] = rows
    return masks


def attention_outputs(student: PreTrainedModel) -> list[str]:
    """Names of the output projections of a student's attention blocks.

    Raises:
        ConfigurationError: None is found by its usual name.

    Example:
        >>> attention_outputs(bert)[0]
        'bert.encoder.layer.0.attention.output.dense'
    """
    return list(_blocks(student))


def _blocks(student: PreTrainedModel) -> dict[str, tuple[nn.Linear, dict[str, nn.Linear]]]:
    """Output projection, and projections of queries, keys and values, of each attention block."""
    linear = {name: m for name, m in student.named_modules() if isinstance(m, nn.Linear)}
    blocks = {}
    for name, module in linear.items():
        ending = next((end for end in _TOGETHER if f".{name}".endswith(f".{end}")), None)
        if ending is not None:
            block = name.removesuffix(ending) + ending.partition(".")[0] + "."
            inside = {other: m for other, m in linear.items() if other.startswith(block)}
            readers = {other: m for other, m in inside.items() if other.rpartition(".")[2] in _READERS}
            blocks[name] = (module, readers)
    if not blocks:
        raise ConfigurationError(
            f"The attention blocks of {type(student).__name__} have no output projection under a known name "
            f"({', '.join(_TOGETHER)}): prune its weights by sparsity instead."
        )
    return blocks


class KeepPruned(TrainerCallback):
    """Sets the masked weights of a student to zero, now and after every optimizer step.

    Args:
        student: The student that is trained, by one process or by several that each hold it whole.
        masks: Of `magnitude_masks` or `head_masks`.

    Example:
        >>> import copy
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
    forwards = {
        name: functools.partial(_forward, stage.model, _inputs(stage.model)) for name, stage in stages.items()
    }
    times = take_turns(forwards, rounds=_ROUNDS)
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
    device = next(model.parameters()).device
    where = f"{device.type}, {torch.get_num_threads()} thread(s)" if device.type == "cpu" else str(device)
    shape = next(iter(_inputs(model).values())).shape
    lines = [
        f"# Pruning\n\n{last.task} on {last.dataset}: {last.rows} rows\n\n{table}",
        "Zeros are stored and multiplied as any other number, so bytes and time stay what they were: what is gained is what "
        "a sparse format or kernel, or a compressed file, makes of them.",
        f"Forward of 1 row of {shape[1]} tokens on {where}, medians of {len(times[next(iter(stages))])} rounds in turns.",
        *(f"Note: {note}" for note in dict.fromkeys([*notes, *last.notes])),
    ]
    return "\n\n".join(lines) + "\n"


def _cost(model: PreTrainedModel, seconds: list[float]) -> list[str]:
    size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    return [f"{count_nonzero(model):,}", f"{size:,}", f"{1000 * float(np.median(seconds)):.2f} ms"]


def _forward(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> None:
    with torch.inference_mode():
        model(**inputs)


def _inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    token = next(i for i in range(model.config.vocab_size) if i != model.config.pad_token_id)
    shape = (1, min(_LENGTH, position_limit(model) or _LENGTH))
    device = next(model.parameters()).device
    inputs = {
        "input_ids": torch.full(shape, token, device=device),
        "attention_mask": torch.ones(shape, dtype=torch.int64, device=device),
    }
    return {name: value for name, value in inputs.items() if name in named_inputs(model)}


def _refuse_share(share: float, name: str) -> None:
    if not 0 < share < 1:
        raise ConfigurationError(
            f"{name} is {share:g}, but it is the share to set to zero: above 0 and below 1."
        )

"""Weights or heads of a finished student set to zero and kept there while it learns on; and what that gains, honestly told.

A masked student is a student as any other: the same configuration, loadable by anyone. That is why heads are set to zero and
not cut out: transformers 5 cuts none (`prune_heads` is gone), and a configuration names one number of heads for all layers,
of hidden size over their number in width, so `from_pretrained` could not build what a cut would leave.

Shapes: D hidden size, H heads, d width of a head.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from transformers import PreTrainedModel

from ..errors import ConfigurationError

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
    for name, (together, readers) in attention_blocks(student).items():
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
    return list(attention_blocks(student))


def attention_blocks(student: PreTrainedModel) -> dict[str, tuple[nn.Linear, dict[str, nn.Linear]]]:
    """Output projection, and projections of queries, keys and values, of each attention block."""
    linear = {name: m for name, m in student.named_modules() if isinstance(m, nn.Linear)}
    blocks = {}
    for name, module in linear.items():
        ending = next((end for end in _TOGETHER if f".{name}".endswith(f".{end}")), None)
        if ending is not None:
            block = name.removesuffix(ending) + ending.partition(".")[0] + "."
            inside = {other: m for other, m in linear.items() if other.startswith(block)}
            blocks[name] = (
                module,
                {other: m for other, m in inside.items() if other.rpartition(".")[2] in _READERS},
            )
    if not blocks:
        raise ConfigurationError(
            f"The attention blocks of {type(student).__name__} have no output projection under a known name "
            f"({', '.join(_TOGETHER)}): prune its weights by sparsity instead."
        )
    return blocks


def _refuse_share(share: float, name: str) -> None:
    if not 0 < share < 1:
        raise ConfigurationError(
            f"{name} is {share:g}, but it is the share to set to zero: above 0 and below 1."
        )

"""The attention probabilities of a model for one text.

Shapes: n layers, H heads, T tokens.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...errors import ConfigurationError
from ...rows.views import TokenView, named_inputs, token_limit
from ..cost import evaluating

Text = str | tuple[str, str]
"""A row's text, or a pair."""

# Half precision sums to one within a few thousandths; scores in the place of probabilities are far off.
_SUM_TOLERANCE = 0.02


class AttentionMaps(NamedTuple):
    """What a model attends to in one text.

    Attributes:
        probabilities: (n, H, T, T) float32, on the CPU: how much of its attention each token (a row, summing to 1) gives
            to each.
        tokens: The T tokens, special ones included; ▁ stands for a space in byte-level vocabularies.
        layers: The numbers of the n layers.
    """

    probabilities: Tensor
    tokens: tuple[str, ...]
    layers: tuple[int, ...]


def attention_maps(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: Text,
    *,
    layers: Sequence[int] | None = None,
) -> AttentionMaps:
    """The attention probabilities of a model for a text, per layer and head.

    Dropout is off. A model whose attention implementation gives no probabilities (sdpa, flash) is switched to eager for
    this call, with a warning, and back; its logits are the same up to rounding.

    Args:
        model: Any transformer that attends from every token to every token, with or without a head or adapter.
        tokenizer: Its tokenizer.
        text: A text, or a pair; cut where the model's positions end.
        layers: Their numbers, from 1 on, or from -1, the last, back; None: all.

    Raises:
        ConfigurationError: The model cannot give them, with the reason, or has no such layer.

    Example:
        >>> maps = attention_maps(bert, bert_tokenizer, "a fine film", layers=[-1])
        >>> maps.tokens, maps.layers, maps.probabilities.shape
        (('[CLS]', 'a', 'fine', 'film', '[SEP]'), (2,), torch.Size([1, 2, 5, 5]))
    """
    maps, replaced = read_attention(model, TokenView(tokenizer, token_limit(model, tokenizer)), text)
    if replaced is not None:
        warnings.warn(switched_to_eager({type(model).__name__: replaced}), stacklevel=2)
    if layers is None:
        return maps
    chosen = [layer_number(number, len(maps.layers)) for number in layers]
    if None in chosen or not chosen:
        raise ConfigurationError(
            f"layers is {list(layers)}, but {type(model).__name__} has attention in the layers 1 to {len(maps.layers)} "
            "(or -1, the last, and so on)."
        )
    return AttentionMaps(maps.probabilities[[n - 1 for n in chosen]], maps.tokens, tuple(chosen))


def read_attention(
    model: PreTrainedModel, view: TokenView, text: Text, what: str | None = None
) -> tuple[AttentionMaps, str | None]:
    """As `attention_maps`, all layers, without the warning.

    Args:
        model: The model.
        view: How it reads text.
        text: A text, or a pair.
        what: Who it is, for messages; None: its class.

    Returns:
        The maps, and the attention implementation that eager replaced, or None.

    Raises:
        ConfigurationError: The model cannot give them, with the reason.
    """
    columns = [[part] for part in ([text] if isinstance(text, str) else text)]
    encoded = {key: values[0] for key, values in view.encode(columns).items()}
    inputs = {
        key: torch.tensor([values], device=model.device)
        for key, values in encoded.items()
        if key in named_inputs(model)
    }
    with evaluating(model), torch.no_grad(), eager_attention(model) as replaced:
        given = getattr(model(**inputs, output_attentions=True), "attentions", None) or ()
    given = [layer.float().cpu() for layer in given if layer is not None]
    length, total = len(encoded["input_ids"]), model.config.get_text_config().num_hidden_layers
    wrong = _why_no_attention(given, total, length)
    if wrong is not None:
        kind = type(model).__name__
        who = kind if what is None else f"{what} ({kind})"
        raise ConfigurationError(f"{who} gives no attention maps: {wrong}.")
    tokens = _readable(view.tokenizer, encoded["input_ids"])
    return AttentionMaps(torch.cat(given), tokens, tuple(range(1, total + 1))), replaced


def _why_no_attention(given: Sequence[Tensor], total: int, length: int) -> str | None:
    if len(given) != total:
        return (
            f"its output holds {len(given)} for {total} layers, as of models that mix tokens by other means, keep their "
            "attention to themselves, or are encoder and decoder"
        )
    shape = tuple(given[0].shape)
    if any(tuple(layer.shape) != (1, given[0].shape[1], length, length) for layer in given):
        return f"of {length} tokens its first layer gives {shape} instead of (1, heads, {length}, {length})"
    off = max(float((layer.sum(-1) - 1).abs().max()) for layer in given)
    if not off < _SUM_TOLERANCE:
        return (
            f"what a token gives to all tokens does not sum to 1 (off by up to {off:.2f}), so it is no share of its "
            "attention"
        )
    return None


@contextlib.contextmanager
def eager_attention(model: PreTrainedModel) -> Iterator[str | None]:
    """Switch a model to the attention implementation that can say its probabilities, and back at the end.

    Yields:
        The name of the implementation that is put aside; None where nothing is.
    """
    before = _implementations(model.config)
    model.set_attn_implementation("eager")
    try:
        yield None if _implementations(model.config) == before else before[""]
    finally:
        model.set_attn_implementation(before)


def _implementations(config: Any) -> dict[str, Any]:
    """A config's attention implementation under "", and those of the configs in it."""
    parts = {name: getattr(config, name, None) for name in config.sub_configs}
    return {
        "": config._attn_implementation,
        **{name: _implementations(part) for name, part in parts.items() if part is not None},
    }


def switched_to_eager(replaced: Mapping[str, str]) -> str:
    """The sentence that says whose attention was computed otherwise than usual, from what was replaced by model."""
    models = ", ".join(f"{name} ({implementation})" for name, implementation in replaced.items())
    return (
        "Attention probabilities are only known to the eager implementation, so these models were switched to it for "
        f"their maps, and back: {models}."
    )


def _readable(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[str, ...]:
    """Tokens as the tokenizer writes them, but characters where it writes bytes."""
    tokens = tokenizer.convert_ids_to_tokens(ids)
    if "ByteLevel" not in repr(getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)):
        return tuple(tokens)
    special = set(tokenizer.all_special_ids)
    return tuple(
        token if i in special else tokenizer.convert_tokens_to_string([token]).replace(" ", "▁")
        for i, token in zip(ids, tokens, strict=True)
    )


def layer_number(number: int, total: int) -> int | None:
    """The number of a layer, counted from 1, where it is counted from the end too; None: there is none."""
    counted = number if number > 0 else total + 1 + number
    return counted if number != 0 and 1 <= counted <= total else None
